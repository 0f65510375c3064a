"""A trial's answers: kept whole in a short text, and every reported accuracy follows from them."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.ledger.records import TrialRecord
from sweep.state.judged import JUDGED_IMAGES, judged_images, read_judged_images
from sweep.state.uncertainty import judged_trials
from trainer.answers import Answers
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.invariance.preparation import Prepared
from trainer.report import EpochReport
from trainer.training.loop import run_trial
from trainer.training.pack import Pack

FIELDS = ("right", "robust", "perturbed", "right_sources")


def answers_of(right: list[tuple[bool, bool]], perturbed: list[tuple[int, bool]]) -> Answers:
    clean = np.array([one for one, _ in right], dtype=bool)
    survived = np.array([other for _, other in right], dtype=bool)
    classes = np.array([one for one, _ in perturbed], dtype=np.uint8)
    return Answers(clean, clean & survived, classes, np.array([other for _, other in perturbed], dtype=bool))


SOME = answers_of([(True, True), (False, True), (True, False)], [(3, True), (255, False)])


@given(st.lists(st.tuples(st.booleans(), st.booleans())), st.lists(st.tuples(st.integers(0, 255), st.booleans())))
def test_a_text_comes_back_as_the_answers(right: list[tuple[bool, bool]], perturbed: list[tuple[int, bool]]) -> None:
    answers = answers_of(right, perturbed)
    text = answers.encode()
    again = Answers.decode(text)
    assert text.isascii()
    for name in FIELDS:
        kept, known = getattr(again, name), getattr(answers, name)
        assert kept.dtype == known.dtype
        np.testing.assert_array_equal(kept, known)


def test_a_damaged_text_is_refused() -> None:
    text = SOME.encode()
    content = zlib.decompress(base64.b64decode(text))
    other = [content[:-1], content + b"\0", b"\2" + content[1:], b""]
    damaged = [base64.b64encode(zlib.compress(each)).decode() for each in other]
    bomb = base64.b64encode(zlib.compress(bytes(2**25))).decode()
    for each in (*damaged, bomb, "", "!", "é", text[:-4], text[4:], text[:8] + "A" + text[9:], text + "="):
        with pytest.raises(ValueError, match="answers '.*'...: "):
            Answers.decode(each)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    bits, classes = np.zeros(3, dtype=bool), np.zeros(2, dtype=np.uint8)
    with pytest.raises(ValueError, match="3 images, 2 attacked"):
        Answers(bits, bits[:2], classes, bits[:2])
    with pytest.raises(ValueError, match=r"perturbed: int64 of shape \(2,\), must be uint8"):
        Answers(bits, bits, classes.astype(np.int64), bits[:2])
    with pytest.raises(ValueError, match="wrong when clean is not robust"):
        Answers(bits, ~bits, classes, bits[:2])


@pytest.mark.parametrize("packed", [False, True])
def test_the_final_report_follows_from_its_answers(packed: bool, prepared: Prepared, tmp_path: Path) -> None:
    """Compute every accuracy from the text and the file of judged images alone, by its definition."""
    config = TrialConfig(architecture="mlp", epochs=2, batch_size=50, sensitivity_ce_weight=0.5, sensitivity_steps=2)
    if packed:
        pack = Pack(prepared.evaluation, prepared)
        trial = pack.join(config)
        reports = [pack.advance([trial])[trial] for _ in range(3)]
    else:
        reports = list(run_trial(config, prepared.evaluation, prepared))
    *epochs, final = [report.to_dict() for report in reports if isinstance(report, EpochReport)]
    assert all("answers" not in report for report in epochs)
    (tmp_path / JUDGED_IMAGES).write_bytes(judged_images(prepared, "validation").to_bytes())
    judged = read_judged_images(tmp_path / JUDGED_IMAGES)
    assert judged is not None
    answers = Answers.decode(final["answers"])
    kept = answers.perturbed == judged.labels
    assert final["clean_accuracy"] == answers.right.mean()
    assert final["sensitivity_accuracy"] == answers.robust.mean()
    assert final["invariance_original_label"] == kept.mean()
    np.testing.assert_array_equal(answers.right_sources, answers.right[judged.source])
    for crowd, name in zip(judged.shares, ("", *(f"{each}/" for each in list(judged.shares)[1:])), strict=True):
        shares = judged.shares[crowd].astype(float)
        rows = np.arange(len(shares))
        unchanged = shares[rows, judged.labels]
        changed, agreeing = 1 - unchanged, np.where(kept, 0, shares[rows, answers.perturbed])
        assert final[f"{name}invariance_accuracy"] == pytest.approx(agreeing.sum() / changed.sum(), abs=1e-12)
        stuck = changed * answers.right_sources
        assert final[f"{name}invariance_stuck"] == pytest.approx((stuck * kept).sum() / stuck.sum(), abs=1e-12)
        of_unchanged = (unchanged * kept).sum() / unchanged.sum()
        assert final[f"{name}invariance_unchanged"] == pytest.approx(of_unchanged, abs=1e-12)
        assert final[f"{name}invariance_changed_mass"] == pytest.approx(changed.sum(), abs=1e-9)
    names = [name for name in final if "invariance" in name or name.endswith(("clean_accuracy", "y_accuracy"))]
    trials = judged_trials([TrialRecord(0, reports=[final])], judged, names)
    assert trials is not None
    found = trials.measure(names, np.ones((1, len(answers.right))))[0, 0]
    assert dict(zip(names, found.tolist(), strict=True)) == pytest.approx(
        {name: final[name] for name in names}, abs=1e-9
    )


def test_judged_images_that_are_damaged_are_said_to_be(tmp_path: Path) -> None:
    assert read_judged_images(tmp_path / JUDGED_IMAGES) is None
    (tmp_path / JUDGED_IMAGES).write_bytes(b"PAR1, or not")
    with pytest.raises(InputError, match=r"judged\.parquet: is damaged"):
        read_judged_images(tmp_path / JUDGED_IMAGES)

"""What a trial's run carries beside numbers: accuracy over epsilon once audited, and worst examples."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from sweep.audit.results import AuditResult, sealed
from sweep.tracking.curves import audited_numbers, write_curves
from sweep.tracking.gallery import EXAMPLES, draw, invariance_examples, sensitivity_examples
from tests.support.recorded_sweeps import recorded, results_of
from trainer.invariance.preparation import Prepared
from trainer.models import build_model

TRIAL = 3


def audited(seed: int, accuracies: list[float], *, own: bool = False) -> AuditResult:
    return AuditResult(
        own=own,
        number=TRIAL,
        config={"seed": seed},
        judged_by={"format": 1, "test_size": 40, "steps": 10, "queries": 20},
        images=40,
        rows=[],
        answers="",
        broken_by={},
        numbers={"curve_area": 0.5, "certified_accuracy": seed / 10},
        curve={"epsilons": [0.0, 0.1, 0.2], "accuracies": accuracies, "alone": accuracies},
        evidence={},
        warnings=[],
    )


def test_the_curve_of_an_audited_trial(tmp_path: Path) -> None:
    plan = recorded("digits24", tmp_path)
    results, folder = results_of(plan), plan.folder / "audit"
    assert write_curves(plan, results, TRIAL, tmp_path / "none") == ""
    folder.mkdir()
    (folder / "0003-7.json").write_bytes(sealed(audited(7, [0.9, 0.5, 0.1])))
    (folder / "0003-8.json").write_bytes(sealed(audited(8, [0.8, 0.6, 0.2])))
    (folder / "0003-9.json").write_bytes(sealed(audited(9, [0.8, 0.6, 0.2])).replace(b"0.6", b"0.7"))
    assert write_curves(plan, results, TRIAL, tmp_path / "none") == ""
    (folder / "0003-own.json").write_bytes(sealed(audited(6, [0.9, 0.7, 0.3], own=True)))
    digest = write_curves(plan, results, TRIAL, tmp_path / "some")
    rows = (tmp_path / "some" / "curve.csv").read_text().splitlines()
    assert rows[0] == "seed,epsilon,accuracy"
    assert rows[1:] == ["6,0.0,0.9", "6,0.1,0.7", "6,0.2,0.3"]
    assert (tmp_path / "some" / "curve.png").stat().st_size > 5000
    assert digest == write_curves(plan, results, TRIAL, tmp_path / "again")
    assert write_curves(plan, results, TRIAL + 1, tmp_path / "other") == ""
    assert audited_numbers(plan, TRIAL) == {"audit/curve_area": 0.5, "audit/certified_accuracy": pytest.approx(0.75)}
    assert audited_numbers(plan, TRIAL + 1) == {}


@pytest.mark.slow
def test_worst_examples_are_what_they_are_said_to_be(prepared: Prepared, tmp_path: Path) -> None:
    """Of a model that was trained a little: wrong on what is shown, within the budget, the surest first."""
    images, labels = prepared.data.train
    model = build_model(
        "mlp",
        shape=prepared.data.shape,
        classes=prepared.data.classes,
        embedding_size=4,
        mean=images.mean(dim=(0, 2, 3)),
        std=images.std(dim=(0, 2, 3)),
        seed=0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images).logits, labels).backward()
        optimizer.step()
    model.eval()
    groups = {
        "sensitivity": sensitivity_examples(model, prepared),
        "invariance": invariance_examples(model, prepared),
    }
    for examples, epsilon in zip(groups.values(), (0.2, 0.3), strict=True):
        assert 0 < len(examples) <= EXAMPLES
        assert [each.probability for each in examples] == sorted((each.probability for each in examples), reverse=True)
        for each in examples:
            with torch.no_grad():
                answer = model(torch.from_numpy(each.perturbed)[None]).logits.argmax().item()
            assert answer == each.answer
            assert np.abs(each.perturbed - each.source).max() <= epsilon + 1e-6
    assert all(each.answer != each.label for each in groups["sensitivity"])
    assert all(each.answer == each.label != each.judged for each in groups["invariance"])
    draw("trained a little", groups, tmp_path / "gallery.png")
    assert matplotlib.image.imread(tmp_path / "gallery.png").shape[0] > 500

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from trainer import preparation
from trainer.config import EvaluationConfig, InputError
from trainer.invariance import ATTACKS, ink_removed, linf_perturb
from trainer.oracle import ABSTAINS, RECIPES, ROLES
from trainer.preparation import Bank, Cache, Prepared, digest, prepare

SMALL = EvaluationConfig(train_size=300, validation_size=60)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(cache_dir: Path) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], epochs=25))
        yield prepare(SMALL, cache_dir=cache_dir)


def test_judging_set_is_the_least_ink_attack_within_its_budget(prepared: Prepared) -> None:
    judging = prepared.judging
    assert (judging.images - judging.source_images).abs().max() <= SMALL.eval_invariance_epsilon + 1e-6
    assert 0 <= judging.images.min() <= judging.images.max() <= 1
    validation = prepared.data.validation
    assert torch.equal(judging.source_images, validation.images[judging.source_index])
    assert torch.equal(judging.source_labels, validation.labels[judging.source_index])


def test_changed_unchanged_and_abstained_part_the_judging_set(prepared: Prepared) -> None:
    judging = prepared.judging
    abstained = judging.oracle_labels == ABSTAINS
    assert (judging.changed.int() + judging.unchanged.int() + abstained.int() == 1).all()
    assert judging.changed.any()
    assert judging.unchanged.any()


def test_moving_a_judging_set_keeps_its_fields(prepared: Prepared) -> None:
    assert all(torch.equal(a, b) for a, b in zip(prepared.judging, prepared.judging.to("cpu"), strict=True))


def test_second_preparation_computes_nothing(prepared: Prepared, cache_dir: Path) -> None:
    heard: list[str] = []
    again = prepare(SMALL, cache_dir=cache_dir, progress=lambda stage, done, total: heard.append(stage))
    assert heard == []
    assert all(torch.equal(a, b) for a, b in zip(prepared.judging, again.judging, strict=True))
    assert torch.equal(prepared.bank("linf").answers, again.bank("linf").answers)


def test_audit_set_is_made_from_test_images(prepared: Prepared) -> None:
    judging = prepared.judging_set("test")
    assert torch.equal(judging.source_labels, prepared.data.test.labels[judging.source_index])
    with pytest.raises(InputError, match="'tset': did you mean 'test'"):
        prepared.judging_set("tset")


def test_no_budget_leaves_the_training_images_as_they_are(prepared: Prepared) -> None:
    perturbation, train = prepared.bank("linf").at(0.0), prepared.data.train
    assert torch.equal(perturbation.images, train.images)
    assert torch.equal(perturbation.labels, train.labels)
    assert perturbation.keep.all()


@pytest.mark.parametrize("epsilon", [0.1, 0.3, 0.37, 1.0])
def test_training_perturbations_carry_the_source_or_the_target_label(prepared: Prepared, epsilon: float) -> None:
    bank = prepared.bank("linf")
    perturbation, train = bank.at(epsilon), prepared.data.train
    assert perturbation.images.shape == train.images.shape
    assert (perturbation.images - train.images).abs().max() <= epsilon + 1e-6
    candidates = linf_perturb(train.images[bank.neighbours.source], bank.aligned, epsilon=epsilon)
    removed = ink_removed(train.images[bank.neighbours.source], candidates)
    for n in range(0, len(train.labels), 17):
        own = bank.neighbours.source == n
        assert ink_removed(train.images[n : n + 1], perturbation.images[n : n + 1]) <= removed[own].min() + 1e-5
        legal = {int(train.labels[n]), *bank.neighbours.target[own].tolist()}
        assert int(perturbation.labels[n]) in legal


def test_a_larger_budget_changes_more_labels(prepared: Prepared) -> None:
    bank = prepared.bank("linf")
    changed = [int((bank.at(e).labels != prepared.data.train.labels).sum()) for e in (0.0, 0.1, 0.3)]
    assert changed == sorted(changed)
    assert changed[-1] > 20


def test_teacher_labels_a_budget_between_two_only_where_both_agree() -> None:
    budgets = ATTACKS["linf"].budgets
    answers = torch.full((len(budgets), 3), 4, dtype=torch.int8)
    answers[budgets.index(0.3) :, 1] = 7
    answers[budgets.index(0.3) :, 2] = 9
    data = preparation.Split(torch.full((3, 1, 2, 2), 0.5), torch.tensor([4, 4, 4]))
    pairs = preparation.Neighbours(torch.arange(3), torch.full((3,), 7), *(torch.zeros(3).long(),) * 2, torch.zeros(3))
    bank = Bank("linf", data, pairs, torch.full((3, 1, 2, 2), 200, dtype=torch.uint8), answers)
    below, between, above = bank.at(0.25), bank.at(0.28), bank.at(0.3)
    assert below.labels.tolist() == [4, 4, 4]
    assert below.keep.tolist() == [True, True, True]
    assert between.keep.tolist() == [True, False, False]
    assert above.labels[:2].tolist() == [4, 7]
    assert above.keep.tolist() == [True, True, False]


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_training_budget_outside_the_range_is_refused(prepared: Prepared, epsilon: float) -> None:
    with pytest.raises(InputError, match=f"invariance_epsilon = {epsilon}: must be at least 0 and at most 1"):
        prepared.bank("linf").at(epsilon)


def test_unknown_norm_is_refused(prepared: Prepared) -> None:
    with pytest.raises(InputError, match="'l8'"):
        prepared.bank("l8")


def test_a_budget_that_changes_nothing_is_refused(prepared: Prepared, cache_dir: Path) -> None:
    with pytest.raises(InputError, match=r"eval_invariance_epsilon = 0 \(linf\).*larger budget"):
        prepare(SMALL.replace(eval_invariance_epsilon=0, eval_invariance_size=10), cache_dir=cache_dir)


def test_oracle_agreement_tells_of_clean_images(prepared: Prepared) -> None:
    assert set(prepared.oracle_agreement) == set(ROLES)
    assert all(quality.size == 60 and quality.accuracy > 0.7 for quality in prepared.oracle_agreement.values())


def made(value: float, calls: list[float]) -> dict[str, torch.Tensor]:
    calls.append(value)
    return {"x": torch.full((4,), value)}


@pytest.mark.parametrize("damage", ["flipped", "cut", "no_checksum", "junk"])
def test_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, calls = Cache(tmp_path), []
    cache.get("stage", {"a": 1}, lambda: made(1.0, calls))
    path = tmp_path / f"stage-{digest('stage', {'a': 1})}.pt"
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "cut":
        path.write_bytes(content[:50])
    elif damage == "junk":
        path.write_bytes(b"\x80\x04.")
    else:
        path.with_suffix(".sha256").unlink()
    assert cache.get("stage", {"a": 1}, lambda: made(1.0, calls))["x"].tolist() == [1.0] * 4
    assert calls == [1.0, 1.0]


def test_other_parameters_are_kept_apart(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []
    assert cache.get("stage", {"a": 1}, lambda: made(1.0, calls))["x"][0] == 1
    assert cache.get("stage", {"a": 2}, lambda: made(2.0, calls))["x"][0] == 2
    assert cache.get("other", {"a": 1}, lambda: made(3.0, calls))["x"][0] == 3
    assert calls == [1.0, 2.0, 3.0]


def test_two_at_once_compute_once(tmp_path: Path) -> None:
    calls: list[float] = []
    entered, leave = threading.Event(), threading.Event()

    def slow() -> dict[str, torch.Tensor]:
        entered.set()
        assert leave.wait(20)
        return made(1.0, calls)

    first = threading.Thread(target=lambda: Cache(tmp_path).get("stage", {}, slow))
    second = threading.Thread(target=lambda: Cache(tmp_path).get("stage", {}, lambda: made(2.0, calls)))
    first.start()
    assert entered.wait(20)
    second.start()
    leave.set()
    first.join(20)
    second.join(20)
    assert calls == [1.0]


def test_a_failed_computation_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> dict[str, torch.Tensor]:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        Cache(tmp_path).get("stage", {}, fail)
    assert Cache(tmp_path).get("stage", {}, lambda: {"x": torch.ones(1)})["x"].tolist() == [1.0]


def test_unwritable_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot keep prepared data in"):
        Cache(tmp_path / "file").get("stage", {}, lambda: {"x": torch.ones(1)})


def test_number_of_threads_is_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    Cache(tmp_path).get("stage", {}, lambda: {"threads": torch.tensor(torch.get_num_threads())})
    assert torch.get_num_threads() == before

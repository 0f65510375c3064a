"""Packed trials: each gives the numbers that it gives alone, whatever its neighbours do.

In double precision, where rounding leaves thirteen digits, a trial in a pack and alone agree to `EXACT` over epochs,
which proves that they compute the same. In single precision they differ by the order of sums; mining or a sign now and
then amplifies the last digit, so that only the first epoch is compared, to `CLOSE`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.config import TrialConfig, check_packable
from trainer.errors import InputError, StorageFailed, TrialFailed
from trainer.files.checkpoints import FolderStore, from_bytes
from trainer.files.sealed import unseal
from trainer.invariance.preparation import Prepared
from trainer.objective import regularizers, terms
from trainer.report import EpochReport
from trainer.training import pack as pack_module
from trainer.training import stacked_evaluation
from trainer.training import trial as trial_module
from trainer.training.loop import run_trial
from trainer.training.model_file import MODEL_FILE
from trainer.training.pack import Pack, PackedTrial, structure
from trainer.training.stacked_models import StackedAdamW, StackedModel, stack_optimizers
from trainer.training.step import make_optimizer

EXACT = {"rel": 1e-8, "abs": 1e-9}
"""Tolerance for numbers of any epoch, in double precision."""

CLOSE = {"rel": 2e-3, "abs": 1e-5}
"""Tolerance for losses of the first epoch, in single precision: thirty times the difference measured where no image's
nearest neighbour depends on the last digit."""

EPOCHS = 2
SHORT: dict[str, Any] = {"architecture": "mlp", "epochs": EPOCHS, "batch_size": 50, "sensitivity_steps": 2}

OT: dict[str, Any] = {"regularizer": "ot_triplet", "sensitivity_weight": 0.5, "invariance_weight": 0.5}
TRIPLET: dict[str, Any] = {"regularizer": "triplet", "sensitivity_weight": 0.5, "norm_weight": 1e-3}

STRUCTURES: dict[str, dict[str, Any]] = {
    "clean": {"architecture": "cnn"},
    "fgsm": {"architecture": "cnn", "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0, "sensitivity_steps": 1},
    "fgsm beside the clean pass": {**TRIPLET, "sensitivity_steps": 1},
    "pgd": {"architecture": "cnn", "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0},
    "pgd l2": {
        "clean_ce_weight": 0.0,
        "sensitivity_ce_weight": 1.0,
        "sensitivity_norm": "l2",
        "sensitivity_epsilon": 1.0,
    },
    "trades": {"trades_weight": 2.0, "sensitivity_objective": "kl"},
    "feature scattering": {
        "clean_ce_weight": 0.0,
        "sensitivity_ce_weight": 1.0,
        "sensitivity_objective": "transport",
        "sensitivity_steps": 1,
    },
    "three cross-entropies": {"sensitivity_ce_weight": 0.5, "invariance_ce_weight": 0.25},
    "invariance": {"architecture": "cnn", "clean_ce_weight": 0.0, "invariance_ce_weight": 1.0},
    "triplet": TRIPLET,
    "semihard": {**TRIPLET, "mining": "semihard", "ground_metric": "euclidean", "invariance_weight": 1.0},
    "sinkhorn": {
        "regularizer": "sinkhorn",
        "invariance_weight": 1.0,
        "clean_ce_weight": 0.0,
        "sensitivity_ce_weight": 1.0,
    },
    "sinkhorn of logits": {
        "regularizer": "sinkhorn",
        "regularizer_on": "logits",
        "ground_metric": "euclidean",
        "sensitivity_weight": 1.0,
    },
    "certified": {"architecture": "cnn", "certified_ce_weight": 0.5, "clean_ce_weight": 0.5},
    "certified by CROWN": {"certified_ce_weight": 0.5, "certified_method": "crown-ibp"},
    "certified beside PGD": {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0, "certified_ce_weight": 0.5},
    "ot_triplet": OT,
    "ot_triplet cnn": {**OT, "architecture": "cnn", "batch_size": 100},
    "smooth labels": {"sensitivity_ce_weight": 0.5, "invariance_ce_weight": 0.25, "label_smoothing": 0.1},
    "crop and flip, SGD": {**OT, "augmentation": "crop_flip", "optimizer": "sgd"},
}

DIFFERENT: list[dict[str, Any]] = [
    {},
    {
        **{"seed": 1, "learning_rate": 3e-3, "weight_decay": 0.1, "margin": 0.3, "invariance_epsilon": 0.4},
        **{"certified_ramp": 0.0, "certified_epsilon": 0.02, "negative_share": 0.25},
    },
    {
        **{"seed": 2, "entropy": 0.2, "label_cost": 0.5, "sensitivity_epsilon": 0.2, "invariance_epsilon": 0.6},
        **{"certified_ramp": 1.0, "negative_share": 1.0},
    },
]
DIFFERENT[1] |= {"learning_rate_schedule": "one_cycle", "momentum": 0.5}
DIFFERENT[2] |= {"learning_rate_schedule": "piecewise", "momentum": 0.0, "sensitivity_step_size": 0.15}
"""Settings in which the three trials of a pack differ; `configs_of` adds the number of attack steps."""

TIMES = ("train_seconds", "evaluation_seconds")


def configs_of(name: str, **changes: Any) -> list[TrialConfig]:
    """Return the configurations of a pack of that structure."""
    shared = {**SHORT, **STRUCTURES[name], **changes}
    steps = [shared["sensitivity_steps"]] * 3 if shared["sensitivity_steps"] == 1 else (2, 4, 3)
    return [TrialConfig(**{**shared, "sensitivity_steps": s, **own}) for s, own in zip(steps, DIFFERENT, strict=True)]


def alone(config: TrialConfig, prepared: Prepared, **kwargs: Any) -> list[EpochReport]:
    return list(run_trial(config, prepared.evaluation, prepared, **kwargs))


def run_pack(pack: Pack, members: Sequence[PackedTrial]) -> list[list[EpochReport]]:
    """Run all trials to their ends; return the reports of each."""
    reports: dict[PackedTrial, list[EpochReport]] = {trial: [] for trial in members}
    running = list(members)
    while running:
        for trial, report in pack.advance(running).items():
            if isinstance(report, Exception):
                raise report
            reports[trial].append(report)
        running = [trial for trial in running if not reports[trial][-1].final]
    return list(reports.values())


def agree(packed: Sequence[EpochReport], single: Sequence[EpochReport], tolerance: dict[str, float] = EXACT) -> None:
    """Compare all numbers but times and the marginal error, which is only rounding after the last step."""
    assert len(packed) == len(single)
    for one, other in zip(packed, single, strict=True):
        left, right = ({k: v for k, v in each.to_dict().items() if k not in TIMES} for each in (one, other))
        assert left.pop("answers", "") == right.pop("answers", "")
        errors = [each.pop("marginal_error", 0) for each in (left, right)]
        assert left == pytest.approx(right, **tolerance)
        assert max(errors) < 1e-3


def failed(outcome: EpochReport | Exception) -> Exception:
    assert isinstance(outcome, Exception), outcome
    return outcome


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> Iterator[Prepared]:
    """Put data, models and steps in double precision. A trial alone solves transports to the end, as a pack does."""

    def doubled(fields: Any) -> Any:
        if isinstance(fields, Tensor):
            return fields.double() if fields.is_floating_point() else fields
        if isinstance(fields, dict):
            return {name: doubled(each) for name, each in fields.items()}
        return type(fields)(*map(doubled, fields))

    found, solver = trial_module.training_perturbation, regularizers.solver

    def training_perturbation(*arguments: Any) -> Any:
        torch.set_default_dtype(torch.float32)  # the cached plans are made in it
        images = found(*arguments)
        torch.set_default_dtype(torch.float64)
        return images and doubled(images)

    monkeypatch.setattr(trial_module, "training_perturbation", training_perturbation)
    monkeypatch.setattr(terms, "solver", lambda name, entropy, early_stop: solver(name, entropy, early_stop=False))
    data = dataclasses.replace(
        prepared.data, train=doubled(prepared.data.train), validation=doubled(prepared.data.validation)
    )
    double = dataclasses.replace(prepared, data=data)
    double.__dict__["judging"] = doubled(prepared.judging)
    torch.set_default_dtype(torch.float64)
    yield double
    torch.set_default_dtype(torch.float32)


# ----------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_packed_trial_gives_the_numbers_of_the_trial_alone(name: str, in_double: Prepared) -> None:
    configs, pack = configs_of(name), Pack(in_double.evaluation, in_double)
    members = [pack.join(config) for config in configs]
    assert len({trial.structure for trial in members}) == 1, "one vectorised step"
    for config, reports in zip(configs, run_pack(pack, members), strict=True):
        agree(reports, alone(config, in_double))


@pytest.mark.parametrize("name", ["fgsm", "trades", "semihard", "sinkhorn", "ot_triplet"])
def test_in_single_precision_only_the_order_of_sums_differs(name: str, prepared: Prepared) -> None:
    configs, pack = configs_of(name), Pack(prepared.evaluation, prepared)
    outcome = pack.advance([pack.join(config) for config in configs])
    for config, packed in zip(configs, outcome.values(), strict=True):
        assert isinstance(packed, EpochReport)
        single = next(run_trial(config, prepared.evaluation, prepared))
        left, right = (
            {name: value for name, value in each.terms.items() if name.startswith("loss/")} for each in (packed, single)
        )
        assert left == pytest.approx(right, **CLOSE)
        assert packed.clean_accuracy == pytest.approx(single.clean_accuracy, abs=1 / 60), "one image on the edge"


def test_a_pack_of_one_is_a_trial(in_double: Prepared) -> None:
    (config, *_), pack = configs_of("ot_triplet"), Pack(in_double.evaluation, in_double)
    (reports,) = run_pack(pack, [pack.join(config)])
    agree(reports, alone(config, in_double))


def test_restarts_of_an_l2_attack_meet_the_same_images(in_double: Prepared) -> None:
    evaluation = in_double.evaluation.replace(
        eval_sensitivity_norm="l2", eval_sensitivity_epsilon=0.8, eval_sensitivity_restarts=3
    )
    prepared = dataclasses.replace(in_double, evaluation=evaluation)
    prepared.__dict__["judging"] = in_double.judging
    pack = Pack(evaluation, prepared)
    configs = configs_of("pgd", architecture="mlp", epochs=4)
    for config, reports in zip(configs, run_pack(pack, [pack.join(config) for config in configs]), strict=True):
        single = alone(config, prepared)
        assert 0 < single[-1].sensitivity_accuracy < single[-1].clean_accuracy, "some images stand, some fall"
        agree(reports, single)


def test_many_passes_of_the_evaluation_equal_one(monkeypatch: pytest.MonkeyPatch, in_double: Prepared) -> None:
    """Check that the numbers do not depend on how many images go through the models at once."""
    monkeypatch.setitem(stacked_evaluation.STACKED_BATCH, "cpu", 3 * 7)
    configs, pack = configs_of("pgd", architecture="mlp"), Pack(in_double.evaluation, in_double)
    for config, reports in zip(configs, run_pack(pack, [pack.join(config) for config in configs]), strict=True):
        agree(reports, alone(config, in_double))


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_an_optimiser_is_torchs_trial_by_trial(optimizer_name: str) -> None:
    """Compare from states of different ages, with different rates, and back in the optimisers."""
    torch.manual_seed(0)

    def fresh() -> list[nn.Module]:
        return [nn.Linear(3, 2) for _ in DIFFERENT]

    models, others = fresh(), fresh()
    for model, other in zip(models, others, strict=True):
        other.load_state_dict(model.state_dict())
    configs = configs_of("clean", optimizer=optimizer_name)
    ours, theirs = ([make_optimizer(m, c) for m, c in zip(each, configs, strict=True)] for each in (models, others))

    def step(gradients: list[Tensor], index: int) -> None:
        for p, gradient in zip(others[index].parameters(), gradients, strict=True):
            p.grad = gradient[index]
        theirs[index].step()

    for _ in range(3):  # the middle trial is ahead
        gradients = [torch.randn(3, *p.shape) for p in models[1].parameters()]
        for optimizer, model in ((ours[1], models[1]), (theirs[1], others[1])):
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient[1]
            optimizer.step()
    for _ in range(2):
        stacked = StackedModel(models)
        optimizer = stack_optimizers(stacked, ours)
        for _ in range(4):
            gradients = [torch.randn(p.shape) for p in stacked.stacked]
            optimizer.step(gradients)
            for index in range(3):
                step(gradients, index)
        stacked.unstack(models)
        optimizer.unstack(ours)
        for left, right in zip([*models, *ours], [*others, *theirs], strict=True):
            torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=1e-5, atol=1e-6)
    if optimizer_name == "adamw":
        assert [float(optimizer.state_dict()["state"][0]["step"]) for optimizer in ours] == [8, 11, 8]


# ------------------------------------------------------------------------------------------------ each trial on its own


def test_a_trial_that_stops_leaves_the_others_as_they_are(in_double: Prepared) -> None:
    configs, pack = configs_of("triplet", epochs=3), Pack(in_double.evaluation, in_double)
    first, stopped, third = members = [pack.join(config) for config in configs]
    begun = pack.advance(members)
    assert stopped in begun
    for trial, rest in zip((first, third), run_pack(pack, [first, third]), strict=True):
        agree([begun[trial], *rest], alone(trial.config, in_double))  # type: ignore[list-item]


def test_a_trial_that_joins_later_is_at_its_own_epoch(in_double: Prepared) -> None:
    """Check too that one with fewer epochs ends before the others."""
    configs, pack = configs_of("pgd", architecture="mlp", epochs=3), Pack(in_double.evaluation, in_double)
    short = configs[0].replace(epochs=1)
    members = [pack.join(short), pack.join(configs[1])]
    assert members[0].structure == members[1].structure
    begun = pack.advance(members)
    ended = pack.advance(members)
    late = pack.join(configs[2])
    rest = run_pack(pack, [members[1], late])
    agree([begun[members[0]], ended[members[0]]], alone(short, in_double))  # type: ignore[list-item]
    agree([begun[members[1]], ended[members[1]], *rest[0]], alone(configs[1], in_double))  # type: ignore[list-item]
    agree(rest[1], alone(configs[2], in_double))


def test_on_a_ladder_each_trial_is_evaluated_as_its_own_epoch_is(in_double: Prepared) -> None:
    """Check trials in different epochs, which are evaluated by attacks of different strength, as each alone."""
    configs = configs_of("pgd", architecture="mlp", epochs=4)[:2]
    pack = Pack(in_double.evaluation, in_double, ladder=1)
    early = pack.join(configs[0])
    begun = pack.advance([early])
    rest = run_pack(pack, [early, pack.join(configs[1])])
    packed = ([begun[early], *rest[0]], rest[1])
    for config, reports in zip(configs, packed, strict=True):
        single = list(run_trial(config, in_double.evaluation, in_double, ladder=1))
        agree(reports, single)  # type: ignore[arg-type]
        assert [report.terms["evaluation_strength"] for report in single] == [2, 3, 5, 5, 5]


def test_trials_of_two_structures_share_a_pack(in_double: Prepared) -> None:
    pair = [configs_of("ot_triplet"), configs_of("clean", architecture="mlp")]
    configs = [config for both in zip(*pair, strict=True) for config in both]
    pack = Pack(in_double.evaluation, in_double)
    members = [pack.join(config) for config in configs]
    assert len({trial.structure for trial in members}) == 2
    for config, reports in zip(configs, run_pack(pack, members), strict=True):
        agree(reports, alone(config, in_double))


def test_the_time_of_an_epoch_is_shared_out(prepared: Prepared) -> None:
    pack = Pack(prepared.evaluation, prepared)
    outcome = pack.advance([pack.join(config) for config in configs_of("clean")])
    reports = [report for report in outcome.values() if isinstance(report, EpochReport)]
    assert len({(report.train_seconds, report.evaluation_seconds) for report in reports}) == 1
    assert all(report.train_seconds > 0 < report.evaluation_seconds for report in reports)


# -------------------------------------------------------------------------------------- failures affect one trial alone

BAD: dict[str, dict[str, Any]] = {
    "clean": {"learning_rate": 10.0, "weight_decay": 10.0},
    "ot_triplet cnn": {"learning_rate": 10.0, "weight_decay": 10.0, "sensitivity_weight": 1000.0},
    "sinkhorn": {"learning_rate": 10.0, "weight_decay": 10.0},
    "feature scattering": {"learning_rate": 10.0, "weight_decay": 10.0},
    "semihard": {"learning_rate": 10.0, "weight_decay": 10.0},
}


def joined_with_poison(pack: Pack, configs: Sequence[TrialConfig], value: float) -> list[PackedTrial]:
    """Return trials, the middle one with a weight that is not finite."""
    members = [pack.join(config) for config in configs]
    with torch.no_grad():
        for parameter in members[1].state.model.parameters():
            parameter.flatten()[0].fill_(value)
    return members


POISON = [(name, float("nan")) for name in STRUCTURES]
POISON += [(name, value) for name in ("clean", "trades", "semihard", "ot_triplet") for value in (float("inf"), 1e30)]


@pytest.mark.parametrize(("name", "value"), POISON)
def test_a_trial_that_is_not_finite_affects_no_other(name: str, value: float, in_double: Prepared) -> None:
    pack = Pack(in_double.evaluation, in_double)
    configs = configs_of(name, epochs=1)
    first, poisoned, third = members = joined_with_poison(pack, configs, value)
    outcome = pack.advance(members)
    if value != 1e30:
        error = failed(outcome[poisoned])
        assert isinstance(error, TrialFailed)
        assert re.match(r"not finite in epoch 1: loss/\w+_ce = nan", str(error))
    for trial in (first, third):
        agree([outcome[trial]], alone(trial.config, in_double)[:1])  # type: ignore[list-item]


@pytest.mark.parametrize("name", BAD)
def test_a_packed_trial_that_diverges_fails_as_alone(name: str, prepared: Prepared) -> None:
    good, _, other = configs_of(name, epochs=20)
    bad = good.replace(**BAD[name])
    pack = Pack(prepared.evaluation, prepared)
    members = [pack.join(config) for config in (good, bad, other)]
    outcome = pack.advance(members)
    single = run_trial(bad, prepared.evaluation, prepared)
    epoch = 1
    while isinstance(report := outcome[members[1]], EpochReport):
        assert next(single).epoch == report.epoch == epoch
        outcome, epoch = pack.advance(members), epoch + 1
    # In the same epoch; by the order of sums one may lose its numbers in the last step, where only evaluation sees it.
    with pytest.raises(TrialFailed, match="not finite"):
        next(single)
    assert isinstance(report, TrialFailed)
    assert "not finite" in str(report)
    assert all(isinstance(outcome[trial], EpochReport) for trial in (members[0], members[2]))


def test_evaluation_sees_what_the_last_step_breaks(monkeypatch: pytest.MonkeyPatch, in_double: Prepared) -> None:
    step = StackedAdamW.step

    def poison(self: StackedAdamW, gradients: Sequence[Tensor]) -> None:
        step(self, gradients)
        with torch.no_grad():
            self.parameters[0][1].fill_(torch.nan)

    configs = configs_of("clean", batch_size=200, epochs=1)
    pack = Pack(in_double.evaluation, in_double)
    members = [pack.join(config) for config in configs]
    with monkeypatch.context() as patch:
        patch.setattr(StackedAdamW, "step", poison)
        outcome = pack.advance(members)
    assert str(failed(outcome[members[1]])) == "the model's logits on clean images are not finite"
    for trial in (members[0], members[2]):
        agree([outcome[trial]], alone(trial.config, in_double)[:1])  # type: ignore[list-item]


def losses(outcome: dict[PackedTrial, EpochReport | Exception]) -> list[dict[str, float]]:
    """Return the losses of each trial's epoch."""
    reports = [report for report in outcome.values() if isinstance(report, EpochReport)]
    assert len(reports) == len(outcome)
    return [{k: v for k, v in report.to_dict().items() if k.startswith("loss/")} for report in reports]


@pytest.mark.parametrize("stage", ["train_stack", "evaluate_stack"])
def test_a_pack_that_outgrows_the_memory_is_parted(
    stage: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [config.replace(architecture="mlp", epochs=2) for config in configs_of("clean") + configs_of("clean")[:2]]
    whole, parted, warnings = Pack(prepared.evaluation, prepared), Pack(prepared.evaluation, prepared), []
    undisturbed = [whole.join(config) for config in configs]
    wanted = [losses(whole.advance(undisturbed)) for _ in range(2)]
    members = [parted.join(config, warn=warnings.append) for config in configs]
    real, sizes = getattr(pack_module, stage), []

    def cramped(model: StackedModel, *args: Any, **kwargs: Any) -> Any:
        sizes.append(model.trials)
        if model.trials > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, *args, **kwargs)

    monkeypatch.setattr(pack_module, stage, cramped)
    for epoch in wanted:
        for ours, theirs in zip(losses(parted.advance(members)), epoch, strict=True):
            assert ours == pytest.approx(theirs, **CLOSE)
    assert sizes == [5, 2, 2, 1, 2, 2, 1], "what didn't fit once is not tried again"
    assert warnings == ["5 trials don't fit into the GPU's memory side by side: at most 2 from now on"]


def test_a_trial_that_outgrows_the_memory_alone_fails(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def cramped(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    pack = Pack(prepared.evaluation, prepared)
    members = [pack.join(config.replace(architecture="mlp")) for config in configs_of("clean")[:2]]
    monkeypatch.setattr(pack_module, "train_stack", cramped)
    outcome = pack.advance(members)
    assert [type(each) for each in outcome.values()] == [torch.OutOfMemoryError] * 2


def test_a_store_that_fails_affects_its_own_trial_alone(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    configs, pack = configs_of("clean", architecture="mlp"), Pack(prepared.evaluation, prepared)
    stores = [FolderStore(tmp_path / name) for name in ("first", "file", "third")]
    members = [pack.join(config, store=store) for config, store in zip(configs, stores, strict=True)]
    outcome = pack.advance(members)
    assert isinstance(failed(outcome[members[1]]), StorageFailed)
    assert [store.names() for store in (stores[0], stores[2])] == [["checkpoint-000001.pt"]] * 2


# --------------------------------------------------------------------------------------------------------------- resume


def checkpoint(store: FolderStore, epoch: int) -> dict[str, Any]:
    return from_bytes(unseal(store.read(f"checkpoint-{epoch:06d}.pt")))


def test_a_trial_may_resume_in_a_pack_and_alone_again(in_double: Prepared, tmp_path: Path) -> None:
    configs = configs_of("ot_triplet", epochs=4)
    undisturbed = [alone(config, in_double) for config in configs]
    stores = [FolderStore(tmp_path / str(i)) for i in range(3)]
    for config, store in zip(configs, stores, strict=True):
        reports = run_trial(config, in_double.evaluation, in_double, store=store)
        next(reports)
        reports.close()  # type: ignore[attr-defined]
    pack = Pack(in_double.evaluation, in_double)
    members = [pack.join(config, store=store) for config, store in zip(configs, stores, strict=True)]
    for _ in range(3):  # the first epoch again, and two more
        pack.advance(members)
    for config, store, whole in zip(configs, stores, undisturbed, strict=True):
        agree(alone(config, in_double, store=store), whole[2:])
    again = Pack(in_double.evaluation, in_double)
    reports = run_pack(again, [again.join(config, store=store) for config, store in zip(configs, stores, strict=True)])
    for packed, whole in zip(reports, undisturbed, strict=True):
        agree(packed, whole[3:])


def trained_both_ways(architecture: str, prepared: Prepared, folder: Path) -> tuple[FolderStore, FolderStore]:
    """Train one trial beside another and again alone; return the store of each."""
    config, neighbour = configs_of("clean", architecture=architecture)[1:]
    pack = Pack(prepared.evaluation, prepared)
    packed, single = FolderStore(folder / "packed"), FolderStore(folder / "single")
    run_pack(pack, [pack.join(config, store=packed), pack.join(neighbour)])
    alone(config, prepared, store=single)
    return packed, single


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_checkpoints_and_models_are_the_same_files(architecture: str, prepared: Prepared, tmp_path: Path) -> None:
    """Check names, keys, types, shapes and memory layouts; the next test compares the numbers."""
    packed, single = trained_both_ways(architecture, prepared, tmp_path)
    assert packed.names() == single.names()
    for read in (lambda store: checkpoint(store, 2), lambda store: from_bytes(store.read(MODEL_FILE))):
        assert shape_of(read(packed)) == shape_of(read(single))


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_checkpoints_and_models_hold_the_same_numbers(architecture: str, in_double: Prepared, tmp_path: Path) -> None:
    """Compare in double precision: AdamW divides by the root of a small gradient's square and so amplifies rounding."""
    packed, single = trained_both_ways(architecture, in_double, tmp_path)
    for part in ("model", "optimizer", "candidates"):
        left, right = (checkpoint(store, 2)[part] for store in (packed, single))
        if part == "candidates":
            left, right = ([each["weights"] for each in side.values()] for side in (left, right))
        torch.testing.assert_close(left, right, rtol=EXACT["rel"], atol=EXACT["abs"], check_dtype=False)
    weights = [from_bytes(store.read(MODEL_FILE))["weights"] for store in (packed, single)]
    torch.testing.assert_close(*weights, rtol=EXACT["rel"], atol=EXACT["abs"])


def shape_of(content: Any) -> Any:
    """Return the structure of a file without its numbers."""
    if isinstance(content, dict):
        return {key: shape_of(value) for key, value in content.items()}
    if isinstance(content, Tensor):
        return content.dtype, content.shape, content.stride()
    return type(content)


def test_a_damaged_checkpoint_is_reported_and_another_trials_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    config, _, other = configs_of("clean", architecture="mlp")
    store, pack, warnings = FolderStore(tmp_path), Pack(prepared.evaluation, prepared), []
    trial = pack.join(config, store=store)
    pack.advance([trial])
    pack.advance([trial])
    with pytest.raises(InputError, match="a checkpoint of another configuration"):
        pack.join(other, store=store)
    store.write("checkpoint-000002.pt", b"damaged")
    again = pack.join(config, store=store, warn=warnings.append)
    assert again.state.epoch == 1
    assert len(warnings) == 1


# ---------------------------------------------------------------------------------------------------- who shares a step

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "knobs": (OT, {"margin": 0.7, "entropy": 1.0, "sensitivity_weight": 3.0, "invariance_norm": "l0", "epochs": 9}),
    "steps": (
        {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0},
        {"sensitivity_steps": 40, "sensitivity_epsilon": 0.4},
    ),
    "an attack left unused": ({}, {"sensitivity_steps": 1, "sensitivity_norm": "l2", "sensitivity_objective": "kl"}),
    "label smoothing": ({"label_smoothing": 0.1}, {"label_smoothing": 0.2}),
    "a regulariser without weight": ({}, {"regularizer": "ot_triplet", "mining": "semihard", "transport": "exact"}),
    "certified": ({"certified_ce_weight": 0.5}, {"certified_epsilon": 0.3, "certified_ramp": 0.1}),
    "bounds left unused": ({}, {"certified_method": "crown-ibp", "certified_epsilon": 0.3}),
    "weights without a regulariser": ({}, {"sensitivity_weight": 2.0, "invariance_weight": 1.0}),
}
OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "architecture": ({}, {"architecture": "cnn"}),
    "batch size": ({}, {"batch_size": 51}),
    "embedding": ({}, {"embedding_size": 8}),
    "fgsm": ({"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}, {"sensitivity_steps": 1}),
    "norm": ({"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}, {"sensitivity_norm": "l2"}),
    "a term less": (OT, {"invariance_weight": 0.0}),
    "a term more": ({}, {"norm_weight": 0.1}),
    "regulariser": (OT, {"regularizer": "triplet"}),
    "optimiser": ({}, {"optimizer": "sgd"}),
    "augmentation": ({}, {"augmentation": "crop_flip"}),
    "smooth labels": ({}, {"label_smoothing": 0.1}),
    "a certified term": ({}, {"certified_ce_weight": 0.5}),
    "bounds": ({"certified_ce_weight": 0.5}, {"certified_method": "crown-ibp"}),
    "ground metric": (OT, {"ground_metric": "euclidean"}),
}


@pytest.mark.parametrize("case", [*SAME, *OTHER])
def test_what_shares_a_vectorised_step(case: str) -> None:
    shared, change = (SAME | OTHER)[case]
    config = TrialConfig(**{**SHORT, **shared})
    left, right = structure(config), structure(config.replace(**change))
    assert (left == right) == (case in SAME)
    assert left != right or hash(left) == hash(right)


def test_all_trials_of_each_case_share_a_step() -> None:
    """Check that the tests above test a vectorised step."""
    for name in STRUCTURES:
        assert len({structure(config) for config in configs_of(name)}) == 1, name


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "batch normalisation": ({"architecture": "resnet18"}, r"architecture = 'resnet18'.*must be one of cnn, mlp"),
    "exact transport": ({**OT, "transport": "exact"}, r"transport = 'exact'.*must be 'entropic'"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_can_not_be_packed_is_refused(case: str, prepared: Prepared) -> None:
    settings, message = UNFIT[case]
    config = TrialConfig(**{**SHORT, **settings})
    for refuse in (check_packable, Pack(prepared.evaluation, prepared).join):
        with pytest.raises(InputError, match=message):
            refuse(config)
    for fit in ({"transport": "exact"}, {"transport": "exact", "regularizer": "triplet", "sensitivity_weight": 1.0}):
        check_packable(TrialConfig(**{**SHORT, **fit}))


def test_a_batch_larger_than_the_data_is_refused_at_once(prepared: Prepared) -> None:
    with pytest.raises(InputError, match="batch_size = 201: must be at most 200"):
        Pack(prepared.evaluation, prepared).join(TrialConfig(**{**SHORT, "batch_size": 201}))


# ------------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", STRUCTURES)
def test_on_a_gpu_too_and_nan_stays_in_its_trial(name: str, prepared: Prepared) -> None:
    configs, pack = configs_of(name, epochs=1), Pack(prepared.evaluation, prepared, device="cuda")
    first, poisoned, third = members = joined_with_poison(pack, configs, float("nan"))
    outcome = pack.advance(members)
    assert isinstance(failed(outcome[poisoned]), TrialFailed)
    for trial in (first, third):
        report = outcome[trial]
        assert isinstance(report, EpochReport)
        single = next(run_trial(trial.config, prepared.evaluation, prepared, device="cuda"))
        for name in single.terms:
            if name.startswith("loss/") and name.endswith("_ce"):
                assert report.terms[name] == pytest.approx(single.terms[name], rel=1e-2)

"""Trials side by side: each lane what its trial is alone, whatever its neighbours are, do or suffer.

In double precision, where rounding leaves thirteen digits, a lane and its trial agree to `EXACT` over epochs. That is
the proof that they compute the same. In single precision they differ by the order of sums; a step of mining or of a
sign then amplifies the last digit now and then, so that there only the first epoch is held, to `CLOSE`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.config import TrialConfig
from trainer.errors import InputError, StorageFailed, TrialFailed
from trainer.files.checkpoints import FolderStore, from_bytes
from trainer.files.sealed import unseal
from trainer.invariance.preparation import Prepared
from trainer.objective import regularizers, terms
from trainer.report import EpochReport
from trainer.training import stacked_evaluation, trial
from trainer.training.pack import Lane, Pack, check_packable, structure
from trainer.training.stacking import StackedAdamW, StackedModel
from trainer.training.step import make_optimizer
from trainer.training.trial import MODEL_FILE, run_trial

EXACT = {"rel": 1e-8, "abs": 1e-9}
"""Of numbers of any epoch, in double precision."""

CLOSE = {"rel": 2e-3, "abs": 1e-5}
"""Of the losses of the first epoch, in single precision: thirty times what was measured where no image's nearest
neighbour is a matter of the last digit."""

EPOCHS = 2
SHORT: dict[str, Any] = {"architecture": "mlp", "epochs": EPOCHS, "batch_size": 50, "sensitivity_steps": 2}

OT: dict[str, Any] = {"regularizer": "ot_triplet", "sensitivity_weight": 0.5, "invariance_weight": 0.5}
TRIPLET: dict[str, Any] = {"regularizer": "triplet", "sensitivity_weight": 0.5, "norm_weight": 1e-3}

STRUCTURES: dict[str, dict[str, Any]] = {
    "clean": {"architecture": "cnn"},
    "fgsm": {"architecture": "cnn", "cross_entropy_on": "sensitivity", "sensitivity_steps": 1},
    "fgsm beside the clean pass": {**TRIPLET, "sensitivity_steps": 1},
    "pgd": {"architecture": "cnn", "cross_entropy_on": "sensitivity"},
    "pgd l2": {"cross_entropy_on": "sensitivity", "sensitivity_norm": "l2", "sensitivity_epsilon": 1.0},
    "trades": {"trades_weight": 2.0, "sensitivity_objective": "kl"},
    "feature scattering": {
        "cross_entropy_on": "sensitivity",
        "sensitivity_objective": "transport",
        "sensitivity_steps": 1,
    },
    "invariance": {"architecture": "cnn", "cross_entropy_on": "invariance"},
    "triplet": TRIPLET,
    "semihard": {**TRIPLET, "mining": "semihard", "ground_metric": "euclidean", "invariance_weight": 1.0},
    "sinkhorn": {"regularizer": "sinkhorn", "invariance_weight": 1.0, "cross_entropy_on": "sensitivity"},
    "sinkhorn of logits": {
        "regularizer": "sinkhorn",
        "regularizer_on": "logits",
        "ground_metric": "euclidean",
        "sensitivity_weight": 1.0,
    },
    "ot_triplet": OT,
    "ot_triplet cnn": {**OT, "architecture": "cnn", "batch_size": 100},
}

LANES: list[dict[str, Any]] = [
    {},
    {"seed": 1, "learning_rate": 3e-3, "weight_decay": 0.1, "margin": 0.3, "invariance_epsilon": 0.4},
    {"seed": 2, "entropy": 0.2, "label_cost": 0.5, "sensitivity_epsilon": 0.2, "invariance_epsilon": 0.6},
]
"""What differs within a pack; where attacks take several steps their number too, see `configs_of`."""

SECONDS = ("train_seconds", "evaluation_seconds")


def configs_of(name: str, **changes: Any) -> list[TrialConfig]:
    """The lanes of a pack of that structure."""
    shared = {**SHORT, **STRUCTURES[name], **changes}
    steps = [shared["sensitivity_steps"]] * 3 if shared["sensitivity_steps"] == 1 else (2, 4, 3)
    return [TrialConfig(**{**shared, "sensitivity_steps": s, **lane}) for s, lane in zip(steps, LANES, strict=True)]


def alone(config: TrialConfig, prepared: Prepared, **kwargs: Any) -> list[EpochReport]:
    return list(run_trial(config, prepared.evaluation, prepared, **kwargs))


def told(pack: Pack, members: Sequence[Lane]) -> list[list[EpochReport]]:
    """All reports of all lanes, each to its end."""
    reports: dict[Lane, list[EpochReport]] = {lane: [] for lane in members}
    running = list(members)
    while running:
        for lane, report in pack.advance(running).items():
            if isinstance(report, Exception):
                raise report
            reports[lane].append(report)
        running = [lane for lane in running if not reports[lane][-1].final]
    return list(reports.values())


def agree(packed: Sequence[EpochReport], single: Sequence[EpochReport], tolerance: dict[str, float] = EXACT) -> None:
    """All numbers but the clock's; and the marginal error, which after the last step is but rounding."""
    assert len(packed) == len(single)
    for one, other in zip(packed, single, strict=True):
        left, right = ({k: v for k, v in each.to_dict().items() if k not in SECONDS} for each in (one, other))
        errors = [each.pop("marginal_error", 0) for each in (left, right)]
        assert left == pytest.approx(right, **tolerance)
        assert max(errors) < 1e-3


def failed(outcome: EpochReport | Exception) -> Exception:
    assert isinstance(outcome, Exception), outcome
    return outcome


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> Iterator[Prepared]:
    """Data, models and steps in double precision. A single trial solves its transports to the end, as a pack does."""

    def doubled(fields: Any) -> Any:
        return type(fields)(*(each.double() if each.is_floating_point() else each for each in fields))

    found, solver = trial.invariance_images, regularizers.solver

    def invariance_images(*arguments: Any) -> Any:
        torch.set_default_dtype(torch.float32)  # the cached plans are made in it
        images = found(*arguments)
        torch.set_default_dtype(torch.float64)
        return images and doubled(images)

    monkeypatch.setattr(trial, "invariance_images", invariance_images)
    monkeypatch.setattr(terms, "solver", lambda name, entropy, looks: solver(name, entropy, looks=False))
    data = dataclasses.replace(
        prepared.data, train=doubled(prepared.data.train), validation=doubled(prepared.data.validation)
    )
    double = dataclasses.replace(prepared, data=data)
    double.__dict__["judging"] = doubled(prepared.judging)
    torch.set_default_dtype(torch.float64)
    yield double
    torch.set_default_dtype(torch.float32)


# ------------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_lane_is_its_trial_alone(name: str, in_double: Prepared) -> None:
    configs, pack = configs_of(name), Pack(in_double.evaluation, in_double)
    members = [pack.join(config) for config in configs]
    assert len({lane.structure for lane in members}) == 1, "one vectorised step"
    for config, reports in zip(configs, told(pack, members), strict=True):
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
    (reports,) = told(pack, [pack.join(config)])
    agree(reports, alone(config, in_double))


def test_restarts_of_an_l2_judge_meet_the_same_images(in_double: Prepared) -> None:
    judge = in_double.evaluation.replace(
        eval_sensitivity_norm="l2", eval_sensitivity_epsilon=0.8, eval_sensitivity_restarts=3
    )
    prepared = dataclasses.replace(in_double, evaluation=judge)
    prepared.__dict__["judging"] = in_double.judging
    pack = Pack(judge, prepared)
    configs = configs_of("pgd", architecture="mlp", epochs=4)
    for config, reports in zip(configs, told(pack, [pack.join(config) for config in configs]), strict=True):
        single = alone(config, prepared)
        assert 0 < single[-1].sensitivity_accuracy < single[-1].clean_accuracy, "some images stand, some fall"
        agree(reports, single)


def test_many_passes_of_the_judge_are_one(monkeypatch: pytest.MonkeyPatch, in_double: Prepared) -> None:
    """Whatever number of images goes through the models at once."""
    monkeypatch.setitem(stacked_evaluation.JUDGED, "cpu", 3 * 7)
    configs, pack = configs_of("pgd", architecture="mlp"), Pack(in_double.evaluation, in_double)
    for config, reports in zip(configs, told(pack, [pack.join(config) for config in configs]), strict=True):
        agree(reports, alone(config, in_double))


def test_adamw_is_torchs_lane_by_lane() -> None:
    """From states of different ages, with different rates, and back into the optimisers."""
    torch.manual_seed(0)

    def fresh() -> list[nn.Module]:
        return [nn.Linear(3, 2) for _ in LANES]

    models, others = fresh(), fresh()
    for model, other in zip(models, others, strict=True):
        other.load_state_dict(model.state_dict())
    configs = configs_of("clean")
    ours, theirs = ([make_optimizer(m, c) for m, c in zip(each, configs, strict=True)] for each in (models, others))

    def step(gradients: list[Tensor], lane: int) -> None:
        for p, gradient in zip(others[lane].parameters(), gradients, strict=True):
            p.grad = gradient[lane]
        theirs[lane].step()

    for _ in range(3):  # the middle lane is ahead
        gradients = [torch.randn(3, *p.shape) for p in models[1].parameters()]
        for optimizer, model in ((ours[1], models[1]), (theirs[1], others[1])):
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient[1]
            optimizer.step()
    for _ in range(2):
        stacked = StackedModel(models)
        optimizer = StackedAdamW(stacked, ours)
        for _ in range(4):
            gradients = [torch.randn(p.shape) for p in stacked.stacked]
            optimizer.step(gradients)
            for lane in range(3):
                step(gradients, lane)
        stacked.unstack(models)
        optimizer.unstack(ours)
        for left, right in zip([*models, *ours], [*others, *theirs], strict=True):
            torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=1e-5, atol=1e-6)
    assert [float(optimizer.state_dict()["state"][0]["step"]) for optimizer in ours] == [8, 11, 8]


# --------------------------------------------------------------------------------------- one lane's own business


def test_a_lane_that_stops_leaves_the_others_as_they_are(in_double: Prepared) -> None:
    configs, pack = configs_of("triplet", epochs=3), Pack(in_double.evaluation, in_double)
    first, stopped, third = members = [pack.join(config) for config in configs]
    begun = pack.advance(members)
    assert stopped in begun
    for lane, rest in zip((first, third), told(pack, [first, third]), strict=True):
        agree([begun[lane], *rest], alone(lane.config, in_double))  # type: ignore[list-item]


def test_a_trial_that_joins_later_is_at_its_own_epoch(in_double: Prepared) -> None:
    """And one that has fewer epochs ends before the others."""
    configs, pack = configs_of("pgd", architecture="mlp", epochs=3), Pack(in_double.evaluation, in_double)
    short = configs[0].replace(epochs=1)
    members = [pack.join(short), pack.join(configs[1])]
    assert members[0].structure == members[1].structure
    begun = pack.advance(members)
    ended = pack.advance(members)
    late = pack.join(configs[2])
    rest = told(pack, [members[1], late])
    agree([begun[members[0]], ended[members[0]]], alone(short, in_double))  # type: ignore[list-item]
    agree([begun[members[1]], ended[members[1]], *rest[0]], alone(configs[1], in_double))  # type: ignore[list-item]
    agree(rest[1], alone(configs[2], in_double))


def test_on_a_ladder_each_lane_is_judged_as_its_own_epoch_is(in_double: Prepared) -> None:
    """Lanes in different epochs are judged by attacks of different strength, as each alone would be."""
    configs = configs_of("pgd", architecture="mlp", epochs=4)[:2]
    pack = Pack(in_double.evaluation, in_double, ladder=1)
    early = pack.join(configs[0])
    begun = pack.advance([early])
    rest = told(pack, [early, pack.join(configs[1])])
    packed = ([begun[early], *rest[0]], rest[1])
    for config, reports in zip(configs, packed, strict=True):
        single = list(run_trial(config, in_double.evaluation, in_double, ladder=1))
        agree(reports, single)  # type: ignore[arg-type]
        assert [report.terms["evaluation_strength"] for report in single] == [2, 3, 5, 5, 5]


def test_lanes_of_two_structures_share_a_pack(in_double: Prepared) -> None:
    pair = [configs_of("ot_triplet"), configs_of("clean", architecture="mlp")]
    configs = [config for both in zip(*pair, strict=True) for config in both]
    pack = Pack(in_double.evaluation, in_double)
    members = [pack.join(config) for config in configs]
    assert len({lane.structure for lane in members}) == 2
    for config, reports in zip(configs, told(pack, members), strict=True):
        agree(reports, alone(config, in_double))


def test_the_time_of_an_epoch_is_shared_out(prepared: Prepared) -> None:
    pack = Pack(prepared.evaluation, prepared)
    outcome = pack.advance([pack.join(config) for config in configs_of("clean")])
    reports = [report for report in outcome.values() if isinstance(report, EpochReport)]
    assert len({(report.train_seconds, report.evaluation_seconds) for report in reports}) == 1
    assert all(report.train_seconds > 0 < report.evaluation_seconds for report in reports)


# ------------------------------------------------------------------------------------------- failures stay in the lane

BAD: dict[str, dict[str, Any]] = {
    "clean": {"learning_rate": 10.0, "weight_decay": 10.0},
    "ot_triplet cnn": {"learning_rate": 10.0, "weight_decay": 10.0, "sensitivity_weight": 1000.0},
    "sinkhorn": {"learning_rate": 10.0, "weight_decay": 10.0},
    "feature scattering": {"learning_rate": 10.0, "weight_decay": 10.0},
    "semihard": {"learning_rate": 10.0, "weight_decay": 10.0},
}


def joined_with_poison(pack: Pack, configs: Sequence[TrialConfig], value: float) -> list[Lane]:
    """Lanes, the middle one with a weight that is not finite."""
    members = [pack.join(config) for config in configs]
    with torch.no_grad():
        for parameter in members[1].state.model.parameters():
            parameter.flatten()[0].fill_(value)
    return members


POISON = [(name, float("nan")) for name in STRUCTURES]
POISON += [(name, value) for name in ("clean", "trades", "semihard", "ot_triplet") for value in (float("inf"), 1e30)]


@pytest.mark.parametrize(("name", "value"), POISON)
def test_a_lane_that_is_not_finite_touches_no_other(name: str, value: float, in_double: Prepared) -> None:
    pack = Pack(in_double.evaluation, in_double)
    configs = configs_of(name, epochs=1)
    first, poisoned, third = members = joined_with_poison(pack, configs, value)
    outcome = pack.advance(members)
    if value != 1e30:
        error = failed(outcome[poisoned])
        assert isinstance(error, TrialFailed)
        assert str(error).startswith("not finite in epoch 1: loss/cross_entropy = nan")
    for lane in (first, third):
        agree([outcome[lane]], alone(lane.config, in_double)[:1])  # type: ignore[list-item]


@pytest.mark.parametrize("name", BAD)
def test_a_lane_that_diverges_fails_as_its_trial_does(name: str, prepared: Prepared) -> None:
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
    # In the same epoch; by the order of sums one loses its numbers in its last step, where the judge sees it.
    with pytest.raises(TrialFailed, match="not finite"):
        next(single)
    assert isinstance(report, TrialFailed)
    assert "not finite" in str(report)
    assert all(isinstance(outcome[lane], EpochReport) for lane in (members[0], members[2]))


def test_what_is_lost_in_the_last_step_the_judge_sees(monkeypatch: pytest.MonkeyPatch, in_double: Prepared) -> None:
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
    for lane in (members[0], members[2]):
        agree([outcome[lane]], alone(lane.config, in_double)[:1])  # type: ignore[list-item]


def test_a_store_that_refuses_fails_its_own_lane(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    configs, pack = configs_of("clean", architecture="mlp"), Pack(prepared.evaluation, prepared)
    stores = [FolderStore(tmp_path / name) for name in ("first", "file", "third")]
    members = [pack.join(config, store=store) for config, store in zip(configs, stores, strict=True)]
    outcome = pack.advance(members)
    assert isinstance(failed(outcome[members[1]]), StorageFailed)
    assert [store.names() for store in (stores[0], stores[2])] == [["checkpoint-000001.pt"]] * 2


# ---------------------------------------------------------------------------------------------------------- resume


def checkpoint(store: FolderStore, epoch: int) -> dict[str, Any]:
    return from_bytes(unseal(store.read(f"checkpoint-{epoch:06d}.pt")))


def test_a_trial_may_go_on_in_a_pack_and_alone_again(in_double: Prepared, tmp_path: Path) -> None:
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
    reports = told(again, [again.join(config, store=store) for config, store in zip(configs, stores, strict=True)])
    for packed, whole in zip(reports, undisturbed, strict=True):
        agree(packed, whole[3:])


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_checkpoints_and_models_are_the_same_files(architecture: str, prepared: Prepared, tmp_path: Path) -> None:
    """Of the same keys, types, shapes and memory layouts; the numbers to rounding."""
    configs = configs_of("clean", architecture=architecture)
    pack = Pack(prepared.evaluation, prepared)
    packed, single = FolderStore(tmp_path / "packed"), FolderStore(tmp_path / "single")
    told(pack, [pack.join(configs[1], store=packed), pack.join(configs[2])])
    alone(configs[1], prepared, store=single)
    assert packed.names() == single.names()
    for read in (lambda store: checkpoint(store, 2), lambda store: from_bytes(store.read(MODEL_FILE))):
        assert shape_of(read(packed)) == shape_of(read(single))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(checkpoint(packed, 2)[part], checkpoint(single, 2)[part], rtol=1e-3, atol=1e-5)


def shape_of(content: Any) -> Any:
    """What a file holds, numbers aside."""
    if isinstance(content, dict):
        return {key: shape_of(value) for key, value in content.items()}
    if isinstance(content, Tensor):
        return content.dtype, content.shape, content.stride()
    return type(content)


def test_a_damaged_checkpoint_is_told_of_and_another_trials_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    config, _, other = configs_of("clean", architecture="mlp")
    store, pack, warnings = FolderStore(tmp_path), Pack(prepared.evaluation, prepared), []
    lane = pack.join(config, store=store)
    pack.advance([lane])
    pack.advance([lane])
    with pytest.raises(InputError, match="a checkpoint of another configuration"):
        pack.join(other, store=store)
    store.write("checkpoint-000002.pt", b"damaged")
    again = pack.join(config, store=store, warn=warnings.append)
    assert again.state.epoch == 1
    assert len(warnings) == 1


# ------------------------------------------------------------------------------------------------- who shares a step

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "knobs": (OT, {"margin": 0.7, "entropy": 1.0, "sensitivity_weight": 3.0, "invariance_norm": "l0", "epochs": 9}),
    "steps": ({"cross_entropy_on": "sensitivity"}, {"sensitivity_steps": 40, "sensitivity_epsilon": 0.4}),
    "an attack left unused": ({}, {"sensitivity_steps": 1, "sensitivity_norm": "l2", "sensitivity_objective": "kl"}),
    "a regulariser without weight": ({}, {"regularizer": "ot_triplet", "mining": "semihard", "transport": "exact"}),
    "weights without a regulariser": ({}, {"sensitivity_weight": 2.0, "invariance_weight": 1.0}),
}
OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "architecture": ({}, {"architecture": "cnn"}),
    "batch size": ({}, {"batch_size": 51}),
    "embedding": ({}, {"embedding_size": 8}),
    "fgsm": ({"cross_entropy_on": "sensitivity"}, {"sensitivity_steps": 1}),
    "norm": ({"cross_entropy_on": "sensitivity"}, {"sensitivity_norm": "l2"}),
    "a term less": (OT, {"invariance_weight": 0.0}),
    "a term more": ({}, {"norm_weight": 0.1}),
    "regulariser": (OT, {"regularizer": "triplet"}),
    "ground metric": (OT, {"ground_metric": "euclidean"}),
}


@pytest.mark.parametrize("case", [*SAME, *OTHER])
def test_what_shares_a_vectorised_step(case: str) -> None:
    shared, change = (SAME | OTHER)[case]
    config = TrialConfig(**{**SHORT, **shared})
    left, right = structure(config), structure(config.replace(**change))
    assert (left == right) == (case in SAME)
    assert left != right or hash(left) == hash(right)


def test_every_lane_of_the_cases_shares_its_step() -> None:
    """Which makes the tests above tests of a vectorised step."""
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
def test_on_a_gpu_too_and_nan_stays_in_its_lane(name: str, prepared: Prepared) -> None:
    configs, pack = configs_of(name, epochs=1), Pack(prepared.evaluation, prepared, device="cuda")
    first, poisoned, third = members = joined_with_poison(pack, configs, float("nan"))
    outcome = pack.advance(members)
    assert isinstance(failed(outcome[poisoned]), TrialFailed)
    for lane in (first, third):
        report = outcome[lane]
        assert isinstance(report, EpochReport)
        single = next(run_trial(lane.config, prepared.evaluation, prepared, device="cuda"))
        assert report.terms["loss/cross_entropy"] == pytest.approx(single.terms["loss/cross_entropy"], rel=1e-2)

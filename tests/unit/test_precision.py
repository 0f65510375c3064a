"""Precision: products are rounded as a trial says while it trains, in no pass by which it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from trainer.attacks import frozen, judged
from trainer.config import TrialConfig
from trainer.invariance import answers_of
from trainer.invariance.preparation import Prepared
from trainer.precision import training_products
from trainer.training import loop
from trainer.training.evaluation import evaluate, evaluation_attacks, judging_generator, predict_labels
from trainer.training.loop import run_trial
from trainer.training.pack import Pack
from trainer.training.trial import initial_state

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHORT: dict[str, Any] = {
    **{"architecture": "mlp", "epochs": 1, "batch_size": 50, "embedding_size": 8, "sensitivity_steps": 2},
    **{"clean_ce_weight": 0.5, "sensitivity_ce_weight": 0.5},
}


class Pass(NamedTuple):
    """What a pass through a model found."""

    tf32: tuple[bool, bool]
    """Whether convolutions and matrix products may be rounded to TF32."""
    type: torch.dtype
    """Type of its products."""
    attacks: bool
    """Whether the images want a gradient, as an attack's do."""


@pytest.fixture
def on() -> Iterator[None]:
    """Have TF32 on for both kinds of product, as a user's own program may."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def watched(model: nn.Module) -> list[Pass]:
    """Return a list to which every later pass of a perceptron's first layer adds itself."""
    passes: list[Pass] = []

    def note(layer: nn.Module, given: tuple[Tensor], product: Tensor) -> None:
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        passes.append(Pass(tf32, product.dtype, given[0].requires_grad))

    next(each for each in model.modules() if isinstance(each, nn.Linear)).register_forward_hook(note)
    return passes


def passes_of_training(precision: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    """Return the passes of an epoch's training, without its judging."""
    found: list[list[Pass]] = []

    class Done(Exception):
        pass

    def watch(model: nn.Module, *args: object) -> object:
        found.append(watched(model))
        return real(model, *args)

    def stop(*args: object, **kwargs: object) -> object:
        raise Done

    real = loop.own_noise
    monkeypatch.setattr(loop, "own_noise", watch)
    monkeypatch.setattr(loop, "evaluate", stop)
    with pytest.raises(Done):
        next(run_trial(TrialConfig(**SHORT, precision=precision), prepared.evaluation, prepared))
    return found[0]


def test_auto_is_a_function_of_the_device_alone() -> None:
    def found(device: torch.device, precision: str) -> bool:
        with training_products(device, precision):
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32
            return torch.backends.cudnn.allow_tf32

    assert [found(device, "auto") for device in (CPU, GPU)] == [False, True]
    for device in (CPU, GPU):
        assert [found(device, each) for each in ("float32", "tf32", "bfloat16")] == [False, True, True]


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("auto", False), ("tf32", True)])
def test_training_rounds_to_tf32_where_the_trial_says_so(
    precision: str, tf32: bool, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, on: None
) -> None:
    passes = passes_of_training(precision, prepared, monkeypatch)
    assert {each.tf32 for each in passes} == {(tf32, tf32)}
    assert {each.type for each in passes} == {torch.float32}


def test_bfloat16_rounds_the_objective_and_not_the_attack(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, on: None
) -> None:
    passes = passes_of_training("bfloat16", prepared, monkeypatch)
    assert {(each.type, each.attacks) for each in passes} == {(torch.bfloat16, False), (torch.float32, True)}


def test_nothing_is_rounded_where_a_model_is_judged(prepared: Prepared, on: None) -> None:
    evaluation, validation = prepared.evaluation, prepared.data.validation
    model = initial_state(TrialConfig(**SHORT), prepared, CPU).model
    passes = watched(model)
    with training_products(GPU, "auto"):
        evaluate(
            model,
            validation,
            prepared.judging,
            evaluation_attacks(evaluation),
            generator=judging_generator(evaluation),
        )
        answers_of(model)(validation.images)
        assert {each.tf32 for each in passes} == {(False, False)}
        with frozen(model):
            predict_labels(model, validation.images, batch_size=100)
        assert passes[-1].tf32 == (True, True)
        with judged(model):
            predict_labels(model, validation.images, batch_size=100)
        assert passes[-1].tf32 == (False, False)


def numbers(precision: str, prepared: Prepared) -> dict[str, Any]:
    first = next(run_trial(TrialConfig(**SHORT, precision=precision), prepared.evaluation, prepared))
    return {name: value for name, value in first.to_dict().items() if not name.endswith("_seconds")}


def test_on_a_cpu_auto_changes_no_bit_and_bfloat16_little(prepared: Prepared) -> None:
    usual, rounded = numbers("float32", prepared), numbers("bfloat16", prepared)
    assert numbers("auto", prepared) == usual
    losses = [name for name in usual if name.startswith("loss/")]
    assert losses
    assert rounded != usual
    assert [rounded[name] for name in losses] == pytest.approx([usual[name] for name in losses], rel=0.02)


def test_a_pack_rounds_as_a_trial_alone(prepared: Prepared) -> None:
    configs = [TrialConfig(**SHORT, precision="bfloat16", seed=seed) for seed in range(2)]
    pack = Pack(prepared.evaluation, prepared)
    members = [pack.join(config) for config in configs]
    for config, report in zip(configs, pack.advance(members).values(), strict=True):
        assert not isinstance(report, Exception)
        single = next(run_trial(config, prepared.evaluation, prepared))
        losses = {name: value for name, value in single.to_dict().items() if name.startswith("loss/")}
        assert {name: report.to_dict()[name] for name in losses} == pytest.approx(losses, rel=5e-3)

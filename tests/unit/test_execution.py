"""Execution: a step that is recorded and replayed, or compiled, trains as one whose operations run one after another.

On a CPU a recorder that runs operations again, without Python, stands for CUDA's graphs: whatever a step does not read
from the same memory each time shows there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.cpu_graph import CpuRecorder
from trainer.attacks import DrawnAhead, uniform
from trainer.config import TrialConfig
from trainer.invariance.preparation import Prepared
from trainer.models import move_to_device
from trainer.training import execution
from trainer.training.execution import Execution
from trainer.training.loop import run_trial
from trainer.training.pack import Pack
from trainer.training.trial import initial_state

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STEPS = 8
SHORT: dict[str, Any] = {
    **{"architecture": "mlp", "epochs": 2, "batch_size": 25, "embedding_size": 8, "sensitivity_steps": 2},
    **{"clean_ce_weight": 0.5, "sensitivity_ce_weight": 0.5},
}
TRIALS: dict[str, dict[str, Any]] = {
    "PGD, crop and flip": {"augmentation": "crop_flip", "weight_decay": 0.1},
    "L2, one cycle, SGD": {
        **{"sensitivity_norm": "l2", "sensitivity_epsilon": 1.0, "optimizer": "sgd", "learning_rate": 0.05},
        "learning_rate_schedule": "one_cycle",
    },
    "triplet, changed images": {"regularizer": "triplet", "sensitivity_weight": 0.5, "invariance_ce_weight": 0.5},
    "certified": {"certified_ce_weight": 0.5, "certified_ramp": 0.6},
}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> CpuRecorder:
    """Have a CPU record steps."""
    ours = CpuRecorder()
    monkeypatch.setattr(execution, "_recorder", lambda device: ours)
    return ours


def losses(report: Any) -> dict[str, float]:
    return {name: value for name, value in report.to_dict().items() if name.startswith("loss/")}


def trained(prepared: Prepared, warnings: list[str], **settings: Any) -> list[dict[str, float]]:
    """Return the losses of a trial's epochs."""
    config = TrialConfig(**{**SHORT, **settings})
    reports = run_trial(config, prepared.evaluation, prepared, last=False, warn=warnings.append)
    return [losses(report) for report in reports]


def close(found: list[dict[str, float]], wanted: list[dict[str, float]], rel: float = 1e-5) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs
        assert ours == pytest.approx(theirs, rel=rel)


def test_auto_runs_operations_one_after_another_on_every_device() -> None:
    assert [Execution(TrialConfig(), device, pytest.fail).way for device in (CPU, GPU)] == ["eager", "eager"]
    assert Execution(TrialConfig(execution="graph"), GPU, pytest.fail).way == "graph"


# ---------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("name", TRIALS)
def test_a_replayed_step_trains_as_one_that_is_run(name: str, prepared: Prepared, recorder: CpuRecorder) -> None:
    warnings: list[str] = []
    found = trained(prepared, warnings, **TRIALS[name], execution="graph")
    assert warnings == []
    epochs, steps = SHORT["epochs"], len(prepared.data.train.labels) // SHORT["batch_size"]
    assert steps == STEPS
    # The last step of an epoch is looked at, and so is never replayed.
    assert (recorder.ran, recorder.recorded, recorder.replayed) == (3 * epochs, epochs, (steps - 4) * epochs)
    close(found, trained(prepared, warnings, **TRIALS[name]))


def test_stacked_steps_are_replayed_too(prepared: Prepared, recorder: CpuRecorder) -> None:
    settings = {**SHORT, "architecture": "cnn", "augmentation": "crop_flip", "epochs": 1}
    rates, found = (1e-3, 3e-3), []
    for way in ("eager", "graph"):
        pack = Pack(prepared.evaluation, prepared)
        configs = [TrialConfig(**settings, learning_rate=rate, execution=way) for rate in rates]
        reports = pack.advance([pack.join(config, warn=pytest.fail) for config in configs])
        found.append([losses(report) for report in reports.values()])
    assert recorder.replayed == STEPS - 4
    close(found[1], found[0])


def test_a_step_that_cant_be_recorded_is_run_with_the_same_numbers(prepared: Prepared, recorder: CpuRecorder) -> None:
    """Check a step that waits for its device, as the solver that stops early on a CPU does."""
    warnings: list[str] = []
    settings = {"regularizer": "ot_triplet", "sensitivity_weight": 0.5}
    found = trained(prepared, warnings, **settings, execution="graph")
    assert recorder.recorded == recorder.replayed == 0
    assert warnings == [
        "execution = 'graph': a step can't be recorded as a CUDA graph (RuntimeError: operation not permitted when "
        "stream is capturing), so operations are run one after another"
    ]
    close(found, trained(prepared, warnings, **settings))


def test_where_there_are_no_graphs_the_trial_says_so(prepared: Prepared) -> None:
    warnings: list[str] = []
    found = trained(prepared, warnings, epochs=1, execution="graph")
    assert warnings == [
        "execution = 'graph': there are no CUDA graphs on this device, so operations are run one after another"
    ]
    assert found == trained(prepared, warnings, epochs=1)


def test_numbers_drawn_ahead_are_those_of_their_source() -> None:
    like = torch.zeros(4)

    def asked(source: Any) -> list[torch.Tensor]:
        return [uniform((4, 2), like, source), uniform((2,), like, source)]

    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    wanted = [asked(generators) for _ in range(3)]
    ahead = DrawnAhead([torch.Generator().manual_seed(seed) for seed in (0, 1)])
    places = set()
    for step in wanted:
        ahead.draw()
        found = asked(ahead)
        ahead.rewind()
        for numbers in (found, asked(ahead)):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(numbers, step, strict=True))
        places.add(tuple(each.data_ptr() for each in found))
    assert len(places) == 1
    ahead.rewind()
    with pytest.raises(RuntimeError, match=r"asks for \(3,\) random numbers where the first asked for \(4, 2\)"):
        uniform((3,), like, ahead)


# -------------------------------------------------------------------------------------------------------- compiled


@pytest.fixture
def whole_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile to whole graphs of torch's own operations, which takes seconds where machine code takes a minute."""
    monkeypatch.setattr(execution, "_BACKEND", "aot_eager")


def gradients(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    prediction = model(images)
    total = prediction.logits.sin().sum() + prediction.embedding.cos().sum()
    return [*prediction, *torch.autograd.grad(total, [images, *model.parameters()])]


def compare(config: TrialConfig, prepared: Prepared, compilers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a model's answers and gradients while its passes are compiled with those before and after."""
    called: list[str] = []

    def counted(graph: Any, examples: Any) -> Any:
        called.append("graph")
        return torch._dynamo.lookup_backend(compilers[0])(graph, examples)

    monkeypatch.setattr(execution, "_BACKEND", counted)
    torch._dynamo.reset()
    model, images = initial_state(config, prepared, CPU).model.train(), prepared.data.train.images[:20]
    before = gradients(model, images)
    with Execution(config, CPU, pytest.fail).passes(model, images):
        compiled = gradients(model, images)
    assert called
    torch.testing.assert_close(compiled, before, rtol=1e-4, atol=1e-5)
    count = len(called)
    torch.testing.assert_close(gradients(model, images), before, rtol=0, atol=0)
    assert len(called) == count, "nothing is compiled any more"


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_compiled_passes_answer_as_others(
    architecture: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(TrialConfig(architecture=architecture, execution="compiled"), prepared, ["aot_eager"], monkeypatch)


@pytest.mark.slow
def test_passes_compiled_to_machine_code_answer_as_others(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compare(TrialConfig(architecture="cnn", execution="compiled"), prepared, ["inductor"], monkeypatch)


def test_a_trial_trains_compiled_as_otherwise_alone_and_in_a_pack(prepared: Prepared, whole_graphs: None) -> None:
    torch._dynamo.reset()
    warnings: list[str] = []
    usual = trained(prepared, warnings, epochs=1)
    close(trained(prepared, warnings, epochs=1, execution="compiled"), usual, rel=2e-3)
    pack = Pack(prepared.evaluation, prepared)
    config = TrialConfig(**{**SHORT, "epochs": 1, "execution": "compiled"})
    reports = pack.advance([pack.join(config, warn=warnings.append), pack.join(config, warn=warnings.append)])
    close([losses(report) for report in reports.values()], usual * 2, rel=2e-3)
    assert warnings == []


def test_where_compiling_fails_the_trial_says_so_and_goes_on(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, examples: Any) -> Any:
        raise OSError("no compiler here")

    monkeypatch.setattr(execution, "_BACKEND", broken)
    torch._dynamo.reset()
    warnings: list[str] = []
    found = trained(prepared, warnings, epochs=1, execution="compiled")
    assert len(warnings) == 1
    assert warnings[0].startswith("execution = 'compiled': torch.compile fails (")
    assert "no compiler here" in warnings[0]
    assert warnings[0].endswith("), so operations are run one after another")
    assert found == trained(prepared, warnings, epochs=1)


def test_a_model_is_as_lean_after_it_was_compiled_as_before(prepared: Prepared, whole_graphs: None) -> None:
    config = TrialConfig(architecture="cnn", execution="compiled")
    model = move_to_device(initial_state(config, prepared, CPU).model, CPU)
    lean = [getattr(module, "lean", None) for module in model.modules()]
    with Execution(config, CPU, pytest.fail).passes(model, prepared.data.train.images[:4]):
        assert [getattr(module, "lean", None) for module in model.modules()] != lean
    assert [getattr(module, "lean", None) for module in model.modules()] == lean

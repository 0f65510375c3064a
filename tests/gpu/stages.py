"""The stages of a run on a GPU, each a generator of a table's rows.

Every stage works on a CPU too, at tiny sizes (`--rehearse`), so that a mistake in it is found before a GPU is at hand.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.benchmarks import pack
from tests.benchmarks.common import digits_of_mnist_shape, fresh_model, processor, seconds
from tests.gpu.report import Row
from trainer.attacks import NORMS, cross_entropy_loss, frozen, pgd
from trainer.config import REGULARIZERS, EvaluationConfig, TrialConfig
from trainer.data import Split
from trainer.invariance import Prepared, TrainingPerturbation, prepare
from trainer.invariance.attacks import allowed_targets
from trainer.invariance.class_index import ClassIndex
from trainer.invariance.neighbours import find_neighbours
from trainer.invariance.published import PAPER_TARGETS, alignments_for
from trainer.models import build_model, move_to_device
from trainer.objective import Knobs, total_loss
from trainer.training import ensemble, evaluation_attacks, judging_generator, run_trial
from trainer.training.batches import Batch
from trainer.training.evaluation import evaluate
from trainer.training.execution import Execution
from trainer.training.loop import train_epoch
from trainer.training.profiling import stand_in
from trainer.training.step import forward, make_optimizer, update
from trainer.training.trial import TrialState

CPU = torch.device("cpu")
PGD_7 = TrialConfig(clean_ce_weight=0.0, sensitivity_ce_weight=1.0, sensitivity_steps=7, sensitivity_epsilon=0.3)
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Setting(NamedTuple):
    """What the stages run on."""

    device: torch.device
    rehearse: bool
    """Whether sizes are tiny: the code is tried, not the machine."""
    data_dir: Path | None
    """Folder of MNIST's published files; None for the digits."""

    def pick(self, whole: int, tiny: int) -> int:
        return tiny if self.rehearse else whole


def machine(setting: Setting) -> Iterator[Row]:
    """Tell what this machine is, and how its GPU multiplies unless told otherwise."""
    packages = ("numpy", "scipy", "scikit-learn", "torchvision", "triton")
    found = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(_module(name))}
    yield {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    yield {"torch": torch.__version__, **found}
    if setting.device.type == "cuda":
        about = torch.cuda.get_device_properties(setting.device)
        yield {"GPU": about.name, "GiB": about.total_memory / 2**30, "CUDA": torch.version.cuda}
        yield {
            "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
            "TF32 in products": torch.backends.cuda.matmul.allow_tf32,
        }


def _module(package: str) -> str:
    return {"scikit-learn": "sklearn"}.get(package, package)


def correct_steps(setting: Setting) -> Iterator[Row]:
    """Compare losses and gradients of a step with the CPU's in float64, with TF32 and without, for every regulariser.

    One L2 step from the image needs no random number and, unlike a sign, is no jump in the gradient; noisy images have
    no equal values that a pooling could choose among. The largest relative error of a parameter's gradient is shown.
    """
    size = setting.pick(256, 32)
    for regularizer, architecture in itertools.product(REGULARIZERS, ("cnn", "mlp")):
        config = TrialConfig(
            architecture=architecture,
            regularizer=regularizer,
            sensitivity_weight=0.5,
            invariance_weight=0.5,
            clean_ce_weight=1.0,
            sensitivity_ce_weight=0.5,
            invariance_ce_weight=0.5,
            sensitivity_norm="l2",
            sensitivity_steps=1,
            sensitivity_epsilon=1.0,
        )
        exact = _loss_and_gradients(config, CPU, size, torch.float64)
        row: Row = {"regularizer": regularizer, "architecture": architecture}
        for name, tf32 in {"float32": False, "TF32": True}.items():
            if tf32 and setting.device.type != "cuda":
                continue
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                loss, gradients = _loss_and_gradients(config, setting.device, size, torch.float32)
            row[f"loss off by, {name}"] = abs(loss / exact[0] - 1)
            row[f"gradient off by, {name}"] = max(
                float((ours - right).norm() / right.norm().clamp_min(1e-12))
                for ours, right in zip(gradients, exact[1], strict=True)
            )
        yield row


def _loss_and_gradients(
    config: TrialConfig, device: torch.device, size: int, precision: torch.dtype
) -> tuple[float, list[Tensor]]:
    """Return the loss of a new model's first batch and the gradient of every parameter, in float64 on the CPU."""
    train = digits_of_mnist_shape(size)
    noise = torch.rand(train.images.shape, generator=torch.Generator().manual_seed(0))
    train = train._replace(images=train.images.lerp(noise, 0.5))
    model = move_to_device(fresh_model(config, train.images), device).to(precision)
    perturbed = TrainingPerturbation(*(field.to(device) for field in stand_in(train, epsilon=0.3)))
    perturbed = perturbed._replace(images=perturbed.images.to(precision))
    batch = Batch(train.images.to(device, precision), train.labels.to(device), perturbed)
    knobs = Knobs.of(config, device)
    loss = total_loss(forward(model, batch, config, knobs, torch.Generator()).terms, knobs)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), [each.double().cpu() for each in gradients]


def correct_judging(setting: Setting) -> Iterator[Row]:
    """Judge one model, trained for a few epochs on the CPU, on both devices: accuracies may differ by random starts."""
    evaluation = EvaluationConfig(train_size=400, validation_size=setting.pick(300, 60), eval_sensitivity_steps=5)
    config = TrialConfig(architecture="mlp", epochs=2, sensitivity_ce_weight=1.0, clean_ce_weight=0.0)
    with tempfile.TemporaryDirectory() as cache:
        prepared = prepare(evaluation, invariance_norms=(), cache_dir=Path(cache))
        model = _trained(config, evaluation, prepared)
        for device in dict.fromkeys((CPU, setting.device)):
            own = move_to_device(model, device)
            validation = Split(*(field.to(device) for field in prepared.data.validation))
            for name, attacks in {
                "PGD": evaluation_attacks(evaluation),
                "ensemble": ensemble(norm="linf", epsilon=0.2, steps=20, queries=200),
            }.items():
                generator = judging_generator(evaluation)
                measured = evaluate(own, validation, prepared.judging.to(device), attacks, generator=generator)
                names = ("clean_accuracy", "sensitivity_accuracy", "invariance_accuracy")
                yield {"device": device.type, "attacks": name, **{each: getattr(measured, each) for each in names}}


def _trained(config: TrialConfig, evaluation: EvaluationConfig, prepared: Prepared) -> nn.Module:
    """Return the model that a trial on the CPU chooses."""
    from trainer.files import FolderStore
    from trainer.training import MODEL_FILE, load_model

    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        for _ in run_trial(config, evaluation, prepared, store=store):
            pass
        return load_model(Path(folder) / MODEL_FILE)


def marked_tests(setting: Setting) -> Iterator[Row]:
    """Run the tests that need a GPU; without Ray and the others, so without the project's conftest."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        raise ModuleNotFoundError("pytest or hypothesis is not installed here")
    files = ("tests/gpu", "tests/unit/test_models.py", "tests/unit/test_pack.py")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-p", "tests.gpu.fixtures"]
    command += ["-c", os.devnull, "--rootdir", ".", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    for line in done.stdout.splitlines()[-30:]:
        if line.startswith(("FAILED", "ERROR")) or " in " in line:
            yield {"pytest": line.strip("= ")}
    if done.returncode not in (0, 5) and setting.device.type == "cuda":
        print(done.stdout[-4000:], done.stderr[-2000:], sep="\n")


def packs(setting: Setting) -> Iterator[Row]:
    """Time trials an hour: one process, several that share the device, and packs, also as graphs and compiled."""
    alone = _median(pack.repeated(pack.single()))
    yield {"trials": "one process", **_speed(1, alone, alone)}
    for count in setting.pick(1, 0) * (8, 32, 128) or pack.SIZE.packs[:2]:
        spent = {way: _median(pack.repeated(pack.packed(count, way))) for way in ("eager", *_other_ways(setting))}
        row = {"trials": f"pack of {count}{pack.memory_per_trial(count)}", **_speed(count, spent["eager"], alone)}
        yield row | {f"times one process, {way}": count * alone / spent[way] for way in _other_ways(setting)}
    for count in setting.pick(1, 0) * (4, 8, 16) or (2,):
        spent = pack.side_by_side(count)
        yield {"trials": f"{count} processes", **_speed(count, spent, alone)}
    if setting.device.type == "cuda":
        pack.print_roofline(alone / pack.SIZE.steps)


def _speed(trials: int, spent: float, alone: float) -> Row:
    return {
        "ms a step": 1000 * spent / pack.SIZE.steps,
        "trials an hour": pack.per_hour(trials, spent),
        "times one process": trials * alone / spent,
    }


def _median(run: Callable[[], None], rounds: int = 3) -> float:
    """Return the seconds of a run, after one that warms up."""
    run()
    return statistics.median(seconds(run) for _ in range(rounds))


def _step(model: nn.Module, batch: Batch, config: TrialConfig) -> Callable[[], None]:
    """Return a whole step of a trial on one batch: attack, passes, loss, update."""
    optimizer, knobs = make_optimizer(model, config), Knobs.of(config, batch.images.device)
    noise, most = torch.Generator().manual_seed(0), len(batch.labels)

    def step() -> None:
        update(optimizer, total_loss(forward(model, batch, config, knobs, noise, largest_class=most).terms, knobs))

    return step


def _attack(model: nn.Module, batch: Batch, steps: int) -> Callable[[], None]:
    """Return the attack of a step alone."""
    loss = cross_entropy_loss(lambda images: model(images).logits, batch.labels)

    def attack() -> None:
        with frozen(model):
            pgd(loss, batch.images, norm=NORMS["linf"], epsilon=0.3, steps=steps)

    return attack


def _laid_out(model: nn.Module, device: torch.device, layout: str) -> nn.Module:
    for module in model.to(device).modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=_LAYOUTS[layout])
    return model


def _batch(setting: Setting, size: int) -> Batch:
    train = digits_of_mnist_shape(size)
    return Batch(train.images.to(setting.device), train.labels.to(setting.device), None)


def parts(setting: Setting) -> Iterator[Row]:
    """Time a PGD-7 step and its attack in two layouts, with TF32 or not, with bf16 in all passes or not."""
    size = setting.pick(256, 16)
    batch = _batch(setting, size)
    for layout, tf32, bf16 in itertools.product(_LAYOUTS, (False, True), (False, True)):
        model = _laid_out(fresh_model(PGD_7, batch.images.cpu()), setting.device, layout)
        precise = torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32), _products(tf32), precise:
            step = _median(_step(model, batch, PGD_7), 5)
            attacked = _median(_attack(model, batch, PGD_7.sensitivity_steps), 5)
        yield {
            "layout": layout,
            "TF32": tf32,
            "bf16": bf16,
            "ms a step": 1000 * step,
            "of it the attack": attacked / step,
            "images/s": size / step,
        }


@contextlib.contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Let matrix products use TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def executions(setting: Setting) -> Iterator[Row]:
    """Train some steps in every way to run them: time of a step, and how far losses and weights are from eager ones.

    Where they are equal but for rounding, `auto` may be the fastest: `_AUTO` in `trainer/training/execution.py`.
    """
    for regularizer in ("none", "ot_triplet"):
        config = PGD_7.replace(regularizer=regularizer, sensitivity_weight=0.5 * (regularizer != "none"))
        config = config.replace(batch_size=setting.pick(256, 16), augmentation="crop_flip")
        eager = _short_training(setting, config)
        yield {"regularizer": regularizer, "execution": "eager", "ms a step": eager.milliseconds}
        for way in _other_ways(setting):
            other = _short_training(setting, config.replace(execution=way))
            yield {
                "regularizer": regularizer,
                "execution": way,
                "ms a step": other.milliseconds,
                "times faster": eager.milliseconds / other.milliseconds,
                "losses off by": max(abs(other.losses[name] / eager.losses[name] - 1) for name in eager.losses),
                "weights off by": float((other.weights - eager.weights).norm() / eager.weights.norm()),
                "said": "; ".join(other.warnings),
            }


def _other_ways(setting: Setting) -> tuple[str, ...]:
    """Return the ways to run a step that are compared with the usual one; compiling takes a CPU minutes."""
    return ("graph",) if setting.rehearse else ("graph", "compiled")


class _Trained(NamedTuple):
    """A short training."""

    milliseconds: float
    """A step in the second half of them."""
    losses: dict[str, float]
    weights: Tensor
    warnings: list[str]


def _short_training(setting: Setting, config: TrialConfig) -> _Trained:
    steps, warnings, ticks = setting.pick(24, 8), [], []
    train = digits_of_mnist_shape(steps * config.batch_size)
    model = move_to_device(fresh_model(config, train.images), setting.device)
    how = Execution(config, setting.device, warnings.append)
    state = TrialState(model, make_optimizer(model, config), how)

    def tick(epoch: int, done: int, total: int) -> None:
        if done in (total // 2, total - 1):
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
            ticks.append(time.perf_counter())

    on_device, knobs = Split(*(field.to(setting.device) for field in train)), Knobs.of(config, setting.device)
    terms = train_epoch(state, on_device, None, config, knobs, tick)
    return _Trained(
        1000 * (ticks[1] - ticks[0]) / (steps - 1 - steps // 2),
        {name: value for name, value in terms.items() if name.startswith("loss/")},
        torch.cat([p.detach().flatten() for p in model.parameters()]).cpu(),
        warnings,
    )


def neighbours(setting: Setting) -> Iterator[Row]:
    """Time the search for the nearest images of other classes on the device: of some sources, told for all."""
    train = digits_of_mnist_shape(setting.pick(55_000, 400))
    if setting.data_dir is not None:
        from trainer.data import load_data

        with tempfile.TemporaryDirectory() as cache:
            data = load_data(EvaluationConfig(dataset="mnist"), data_dir=setting.data_dir, cache_dir=Path(cache))
            train = Split(*(field[: len(train.labels)].clone() for field in data.train))
    images, labels = (field.to(setting.device) for field in train)
    alignments, allowed = alignments_for("mnist", "linf"), allowed_targets(10, PAPER_TARGETS)
    index = ClassIndex(alignments.sought(images), labels, classes=10)
    for count in (16,) if setting.rehearse else (64, 512, 2048):

        def search(count: int = count) -> None:
            find_neighbours(images[:count], labels[:count], index, alignments=alignments, allowed=allowed)

        spent = seconds(search)
        yield {
            "sources": count,
            "seconds": spent,
            "images/s": count / spent,
            "minutes for 60,000": 1000 * spent / count,
        }


def trial(setting: Setting) -> Iterator[Row]:
    """Run one trial to its end, with its three accuracies: PGD-7 training of MNIST's CNN, or of the digits."""
    dataset = "digits" if setting.data_dir is None else "mnist"
    evaluation = EvaluationConfig(
        dataset=dataset,
        train_size=setting.pick(0, 200),
        validation_size=setting.pick(2000, 60) if dataset == "mnist" else setting.pick(300, 60),
        eval_sensitivity_epsilon=0.3,
        eval_invariance_size=500,
    )
    config = PGD_7.replace(epochs=setting.pick(10, 1), batch_size=setting.pick(256, 50), learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as cache:
        begun = time.perf_counter()
        prepared = prepare(
            evaluation,
            invariance_norms=(),
            data_dir=setting.data_dir,
            cache_dir=Path(cache),
            device=str(setting.device),
        )
        yield {"preparing": dataset, "seconds": time.perf_counter() - begun}
        for report in run_trial(config, evaluation, prepared, device=str(setting.device)):
            yield {
                "epoch": report.epoch,
                "final": report.final,
                "clean": report.clean_accuracy,
                "sensitivity": report.sensitivity_accuracy,
                "invariance": report.invariance_accuracy,
                "s to train": report.train_seconds,
                "s to judge": report.evaluation_seconds,
            }


def resnet18(setting: Setting) -> Iterator[Row]:
    """Time PGD-7 steps of ResNet-18 on images of CIFAR-10's shape, in two layouts, with bf16 in all passes or not."""
    size, third = setting.pick(128, 4), torch.full((3,), 0.3)
    cifar = {"shape": (3, 32, 32), "classes": 10, "embedding_size": 64, "mean": third, "std": third, "seed": 0}
    images = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(setting.device)
    batch = Batch(images, (torch.arange(size) % 10).to(setting.device), None)
    config = PGD_7.replace(architecture="resnet18", sensitivity_steps=setting.pick(7, 1), sensitivity_epsilon=0.03)
    for layout, bf16 in itertools.product(_LAYOUTS, (False, True)):
        model = _laid_out(build_model("resnet18", **cifar), setting.device, layout)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            spent = _median(_step(model, batch, config), setting.pick(5, 1))
        yield {"layout": layout, "bf16": bf16, "ms a step": 1000 * spent, "images/s": size / spent}

"""One finalist of an audit, trained on a fresh seed and judged on the test split, on a worker; torch only there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweep.engine import Task, evaluation_of, explain, shared
from trainer.config import TrialConfig
from trainer.fields import knob
from trainer.files import seal_json, unseal_json
from trainer.human_agreement import MODEL, ORACLE, ExamplesFolder

if TYPE_CHECKING:
    from torch import nn

    from trainer.attacks import Evidence
    from trainer.data import Split
    from trainer.invariance import LabelledSet

_FORMAT = 1
"""Of the results and of the procedures behind them: raise it when either changes, and they are made again."""


# -------------------------------------------------------------------------------------- what is given, what is found


@dataclass(frozen=True)
class AuditOptions:
    """How much is spent. Each field is an option of the same name."""

    seeds: int = knob(3, low=1, high=1000)
    """Fresh seeds that every finalist is trained on."""

    finalists: int = knob(8, low=1, high=100_000)
    """Most trials that are audited, the front's first."""

    test_size: int = knob(1000, low=0, high=1_000_000)
    """Test images, drawn by the split's seed, for clean and sensitivity accuracy and the evidence; 0 takes all.
    Invariance starts from as many test images as the plan takes of the validation split."""

    steps: int = knob(100, low=1, high=10_000)
    """Gradient steps of a round of the full set of attacks."""

    queries: int = knob(5000, low=1, high=1_000_000)
    """Calls of the model by Square."""

    @property
    def judged_by(self) -> dict[str, int]:
        """What must agree for two results to be of the same kind."""
        return {"format": _FORMAT, "test_size": self.test_size, "steps": self.steps, "queries": self.queries}


class AuditTask(NamedTuple):
    """One training on a worker."""

    name: str
    """Of its folder and of its result."""
    number: int
    """Of the finalist; -1 for a twin."""
    config: dict[str, Any]
    """With the fresh seed in it."""


@dataclass(frozen=True)
class AuditResult:
    """One finalist, trained on one fresh seed and judged on the test split; as it stands in its file."""

    number: int
    config: dict[str, Any]
    judged_by: dict[str, int]
    images: int
    """Test images behind clean and sensitivity accuracy and the evidence."""
    numbers: dict[str, float]
    """Accuracies and shares by the names of `EpochReport`; those of `attack_invariance`; and `curve_area`."""
    curve: dict[str, list[float]]
    """Accuracy over the budget, as in `trainer.evidence.Curve`."""
    evidence: dict[str, float | None]
    """Every other number of `trainer.evidence.Evidence`."""
    warnings: list[str]
    """One per failed check against a meaningless attack."""
    people: dict[str, Any] | None = None
    """How far the oracle and the model agree with people: `trainer.people.People` in plain values, where known."""

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def answers_to(self, examples: ExamplesFolder) -> bool:
        """Whether the model was compared with people on just these examples."""
        return self.people is not None and self.people["digest"] == examples.digest


# ------------------------------------------------------------------------------------------------------ on the workers


def prepare_test(task: Task, examples: ExamplesFolder | None) -> None:
    """The test split's judging set and per-model attack, made once and kept in the cache; damaged examples are refused
    here, before anything is trained."""
    _labelled_sets(task, examples)
    shared(task).judging_set("test")
    shared(task).adversary("test")


@lru_cache(maxsize=1)
def _labelled_sets(task: Task, examples: ExamplesFolder | None) -> Sequence[LabelledSet]:
    """Every set of a folder of examples that people labelled."""
    from trainer.invariance import read_examples

    data = shared(task).data
    return read_examples(Path(examples.path), data.test, classes=data.classes) if examples else ()


def train_undefended(task: Task, twin: AuditTask, folder: Path) -> str:
    """Train an undefended model; why it failed, or nothing."""
    try:
        _train(task, twin, folder)
    except Exception as error:  # noqa: BLE001 - the audit goes on without this twin
        return explain(error)
    return ""


def audit_one(
    task: Task,
    job: AuditTask,
    twin: AuditTask | None,
    folder: Path,
    options: AuditOptions,
    examples: ExamplesFolder | None,
) -> str:
    """Train one finalist, judge it and write the result, as far as that is not done; why it failed, or nothing."""
    from trainer.files import FolderStore

    try:
        model = _train(task, job, folder)
        audited = read_result(folder, job, options)
        if audited is None:
            audited = _judge(task, job, model, _train(task, twin, folder) if twin else None, options)
        if examples and not audited.answers_to(examples):
            audited = dataclasses.replace(audited, people=_compare_with_people(task, model, examples))
        FolderStore(folder).write(_result_file(job), sealed(audited))
    except Exception as error:  # noqa: BLE001 - one may fail in any way, and the audit goes on
        return explain(error)
    return ""


def _result_file(job: AuditTask) -> str:
    return f"{job.name}.json"


def sealed(audited: AuditResult) -> bytes:
    """What a result's file holds."""
    return seal_json(dataclasses.asdict(audited))


def read_result(folder: Path, job: AuditTask, options: AuditOptions) -> AuditResult | None:
    """The result of a job, if it was made for the same configuration by the same options; a damaged file holds none."""
    audited = read_audited(folder / _result_file(job))
    if audited is None or (audited.config, audited.judged_by) != (job.config, options.judged_by):
        return None
    return audited


def read_audited(path: Path) -> AuditResult | None:
    """What a result's file holds; None where there is none, or it is damaged."""
    try:
        return AuditResult(**unseal_json(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or something else
        return None


def _train(task: Task, job: AuditTask, folder: Path) -> nn.Module:
    """The model that a trial of this configuration chooses; what an earlier audit left of it is gone on with."""
    import torch

    from trainer.files import FolderStore
    from trainer.training import MODEL_FILE, load_model, run_trial

    torch.set_num_threads(task.threads)
    config, where, device = TrialConfig.from_mapping(job.config), folder / "models" / job.name, _device_of(task)
    if not (where / MODEL_FILE).exists():
        deque(run_trial(config, evaluation_of(task), shared(task), store=FolderStore(where), device=device), maxlen=0)
    return load_model(where / MODEL_FILE).to(device)


def _device_of(task: Task) -> str:
    import torch

    return "cuda" if task.use_gpu and torch.cuda.is_available() else "cpu"


def _judge(task: Task, job: AuditTask, model: nn.Module, twin: nn.Module | None, options: AuditOptions) -> AuditResult:
    """Every number of one model on the test split. The generators' seed is the same for all, so that it cancels."""
    from trainer.training import ensemble, evaluate, judging_generator, to_device

    prepared, evaluation, device = shared(task), evaluation_of(task), next(model.parameters()).device
    test = to_device(draw(prepared.data.test, options.test_size, seed=evaluation.split_seed), device)
    attacks = ensemble(
        norm=evaluation.eval_sensitivity_norm,
        epsilon=evaluation.eval_sensitivity_epsilon,
        steps=options.steps,
        queries=options.queries,
        model=model,
    )
    judging = prepared.judging_set("test").to(device)
    judged = evaluate(model, test, judging, attacks, generator=judging_generator(evaluation, device))
    evidence = _check(task, model, twin, test, options)
    return AuditResult(
        number=job.number,
        config=job.config,
        judged_by=options.judged_by,
        images=len(test.labels),
        numbers={**judged._asdict(), **_attack_invariance(task, model), "curve_area": evidence.curve.area},
        curve={name: list(values) for name, values in evidence.curve._asdict().items()},
        evidence={name: value for name, value in vars(evidence).items() if name != "curve"},
        warnings=evidence.warnings,
    )


def _attack_invariance(task: Task, model: nn.Module) -> dict[str, float]:
    """The per-model attack beside the fixed set: over the test images of which some candidate shows the oracle another
    class, the share where the model sees it in every candidate (`adversary_accuracy`), and, among those that it had
    right when clean, the share where its answer to some candidate is still the same (`adversary_stuck`)."""
    import torch

    from trainer.attacks import frozen
    from trainer.training import mean

    device = next(model.parameters()).device
    with frozen(model), torch.no_grad():
        found = shared(task).adversary("test").run(lambda images: model(images.to(device)).logits.cpu())
    return {
        "adversary_accuracy": mean(found.accurate[found.attackable]),
        "adversary_stuck": mean(found.stuck[found.attackable & found.right]),
        "adversary_size": int(found.attackable.sum()),
    }


def _compare_with_people(task: Task, model: nn.Module, examples: ExamplesFolder) -> dict[str, Any]:
    """How far the oracle and the model agree with people, in plain values."""
    from trainer.invariance import answers_of, ask_people

    answerers = {ORACLE: shared(task).judge.label, MODEL: answers_of(model)}
    return dataclasses.asdict(ask_people(examples, _labelled_sets(task, examples), answerers))


def _check(task: Task, model: nn.Module, twin: nn.Module | None, test: Split, options: AuditOptions) -> Evidence:
    """Evidence against a meaningless attack, at half the steps: the check that doubles them takes all."""
    from trainer.attacks import frozen, gather_evidence
    from trainer.training import BATCH, judging_generator

    evaluation, device = evaluation_of(task), test.images.device
    with frozen(model), frozen(twin) if twin else contextlib.nullcontext():
        return gather_evidence(
            lambda images: model(images).logits,
            *test,
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            generator=judging_generator(evaluation, device),
            twin=(lambda images: twin(images).logits) if twin else None,
            steps=max(1, options.steps // 2),
            queries=max(1, options.queries // 5),
            batch_size=BATCH[device.type],
        )


def draw(split: Split, size: int, *, seed: int) -> Split:
    """So many images of a split, all for 0. Drawn, since the first of MNIST's test images are easier than the last."""
    import torch

    count = len(split.labels)
    if not 0 < size < count:
        return split
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    return type(split)(split.images[chosen], split.labels[chosen])

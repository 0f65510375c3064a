"""An audit's tasks and results, and the results' files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sweep.plan import AuditOptions
from trainer.files import seal_json, unseal_json
from trainer.human_agreement import ExamplesFolder

_FORMAT = 2
"""Version of the results and of the procedures behind them: raise it when either changes, and they are made again."""


def judged_by(options: AuditOptions) -> dict[str, int]:
    """Return the settings that must agree for two results to be comparable."""
    return {"format": _FORMAT, "test_size": options.test_size, "steps": options.steps, "queries": options.queries}


class AuditTask(NamedTuple):
    """One training on a worker."""

    name: str
    """Name of its folder and of its result."""
    number: int
    """The finalist's number; -1 for an undefended baseline."""
    config: dict[str, Any]
    """The configuration, with the fresh seed in it."""


@dataclass(frozen=True)
class AuditResult:
    """One finalist, trained on one fresh seed and judged on the test split; as it stands in its file."""

    number: int
    config: dict[str, Any]
    judged_by: dict[str, int]
    images: int
    """Test images behind clean and sensitivity accuracy and the evidence."""
    numbers: dict[str, float]
    """Accuracies and shares by the names of `EpochReport`; those of the per-model attack; and `curve_area`."""
    curve: dict[str, list[float]]
    """Accuracy over the budget, by the fields of the curve in `trainer.attacks.Evidence`."""
    evidence: dict[str, float | None]
    """Every other number of `trainer.attacks.Evidence`."""
    warnings: list[str]
    """Failed checks against a meaningless attack, one sentence each."""
    people: dict[str, Any] | None = None
    """A `HumanAgreement` of the judge and the model in plain values, where known."""

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def answers_to(self, examples: ExamplesFolder) -> bool:
        """Return whether the model was compared with people on just these examples."""
        return self.people is not None and self.people["digest"] == examples.digest


def result_file(task: AuditTask) -> str:
    """Return the name of a task's result."""
    return f"{task.name}.json"


def sealed(audited: AuditResult) -> bytes:
    """Return the content of a result's file."""
    return seal_json(dataclasses.asdict(audited))


def read_result(folder: Path, task: AuditTask, options: AuditOptions) -> AuditResult | None:
    """Return a task's result if it is of the same configuration by the same options; None where it is damaged."""
    audited = read_audited(folder / result_file(task))
    if audited is None or (audited.config, audited.judged_by) != (task.config, judged_by(options)):
        return None
    return audited


def read_audited(path: Path) -> AuditResult | None:
    """Return the result in a file; None where there is none, or it is damaged."""
    try:
        return AuditResult(**unseal_json(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or something else
        return None

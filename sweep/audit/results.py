"""An audit's tasks and results, and the results' files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sweep.plan import AuditOptions
from trainer.files import seal_json, unseal_json
from trainer.human_agreement import ExamplesFolder

_FORMAT = 4
"""Version of the results and of the procedures behind them: raise it when either changes, and they are made again."""


def judged_by(options: AuditOptions) -> dict[str, int]:
    """Return the settings that must agree for two results to be comparable."""
    own = ("test_size", "steps", "queries", "fab", "judges")
    return {"format": _FORMAT, **{name: getattr(options, name) for name in own}}


class AuditTask(NamedTuple):
    """One training on a worker."""

    name: str
    """Name of its folder and of its result."""
    number: int
    """The finalist's number; -1 for an undefended baseline."""
    config: dict[str, Any]
    """The configuration, with the fresh seed in it, or with its own."""
    own: bool = False
    """True for the model of the sweep itself, which was selected."""


@dataclass(frozen=True)
class AuditResult:
    """One model of a finalist, judged on the test split; as it stands in its file.

    It is the sweep's own, or trained on a fresh seed.
    """

    number: int
    config: dict[str, Any]
    judged_by: dict[str, int]
    images: int
    """Test images behind clean and sensitivity accuracy and the evidence."""
    rows: list[int]
    """Positions of these images in the split, if they are only a part of it."""
    numbers: dict[str, float]
    """Accuracies and shares by the names of `EpochReport`, the invariance ones as means over the judges; those of the
    per-model attack; `sensitivity_invalid`, `sensitivity_doubted`; of the sweep's own model also `curve_area`."""
    answers: str
    """`Answers` on the test split, encoded: robust is what survived the full set of attacks."""
    broken_by: dict[str, int]
    """Number of images that each attack of the set was the first to break."""
    own: bool = False
    """True for the sweep's own model."""
    validation: dict[str, str] = dataclasses.field(default_factory=dict)
    """Answers of the sweep's own model on the validation split, encoded: `selected` under the attacks that it was
    selected by, `attacked` under the full set too."""
    curve: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Accuracy of the sweep's own model over the budget, by the fields of `trainer.attacks.Evidence.curve`."""
    evidence: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """Every other number of `trainer.attacks.Evidence`, of the sweep's own model."""
    warnings: list[str] = dataclasses.field(default_factory=list)
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


def judged_file(judge: int) -> str:
    """Return the name of the file with what a judge's crowds say of the judged test images."""
    return f"judged-{judge}.parquet"


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

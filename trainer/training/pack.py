"""Trials that train side by side on one device, as many as it has room for; each joins, ends and fails alone.

A lane is an ordinary trial: the same reports, the same checkpoints, so that one may begin alone and go on in a pack, or
the other way round. Only for an epoch are the lanes of one structure stacked (see `lanes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from trainer.config import EvaluationConfig, TrialConfig, check_packable
from trainer.errors import OtsweepError
from trainer.files import Store
from trainer.invariance import Prepared
from trainer.report import EpochReport
from trainer.training.evaluation import Evaluation
from trainer.training.stacked import train_together
from trainer.training.stacked_evaluation import judge_together
from trainer.training.stacking import StackedAdamW, StackedModel
from trainer.training.step import is_fgsm
from trainer.training.trial import Trial, judging_generator, to_device

_FREE = (
    "sensitivity_epsilon",
    "invariance_norm",
    "invariance_epsilon",
    "margin",
    "entropy",
    "label_cost",
    "learning_rate",
    "weight_decay",
    "epochs",
    "seed",
)
"""Knobs that may differ between the lanes of one vectorised step, whatever else is set."""

_SWITCHES = ("sensitivity_weight", "invariance_weight", "norm_weight", "trades_weight")
"""Knobs of which it matters whether they are above 0: then the objective has a term more."""


def structure(config: TrialConfig) -> TrialConfig:
    """Equal for configurations that can share a vectorised step: the configuration, without what may differ.

    What a switched-off term or an unused attack is set to makes no difference either.
    """
    default = TrialConfig()
    alike = {name: getattr(default, name) for name in _FREE}
    alike |= {name: float(getattr(config, name) > 0) for name in _SWITCHES}
    if not _compares(config):
        names = ("regularizer", "regularizer_on", "ground_metric", "mining", "transport")
        alike |= {name: getattr(default, name) for name in (*names, "sensitivity_weight", "invariance_weight")}
    if not is_fgsm(config):
        alike["sensitivity_steps"] = default.sensitivity_steps  # the lane with most sets how many, the others wait
    if not config.uses_sensitivity:
        names = ("sensitivity_norm", "sensitivity_objective", "sensitivity_steps")
        alike |= {name: getattr(default, name) for name in names}
    return config.replace(**alike)


def _compares(config: TrialConfig) -> bool:
    """Whether the objective has a regulariser at all."""
    return config.regularizer != "none" and max(config.sensitivity_weight, config.invariance_weight) > 0


@dataclass(eq=False)
class Lane(Trial):
    """One trial of a pack."""

    untold: bool = False
    """Whether it has just gone on from a checkpoint, whose report nobody may have heard."""

    @cached_property
    def structure(self) -> TrialConfig:
        """See `structure`."""
        return structure(self.config)

    @property
    def trains(self) -> bool:
        """Whether its next report takes an epoch of training."""
        return not self.untold and self.state.epoch < self.config.epochs


class Pack:
    """Trials on one device that are judged by the same."""

    def __init__(
        self, evaluation: EvaluationConfig, prepared: Prepared, *, ladder: int = 0, device: str = "cpu"
    ) -> None:
        """
        Args:
            evaluation: what all lanes are judged by; the one that `prepared` was made for.
            prepared: data, training perturbations and judging set.
            ladder: as of `run_trial`.
            device: a torch device such as `cpu` or `cuda:0`.
        """
        self.evaluation, self.prepared, self.ladder = evaluation, prepared, ladder
        self.device = torch.device(device)
        self.train = to_device(prepared.data.train, self.device)
        self.validation = to_device(prepared.data.validation, self.device)
        self.judging = prepared.judging.to(self.device)

    def join(
        self,
        config: TrialConfig,
        *,
        store: Store | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> Lane:
        """A lane for one more trial, at its start or where its store left it.

        Args:
            config, store, warn: as of `run_trial`.

        Raises:
            InputError: as `run_trial` does, and if the configuration can't be packed.
        """
        check_packable(config)
        lane = Lane.begin(
            config, self.evaluation, self.prepared, ladder=self.ladder, store=store, device=self.device, warn=warn
        )
        lane.untold = lane.state.last is not None
        return lane

    def advance(self, lanes: Sequence[Lane]) -> dict[Lane, EpochReport | Exception]:
        """For each lane what the next turn of `run_trial` gives, or the exception that it raises.

        After a resume the last report again, then an epoch's each, at the end that of the chosen epoch. Lanes with an
        epoch to train do so side by side, those of one structure that are judged alike in one vectorised step. A lane
        that failed touches no other, and is to be advanced no more; nor is one that told its last report.
        """
        outcome: dict[Lane, EpochReport | Exception] = {}
        together: dict[tuple[TrialConfig, EvaluationConfig], list[Lane]] = {}
        for lane in lanes:
            if lane.untold:
                assert lane.state.last is not None
                outcome[lane], lane.untold = lane.state.last, False
            elif lane.state.epoch == lane.config.epochs:
                outcome[lane] = _attempted(lane.finish)
            else:
                together.setdefault((lane.structure, lane.judge), []).append(lane)
        for group in together.values():
            outcome |= self._train_and_judge(group)
        return {lane: outcome[lane] for lane in lanes}

    def _train_and_judge(self, lanes: list[Lane]) -> dict[Lane, EpochReport | Exception]:
        """An epoch of lanes of one structure, judged alike; each is said to have taken its share of the time."""
        models, optimizers = ([getattr(lane.state, part) for lane in lanes] for part in ("model", "optimizer"))
        perturbations = [lane.perturbation for lane in lanes if lane.perturbation is not None]
        start = time.perf_counter()
        model = StackedModel(models)
        optimizer = StackedAdamW(model, optimizers)
        trained = train_together(
            model,
            optimizer,
            [lane.config for lane in lanes],
            [lane.state.epoch + 1 for lane in lanes],
            self.train,
            perturbations or None,
        )
        model.unstack(models)
        optimizer.unstack(optimizers)
        middle = time.perf_counter()
        judged = judge_together(
            model,
            self.validation,
            self.judging,
            lanes[0].judge,
            generator=judging_generator(self.evaluation, self.device),
        )
        train_seconds, evaluation_seconds = (
            spent / len(lanes) for spent in (middle - start, time.perf_counter() - middle)
        )

        def closed(
            lane: Lane, terms: dict[str, float] | OtsweepError, evaluation: Evaluation | OtsweepError
        ) -> EpochReport | Exception:
            if isinstance(terms, OtsweepError):
                return terms
            if isinstance(evaluation, OtsweepError):
                return evaluation
            return _attempted(
                lambda: lane.close_epoch(
                    evaluation, terms, train_seconds=train_seconds, evaluation_seconds=evaluation_seconds
                )
            )

        found = zip(lanes, trained, judged, strict=True)
        return {lane: closed(lane, terms, evaluation) for lane, terms, evaluation in found}


def _attempted(work: Callable[[], EpochReport]) -> EpochReport | Exception:
    """What `work` returns or raises."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever a lane's own store or numbers do, its neighbours go on
        return error

"""What trials will cost, before they are run: a little of each is done as they do it, and timed.

What a step costs depends on how the objective is made (attack steps, terms, how many images), not on what the images
show or how far the model has come: the solvers of transport make a fixed number of steps. So a few steps of a fresh
model tell those of all epochs. Judging is different: an image leaves the attack once the model is wrong. It is timed at
both ends, on a model that is wrong from the start and on one that never is. Where the preparation is not done yet,
stand-ins of the same shapes take its place, and a little of each of its stages is done and timed too.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks import frozen
from trainer.config import EvaluationConfig, TrialConfig
from trainer.cost import Cost
from trainer.data import Split, load_data
from trainer.files import NotPrepared, ReadOnlyCache, Store, save_checkpoint, to_bytes
from trainer.invariance import (
    INVARIANCE_ATTACKS,
    TRAINING_BATCH,
    Judge,
    JudgingSet,
    PreparationPipeline,
    Prepared,
    TrainingPerturbation,
    alignments_for,
    allowed_targets,
    bring_back,
    build_judge,
    find_neighbours,
    recipe_for,
    train_member,
    training_half,
    training_passes,
)
from trainer.objective import Knobs
from trainer.parallel import threads
from trainer.report import EpochReport
from trainer.training.evaluation import BATCH, Evaluation, evaluate, judging_attacks, predict_labels
from trainer.training.pack import check_packable
from trainer.training.stacked import train_together
from trainer.training.stacking import StackedAdamW, StackedModel
from trainer.training.step import check_batch_size
from trainer.training.trial import (
    MODEL_FILE,
    TrialState,
    advance,
    identity,
    initial_state,
    invariance_images,
    judging_generator,
    model_file,
    to_device,
    to_dict,
    train_epoch,
)

_LEAST_STEPS, _MOST_STEPS = 3, 12
"""Timed of a configuration, after one that warms up: as many as fit into its seconds."""
_SECONDS = 1.0

_SAMPLE_SOURCES, _SAMPLE_LABELS = 128, 1024
_SAMPLE_BATCHES, _SAMPLE_PASSES = 4, 2
"""Of the preparation's stages: images whose neighbours are sought, images that an oracle labels, and of each of an
oracle's members the batches of a pass and the passes, after one that warms up."""


class _Judged(NamedTuple):
    """The judging of one kind of model."""

    low: float
    high: float
    numbers: Evaluation


class Timer:
    """Times configurations one after the other, each as a trial of its own would run in this process.

    Args:
        evaluation: what trials are judged by.
        data_dir: where published files are looked for.
        cache_dir: what is prepared there is used; nothing is added but decoded data.
        device: a torch device such as `cpu` or `cuda:0`.

    Raises:
        InputError: for data that can't be had.
    """

    def __init__(
        self, evaluation: EvaluationConfig, *, data_dir: Path | None, cache_dir: Path, device: str = "cpu"
    ) -> None:
        self.evaluation, self.device = evaluation, torch.device(device)
        data = load_data(evaluation, data_dir=data_dir, cache_dir=cache_dir)
        self.stages = _Stages(data, evaluation, ReadOnlyCache(cache_dir / "prepared"), lambda stage, done, total: None)
        self.prepared = Prepared(data, evaluation, self.stages)
        self.train, self.validation = (to_device(split, self.device) for split in (data.train, data.validation))
        self.judging = self.judging_set().to(self.device)
        initial_state(TrialConfig(), self.prepared, self.device)  # torch imports much at its first optimiser
        self.perturbations: dict[str, tuple[TrainingPerturbation, float]] = {}
        """By norm, with the seconds that they took."""
        self.judged: dict[tuple[str, int], _Judged] = {}
        """By architecture and size of the embedding."""

    def cost(self, config: TrialConfig, store: Store, *, seconds: float = _SECONDS) -> Cost:
        """What a trial of a configuration costs.

        Args:
            store: what it keeps is written there, and deleted.
            seconds: how long steps are timed, as far as that is possible with `LEAST_STEPS` to `MOST_STEPS` of them.

        Raises:
            InputError: for a batch larger than the training split.
            TrialFailed: for a loss that is not finite after a few steps.
        """
        check_batch_size(config.batch_size, len(self.train.labels))
        wall, begun = time.perf_counter(), self.now()
        state = initial_state(config, self.prepared, self.device)
        beginning = self.now() - begun
        perturbation, perturbing = self.perturbation(config) if config.uses_invariance else (None, 0.0)
        steps = len(self.train.labels) // config.batch_size
        warming, _ = self.time_steps(state, config, perturbation, 1)
        count = min(max(_LEAST_STEPS, int(seconds / warming[0])), _MOST_STEPS, steps)
        each, terms = self.time_steps(state, config, perturbation, count)
        step = fmean(each[:-1] or each)
        judged = self.time_judging(state, config)
        timed, wall = self.now() - begun, time.perf_counter() - wall
        state.model.train()
        report = EpochReport(
            epoch=config.epochs,
            final=False,
            **judged.numbers._asdict(),
            learning_rate=config.learning_rate,
            train_seconds=steps * step,
            evaluation_seconds=judged.high,
            terms=terms,
        )
        saving, checkpoint, model = self.time_saving(state, config, report, store)
        return Cost(
            beginning=beginning + perturbing,
            steps=steps,
            step=step,
            diagnosis=max(0.0, each[-1] - step),
            judging_low=judged.low,
            judging_high=judged.high,
            saving=saving,
            checkpoint_bytes=checkpoint,
            model_bytes=model,
            timed=timed,
            wall=wall,
            report=report.to_dict(),
        )

    def time_steps(
        self, state: TrialState, config: TrialConfig, perturbation: TrainingPerturbation | None, count: int
    ) -> tuple[list[float], dict[str, float]]:
        """Seconds of each of so many steps, and what they tell of the loss; the last one is diagnosed."""
        part, perturbed = self.first(count * config.batch_size, perturbation)
        ticks = [self.now()]
        terms = train_epoch(
            state, part, perturbed, config, Knobs.of(config, self.device), lambda *step: ticks.append(self.now())
        )
        return [after - before for before, after in zip(ticks, ticks[1:], strict=False)], terms

    def first(self, rows: int, perturbation: TrainingPerturbation | None) -> tuple[Split, TrainingPerturbation | None]:
        """So many training images, and what they are perturbed to."""
        part = Split(*(field[:rows] for field in self.train))
        return part, None if perturbation is None else TrainingPerturbation(*(field[:rows] for field in perturbation))

    def pack_gain(self, config: TrialConfig, lanes: int) -> float:
        """How many times faster the steps of so many trials are in a pack than one after the other.

        Raises:
            InputError: for a configuration that can't be packed.
        """
        check_packable(config)
        configs = [config.replace(seed=lane) for lane in range(lanes)]
        states = [initial_state(each, self.prepared, self.device) for each in configs]
        perturbation = self.perturbation(config)[0] if config.uses_invariance else None
        model = StackedModel([state.model for state in states])
        optimizer = StackedAdamW(model, [state.optimizer for state in states])

        def together(steps: int) -> float:
            part, perturbed = self.first(steps * config.batch_size, perturbation)
            begun = self.now()
            train_together(model, optimizer, configs, [1] * lanes, part, perturbed and [perturbed] * lanes)
            return self.now() - begun

        steps = min(_LEAST_STEPS, len(self.train.labels) // config.batch_size)
        for warming in (True, False):
            packed = together(1 if warming else steps)
            alone, _ = self.time_steps(states[0], config, perturbation, 1 if warming else steps)
        return lanes * sum(alone) / packed

    def time_judging(self, state: TrialState, config: TrialConfig) -> _Judged:
        """One batch of the images, and as large a share of the judging set, stands for all.

        The attack is the sweep's, with a budget of 0: what the model says of an image then never changes, so that it
        withstands all steps where the label is its own answer, and none where it is another.
        """
        kind = (config.architecture, config.embedding_size)
        if kind in self.judged:
            return self.judged[kind]
        count = min(len(self.validation.labels), BATCH[self.device.type])
        share = count / len(self.validation.labels)
        images = self.validation.images[:count]
        judging = JudgingSet(*(field[: math.ceil(share * len(self.judging.images))] for field in self.judging))
        attacks = judging_attacks(self.evaluation.replace(eval_sensitivity_epsilon=0.0))
        with frozen(state.model):
            answers = predict_labels(state.model, images, batch_size=count)

        def judge(labels: Tensor) -> tuple[float, Evaluation]:
            begun, generator = self.now(), judging_generator(self.evaluation, self.device)
            numbers = evaluate(state.model, Split(images, labels), judging, attacks, generator=generator)
            return (self.now() - begun) / share, numbers

        judge((answers + 1) % self.prepared.data.classes)  # the first pass of a size is slower
        low, _ = judge((answers + 1) % self.prepared.data.classes)
        high, numbers = judge(answers)
        self.judged[kind] = _Judged(low, max(low, high), numbers)
        return self.judged[kind]

    def time_saving(
        self, state: TrialState, config: TrialConfig, report: EpochReport, store: Store
    ) -> tuple[float, int, int]:
        """Seconds of a checkpoint, its bytes, and those of the chosen model."""
        advance(state, report, config)
        begun = time.perf_counter()
        save_checkpoint(store, 1, to_dict(state, identity(config, self.evaluation, self.prepared)))
        saving = time.perf_counter() - begun
        store.write(MODEL_FILE, to_bytes(model_file(state, config, self.prepared)))
        sizes = {name: len(store.read(name)) for name in store.names()}
        for name in sizes:
            store.delete(name)
        model = sizes.pop(MODEL_FILE)
        return saving, sum(sizes.values()), model

    def perturbation(self, config: TrialConfig) -> tuple[TrainingPerturbation, float]:
        """X_v of the training images at some budget, with the seconds that it took: they are alike at all."""
        norm = config.invariance_norm
        if norm not in self.perturbations:
            begun = self.now()
            try:
                found = invariance_images(config, self.prepared, self.device)
                assert found is not None
            except NotPrepared:
                found = stand_in(self.train, epsilon=config.invariance_epsilon)
            self.perturbations[norm] = found, self.now() - begun
        return self.perturbations[norm]

    def judging_set(self) -> JudgingSet:
        """What was prepared, else as many validation images as they are."""
        try:
            return self.prepared.judging
        except NotPrepared:
            count = self.evaluation.eval_invariance_size or len(self.prepared.data.validation.labels)
            images, labels = (field[:count] for field in self.prepared.data.validation)
            return JudgingSet(images, images, labels, torch.arange(len(labels)), labels)

    def now(self) -> float:
        """Seconds, with the device's work done; on one core that core's, which no other process can take."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()


def stand_in(train: Split, *, epsilon: float) -> TrainingPerturbation:
    """Each image moved towards another by at most epsilon, half of them labelled as the other, a tenth left out."""
    generator = torch.Generator().manual_seed(0)
    other = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
    chance = torch.rand(len(other), generator=generator).to(train.labels.device)
    images = train.images + (train.images[other] - train.images).clamp(-epsilon, epsilon)
    return TrainingPerturbation(images, torch.where(chance < 0.5, train.labels[other], train.labels), chance < 0.9)


# ------------------------------------------------------------------------------------------------------- preparation


class _Enough(Exception):
    """A stage has been at work for long enough to know its pace."""


class _Stages(PreparationPipeline):
    """The preparation's stages: those that the cache lacks are begun, and their pace tells how long they would take."""

    def seconds(self, norms: tuple[str, ...]) -> dict[str, float]:
        """Of the one core that the preparation is given: for every stage that is missing, by its name.

        Args:
            norms: of the training perturbations.
        """
        with threads(1):
            return self.missing(norms)

    def missing(self, norms: tuple[str, ...]) -> dict[str, float]:
        told: dict[str, float] = {}
        judged = self._evaluation.eval_invariance_norm
        if _lacking(lambda: self.judging_set("validation")):
            images = self._evaluation.eval_invariance_size or len(self._data.validation.labels)
            told |= self.seeking("validation", judged) | self.training("judge")
            told |= {"validation judging set": images * self.labelling("judge")}
        for norm in norms:
            if _lacking(lambda norm=norm: self.perturbations(norm)):
                told |= self.seeking("train", norm) | self.training("teacher")
                answers = self.pair_count() * (len(INVARIANCE_ATTACKS[norm].budgets) - 1)
                told |= {f"{norm} training labels": answers * self.labelling("teacher")}
        return told

    def pair_count(self) -> int:
        """Training images, each once for every class that it may be turned into."""
        allowed = allowed_targets(self._data.classes, self._table)
        return int(allowed[self._data.train.labels].sum())

    def seeking(self, split: str, norm: str) -> dict[str, float]:
        """The neighbours of a split's images."""
        if not _lacking(lambda: self._pairs(split, norm, nearest=1)):
            return {}
        size = None if split == "train" else self._evaluation.eval_invariance_size or None
        images, labels = (field[:size] for field in getattr(self._data, split))
        alignments, begun = alignments_for(self._data.name, norm), time.process_time()
        index, built = self._index(norm), time.process_time()
        found = find_neighbours(
            images[:_SAMPLE_SOURCES],
            labels[:_SAMPLE_SOURCES],
            index,
            alignments=alignments,
            allowed=allowed_targets(self._data.classes, self._table),
        )
        bring_back(self._data.train.images, found, alignments)
        pace = (time.process_time() - built) / min(_SAMPLE_SOURCES, len(labels))
        return {f"{split} neighbours ({norm})": built - begun + len(labels) * pace}

    def training(self, role: str) -> dict[str, float]:
        """An oracle, from a few steps of each of its members."""
        if not _lacking(lambda: self.ensemble(role)):
            return {}
        images, labels = (field[training_half(len(field), role)] for field in self._data.train)
        recipe, members = recipe_for(self._data.name), self.untrained(role).members
        steps = training_passes(recipe, len(labels)) * math.ceil(len(labels) / TRAINING_BATCH)
        rows = slice(_SAMPLE_BATCHES * TRAINING_BATCH)
        pace = sum(
            _pace_of_passes(
                lambda tell, member=member, threshold=threshold: train_member(
                    member,
                    images[rows],
                    labels[rows],
                    recipe,
                    recipe.uneven if threshold == 0 else None,
                    torch.Generator().manual_seed(0),
                    tell,
                )
            )
            for member, threshold in zip(members, recipe.thresholds, strict=True)
        )
        batches = math.ceil(len(labels[rows]) / TRAINING_BATCH)
        return {f"{role} oracle": steps * pace / batches}

    def labelling(self, role: str) -> float:
        """An oracle's answer to one image."""
        images, untrained = self._data.train.images[:_SAMPLE_LABELS], self.untrained(role)
        untrained.label(images[: len(images) // 4])
        begun = time.process_time()
        untrained.label(images)
        return (time.process_time() - begun) / len(images)

    def untrained(self, role: str) -> Judge:
        return build_judge(self._data.name, role, tuple(self._data.train.images.shape[1:]), self._data.classes)


def _lacking(part: Callable[[], object]) -> bool:
    """Whether a part is not in the cache."""
    try:
        part()
    except NotPrepared:
        return True
    return False


def _pace_of_passes(train: Callable[[Callable[[], None]], object]) -> float:
    """Seconds of a pass of `train`, which is given what to call after each, and not let come to its end."""
    ticks: list[float] = []

    def tell() -> None:
        ticks.append(time.process_time())
        if len(ticks) > _SAMPLE_PASSES:
            raise _Enough

    with contextlib.suppress(_Enough):
        train(tell)
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)

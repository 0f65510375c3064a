"""TODO one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.data import Split
from trainer.errors import InputError
from trainer.invariance.attacks import INVARIANCE_ATTACKS, cheapest
from trainer.invariance.class_index import Neighbours
from trainer.invariance.judge import ABSTAINS

NEAREST = 3
"""Training images of each target class from which the per-model attack starts."""
BATCH = 1024

Progress = Callable[[str, int, int], None]
"""Told a stage, how much of it is done, and how much there is."""


class JudgingSet(NamedTuple):
    """Perturbed images of the fixed transfer attack, and what the judge says they show."""

    images: Tensor
    """(M, C, H, W) in [0, 1], perturbed."""
    source_images: Tensor
    """(M, C, H, W) in [0, 1], what they were made from."""
    source_labels: Tensor
    """(M,) int64."""
    source_index: Tensor
    """(M,) int64, into the split."""
    oracle_labels: Tensor
    """(M,) int64, -1 where the judge abstained."""

    @property
    def changed(self) -> Tensor:
        """C, (M,) bool: the judge sees another class than the source's."""
        return (self.oracle_labels != ABSTAINS) & (self.oracle_labels != self.source_labels)

    @property
    def unchanged(self) -> Tensor:
        """(M,) bool: the judge still sees the source's class."""
        return self.oracle_labels == self.source_labels

    @property
    def digest(self) -> str:
        """Of the perturbed images and their labels: trials may be compared only where it is the same.

        An oracle that was trained on another kind of processor can differ in single answers.
        """
        content = self.images.numpy().tobytes() + self.oracle_labels.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def to(self, device: torch.device | str) -> JudgingSet:
        return JudgingSet(*(field.to(device) for field in self))


class TrainingPerturbation(NamedTuple):
    """One invariance perturbation of every training image, at one budget."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) int64: the target's class where the teacher sees it, else the source's."""
    keep: Tensor
    """(N,) bool: False where the teacher sees neither, or where the budget lies where its answer turns."""


class Pairs(NamedTuple):
    """Sources, their neighbours of other classes, and what the perturbations of each pair are made from."""

    sources: Split
    neighbours: Neighbours
    plan: Tensor
    """(Q, C', H, W) uint8, made by the attack."""

    def perturb(self, attack: str, pairs: Tensor, epsilon: float | Tensor) -> Tensor:
        """(S, C, H, W): the perturbations of some `pairs` (S,)."""
        images = self.sources.images[self.neighbours.source[pairs]]
        return INVARIANCE_ATTACKS[attack].perturb(images, self.plan[pairs], epsilon=epsilon)

    def perturb_all(self, attack: str, epsilon: float) -> tuple[Tensor, Tensor]:
        """Every source perturbed towards the target that costs least.

        Returns:
            Images (N, C, H, W), one without a pair left as it is, and the pair that was chosen (N,), -1 for none.
        """
        cost = torch.empty(len(self.plan))
        for part in torch.arange(len(self.plan)).split(BATCH):
            images = self.sources.images[self.neighbours.source[part]]
            cost[part] = INVARIANCE_ATTACKS[attack].cost(images, self.perturb(attack, part, epsilon), self.plan[part])
        chosen = cheapest(self.neighbours, cost, len(self.sources.labels))
        perturbed = self.sources.images.clone()
        for part in (chosen >= 0).nonzero().squeeze(1).split(BATCH):
            perturbed[part] = self.perturb(attack, chosen[part], epsilon)
        return perturbed, chosen


@dataclass(frozen=True)
class PerturbationCache:
    """The training images' neighbours and what the teacher sees at each budget, so that any budget is cheap."""

    attack: str
    pairs: Pairs
    answers: Tensor
    """(G, Q) int8: the teacher's label at each of the attack's budgets, -1 where it abstains."""

    def at(self, epsilon: float) -> TrainingPerturbation:
        """Every training image perturbed towards the target that costs least at this budget.

        Raises:
            InputError: for a budget outside [0, 1].
        """
        if not 0 <= epsilon <= 1:
            raise InputError(f"invariance_epsilon = {epsilon!r}: must be at least 0 and at most 1")
        images, chosen = self.pairs.perturb_all(self.attack, epsilon)
        known, source = chosen >= 0, self.pairs.sources.labels
        answers = torch.where(known, self._answers_at(epsilon)[chosen].long(), source)
        targets = torch.where(known, self.pairs.neighbours.target[chosen], source)
        keep = known & ((answers == targets) | (answers == source))
        return TrainingPerturbation(images, torch.where(keep, answers, source), keep)

    def _answers_at(self, epsilon: float) -> Tensor:
        """(Q,): what the teacher says at the budgets on either side of `epsilon`, -1 where the two differ."""
        budgets = INVARIANCE_ATTACKS[self.attack].budgets
        below = max(g for g, budget in enumerate(budgets) if budget <= epsilon)
        above = min(g for g, budget in enumerate(budgets) if budget >= epsilon)
        return torch.where(self.answers[below] == self.answers[above], self.answers[below], ABSTAINS)


class _ModelAttack(NamedTuple):
    """What the per-model attack found, for N sources."""

    right: Tensor
    """(N,) bool: the model had the source right when clean."""
    attackable: Tensor
    """(N,) bool: some candidate shows another class to the oracle."""
    stuck: Tensor
    """(N,) bool: for one of them the model's answer stays that to the clean source."""
    accurate: Tensor
    """(N,) bool: the model gives the oracle's label to every candidate of an attackable source."""
    images: Tensor
    """(N, C, H, W): a candidate at which it is stuck, the source where there is none."""


@dataclass(frozen=True)
class InvarianceAdversary:
    """The per-model invariance attack: the candidates whose label the judge sees changed, whatever the model.

    Candidates are targets times neighbours, each with its alignment, times budgets up to the limit.
    """

    attack: str
    pairs: Pairs
    pair: Tensor
    """(J,) int64, sorted."""
    epsilon: Tensor
    """(J,) float32."""
    label: Tensor
    """(J,) int64: what the judge sees, never the source's class."""

    def run(self, logits: Callable[[Tensor], Tensor]) -> _ModelAttack:
        """Find for every source a candidate at which the model's answer does not change.

        Args:
            logits: the model, images (B, C, H, W) in [0, 1] to logits (B, K).
        """
        sources, count = self.pairs.sources, len(self.pairs.sources.labels)
        clean = torch.cat([logits(part).argmax(1) for part in sources.images.split(BATCH)])
        source = self.pairs.neighbours.source[self.pair]
        stuck, missed = torch.zeros(len(source), dtype=torch.bool), torch.zeros(len(source), dtype=torch.bool)
        images = sources.images.clone()
        for part in torch.arange(len(source)).split(BATCH):
            candidates = self.pairs.perturb(self.attack, self.pair[part], self.epsilon[part])
            answers = logits(candidates).argmax(1)
            stuck[part], missed[part] = answers == clean[source[part]], answers != self.label[part]
            images[source[part][stuck[part]]] = candidates[stuck[part]]
        attackable = _marked(source, count)
        return _ModelAttack(
            right=clean == sources.labels,
            attackable=attackable,
            stuck=_marked(source[stuck], count),
            accurate=attackable & ~_marked(source[missed], count),
            images=images,
        )


def _marked(index: Tensor, count: int) -> Tensor:
    """(count,) bool: True at every place that `index` names."""
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, index, True)

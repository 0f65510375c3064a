"""Invariance perturbations of whole sets: to judge by, to train with, and per model.

Shapes: N images, C channels, H rows, W columns, K classes, M images of a judging set, Q (source, target) pairs, G
budgets, J candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
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
"""Number of training images of each target class from which the per-model attack starts."""
BATCH = 1024
"""Images that are made or labelled at once."""

Progress = Callable[[str, int, int], None]
"""Function of a stage's name, how much of it is done, and how much there is."""


class JudgingSet(NamedTuple):
    """Perturbed images of the fixed transfer attack, and what crowds of people see in them, by the judge."""

    images: Tensor
    """(M, C, H, W) in [0, 1], perturbed."""
    source_images: Tensor
    """(M, C, H, W) in [0, 1], the images that they were made from."""
    source_labels: Tensor
    """(M,) int64 classes."""
    source_index: Tensor
    """(M,) int64, positions in the split."""
    shares: Mapping[str, Tensor]
    """Crowds by name, first that of the evaluation, each with q, the share (M, K) of it who give each answer."""

    @property
    def crowd(self) -> Tensor:
        """The shares (M, K) of the evaluation's crowd."""
        return next(iter(self.shares.values()))

    @property
    def changed(self) -> Tensor:
        """The share (M,) of the evaluation's crowd who see another class than the source's."""
        return 1 - self.crowd.gather(1, self.source_labels[:, None]).squeeze(1)

    @property
    def attainable(self) -> float:
        """The largest invariance accuracy that any model can have: people who see a change disagree, and some slip."""
        others = self.crowd.scatter(1, self.source_labels[:, None], 0.0)
        return (others.amax(1).sum() / others.sum()).item()

    @property
    def digest(self) -> str:
        """Digest of the perturbed images and the crowd's answers; trials may be compared only where it is the same.

        A judge that was trained on another kind of processor can differ a little.
        """
        content = self.images.numpy().tobytes() + self.crowd.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def to(self, device: torch.device | str) -> JudgingSet:
        """Copy all fields to a device."""
        return self._each(lambda field: field.to(device))

    def first(self, count: int) -> JudgingSet:
        """Return the first so many images."""
        return self._each(lambda field: field[:count])

    def _each(self, change: Callable[[Tensor], Tensor]) -> JudgingSet:
        """Return the set with every tensor changed alike."""
        shares = {name: change(crowd) for name, crowd in self.shares.items()}
        return self._replace(
            **{name: change(field) for name, field in self._asdict().items() if name != "shares"}, shares=shares
        )


class TrainingPerturbation(NamedTuple):
    """One invariance perturbation of every training image, at one budget."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) int64: the target's class where the teacher sees it, else the source's."""
    keep: Tensor
    """(N,) bool: False where the teacher sees neither, or its answer differs on either side of the budget."""


class Pairs(NamedTuple):
    """Sources, their neighbours of other classes, and what the perturbation of each pair is made from."""

    sources: Split
    neighbours: Neighbours
    plan: Tensor
    """(Q, C', H, W) uint8, made by the attack."""

    def perturb(self, attack: str, pairs: Tensor, epsilon: float | Tensor) -> Tensor:
        """Perturb some `pairs` (S,) within a budget, one or one for each: (S, C, H, W) in [0, 1]."""
        images = self.sources.images[self.neighbours.source[pairs]]
        return INVARIANCE_ATTACKS[attack].perturb(images, self.plan[pairs], epsilon=epsilon)

    def perturb_all(self, attack: str, epsilon: float) -> tuple[Tensor, Tensor]:
        """Perturb every source towards the target that costs least.

        Returns:
            Images (N, C, H, W) in [0, 1], left as they are without a pair; the chosen pair (N,), -1 for none.
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
    """The training images' neighbours and the teacher's answers at each budget, so that any budget is cheap."""

    attack: str
    pairs: Pairs
    answers: Tensor
    """(G, Q) int8: the teacher's label at each of the attack's budgets, -1 where it abstains."""

    def at(self, epsilon: float) -> TrainingPerturbation:
        """Perturb every training image towards the target that costs least at this budget.

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
        """Return the teacher's answer (Q,) at the budgets on either side of `epsilon`, -1 where the two differ."""
        budgets = INVARIANCE_ATTACKS[self.attack].budgets
        below = max(g for g, budget in enumerate(budgets) if budget <= epsilon)
        above = min(g for g, budget in enumerate(budgets) if budget >= epsilon)
        return torch.where(self.answers[below] == self.answers[above], self.answers[below], ABSTAINS)


class _ModelAttack(NamedTuple):
    """The outcome of the per-model attack on N sources; shares are of the crowd, in [0, 1]."""

    right: Tensor
    """(N,) bool: the model had the source right when clean."""
    changed: Tensor
    """(N,): the largest share who see a change in one of the candidates."""
    stuck: Tensor
    """(N,): the largest share who see a change in a candidate to which the model gives the same answer as to the clean
    source."""
    missed: Tensor
    """(N,): the largest share who see a change in a candidate and give another answer than the model."""
    images: Tensor
    """(N, C, H, W): the candidate of `stuck`, or the source where there is none."""


@dataclass(frozen=True)
class InvarianceAdversary:
    """The per-model invariance attack: of all candidates those that are worst for the model.

    Candidates are targets times neighbours, each with its alignment, times budgets up to the limit.
    """

    attack: str
    pairs: Pairs
    pair: Tensor
    """(J,) int64, sorted: the pair of each candidate."""
    epsilon: Tensor
    """(J,) float32: the budget of each candidate."""
    shares: Tensor
    """(J, K): the share of the crowd who give each answer to each candidate."""

    def run(self, logits: Callable[[Tensor], Tensor]) -> _ModelAttack:
        """Find the worst candidate of every source.

        Args:
            logits: the model, from images (B, C, H, W) in [0, 1] to logits (B, K).
        """
        sources, source = self.pairs.sources, self.pairs.neighbours.source[self.pair]
        clean = torch.cat([logits(part).argmax(1) for part in sources.images.split(BATCH)])
        answers = torch.cat(
            [
                logits(self.pairs.perturb(self.attack, self.pair[part], self.epsilon[part])).argmax(1)
                for part in torch.arange(len(source)).split(BATCH)
            ]
        )
        own = sources.labels[source]
        changed = 1 - self.shares.gather(1, own[:, None]).squeeze(1)
        shared = torch.where(answers == own, 0.0, self.shares.gather(1, answers[:, None]).squeeze(1))
        stuck = torch.where(answers == clean[source], changed, 0.0)
        return _ModelAttack(
            right=clean == sources.labels,
            changed=self._largest(changed),
            stuck=self._largest(stuck),
            missed=self._largest(changed - shared),
            images=self._worst_images(stuck),
        )

    def _largest(self, values: Tensor) -> Tensor:
        """Return the largest of the candidates' values (J,) of every source (N,); 0 where there is no candidate."""
        index = self.pairs.neighbours.source[self.pair]
        return torch.zeros(len(self.pairs.sources.labels)).scatter_reduce_(0, index, values, "amax")

    def _worst_images(self, stuck: Tensor) -> Tensor:
        """Return every source's candidate of the largest value (J,) above 0, else the source: (N, C, H, W)."""
        source = self.pairs.neighbours.source[self.pair]
        worst = ((stuck > 0) & (stuck == self._largest(stuck)[source])).nonzero().squeeze(1)
        images = self.pairs.sources.images.clone()
        for part in worst.split(BATCH):
            images[source[part]] = self.pairs.perturb(self.attack, self.pair[part], self.epsilon[part])
        return images

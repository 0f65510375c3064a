"""Evidence for or against an attack: is a model robust, or does its gradient hide the way (gradient masking)?

The checks are those of Athalye et al. 2018 (section 3.1) and Carlini et al. 2019 (section 4): an attack that means
something breaks nothing at budget 0 and everything at a large one, gains nothing from more iterations, and breaks at
least as much as any attack that knows less.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks.apgd import APGD_SLACK, apgd_attacks
from trainer.attacks.attack import Attack, Victim
from trainer.attacks.checks import check_images
from trainer.attacks.gradient import cross_entropy_loss, input_gradient, pgd
from trainer.attacks.logits import Logits, predict
from trainer.attacks.norms import norm_named
from trainer.attacks.square import SQUARE_SLACK, square_attack
from trainer.attacks.worst_cases import worst_case
from trainer.errors import InputError
from trainer.intervals import Interval, wilson_interval

_MASKING = "gradient masking suspected"

_ZERO_GRADIENT_ALARM = 0.05
"""Share of images without any gradient above which masking is suspected; trained models have next to none."""

_CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Budgets of the curve, in units of the judging budget."""


class Curve(NamedTuple):
    """Accuracy as a function of the budget."""

    epsilons: tuple[float, ...]
    """Budgets in pixel units, from 0 upwards."""
    accuracies: tuple[float, ...]
    """Share right at this budget and at every smaller one, whose images lie in this ball too: never rises."""
    alone: tuple[float, ...]
    """Share right under this budget's attack alone: rises where an attack fails."""

    @property
    def area(self) -> float:
        """Mean of `accuracies` over the range of budgets, by trapezoids: 1 where nothing is ever broken."""
        return float(torch.trapezoid(torch.tensor(self.accuracies), torch.tensor(self.epsilons))) / self.epsilons[-1]


_AttacksAt = Callable[[float, int], Sequence[Attack]]
"""Function from (epsilon, steps) to the attacks under examination."""


def white_box(norm: str, *, classes: int) -> _AttacksAt:
    """Build `apgd_attacks` towards the three likeliest wrong classes, for any budget and number of steps."""
    return lambda epsilon, steps: apgd_attacks(
        norm=norm, epsilon=epsilon, steps=steps, classes=classes, targets=3, slack=APGD_SLACK
    )


def accuracy_curve(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float],
    attacks_at: _AttacksAt,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 512,
) -> Curve:
    """Measure the worst-case accuracy at 0 and at each of the budgets.

    Args:
        logits: images (B, C, H, W) to logits (B, K), in evaluation mode.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) classes from 0 to K - 1.
        epsilons: above 0, rising, in pixel units.
        attacks_at: the attacks, by budget and steps.
        steps: iterations of each attack.
        generator: seeds the attacks.
        batch_size: images per call of the model.

    Raises:
        InputError: for budgets that do not rise from above 0, and for what `worst_case` refuses.
    """
    budgets = (0.0, *epsilons)
    if len(budgets) < 2 or sorted(set(budgets)) != list(budgets):
        raise InputError(f"epsilons = {tuple(epsilons)}: must be above 0 and rise")
    survived = torch.stack(
        [
            worst_case(
                logits, images, labels, attacks_at(epsilon, steps), generator=generator, batch_size=batch_size
            ).survived
            for epsilon in budgets
        ]
    )
    return Curve(budgets, tuple(map(_share, survived.cumprod(0))), tuple(map(_share, survived)))


@dataclass(frozen=True)
class Evidence:
    """The findings of the checks of one model. Shares lie in [0, 1]; an accuracy counts images right when clean too."""

    size: int
    """N, the number of images that every share refers to."""
    clean_accuracy: float
    curve: Curve
    """Accuracy under the examined attacks at budgets from 0 to twice the judging budget, that budget among them."""
    white_box_accuracy: float
    """Accuracy under the examined attacks at the judging budget."""
    doubled_accuracy: float
    """Accuracy under the same attacks with twice the iterations."""
    large_epsilon_accuracy: float
    """Accuracy under the same attacks at a budget that reaches every image: 0 if the attacks mean anything."""
    square_accuracy: float
    """Accuracy under Square, which reads no gradient."""
    noise_accuracy: float
    """Accuracy under ten draws of random noise from the ball."""
    transfer_accuracy: float | None
    """Accuracy on images made against the undefended baseline; None without one."""
    zero_gradient_share: float
    """Share of images at which the cross-entropy has no gradient at all."""
    unstable_share: float
    """Share of images to which the model gives other logits when asked again."""

    @property
    def warnings(self) -> list[str]:
        """One message per failed check, each opening with what it suggests; none for a healthy model."""
        return [*self._meaningless(), *self._masked(), *self._beaten()]

    def _meaningless(self) -> Iterator[str]:
        """Yield failures of what any attack on any fixed model fulfils."""
        if self.unstable_share > 0:
            yield f"randomised output: {self.unstable_share:.1%} of the images get other logits when asked again"
        if self.curve.alone[0] != self.clean_accuracy:
            yield (
                f"wrong at epsilon 0: accuracy {self.curve.alone[0]:.4f} without any perturbation, "
                f"clean accuracy {self.clean_accuracy:.4f}"
            )
        interval = self._interval(self.white_box_accuracy)
        if self.doubled_accuracy < interval.low:
            yield (
                f"attack not converged: twice the iterations leave {self.doubled_accuracy:.3f}, "
                f"below the interval {_shown(interval)} of {self.white_box_accuracy:.3f}"
            )

    def _masked(self) -> Iterator[str]:
        """Yield signs that gradients do not show the way."""
        if self.zero_gradient_share > _ZERO_GRADIENT_ALARM:
            yield f"{_MASKING}: {self.zero_gradient_share:.1%} of the images have no gradient"
        if self.large_epsilon_accuracy > 0:
            yield f"{_MASKING}: accuracy {self.large_epsilon_accuracy:.3f} is left at an unbounded budget"
        for (smaller, left), (larger, risen) in pairwise(zip(self.curve.epsilons, self.curve.alone, strict=True)):
            if risen > self._interval(left).high:
                yield f"{_MASKING}: accuracy rises from {left:.3f} at {smaller:g} to {risen:.3f} at {larger:g}"

    def _beaten(self) -> Iterator[str]:
        """Yield attacks that know less than the examined ones and still break more."""
        interval = self._interval(self.white_box_accuracy)
        rivals = {
            "Square": self.square_accuracy,
            "random noise": self.noise_accuracy,
            "transfer from an undefended baseline": self.transfer_accuracy,
        }
        for name, accuracy in rivals.items():
            if accuracy is not None and accuracy < interval.low:
                yield (
                    f"{_MASKING}: {name} leaves {accuracy:.3f}, the white-box attack "
                    f"{self.white_box_accuracy:.3f} (interval {_shown(interval)})"
                )

    def _interval(self, share: float) -> Interval:
        return wilson_interval(round(share * self.size), self.size)


def gather_evidence(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    epsilon: float,
    generator: torch.Generator,
    undefended: Logits | None = None,
    attacks_at: _AttacksAt | None = None,
    steps: int = 50,
    queries: int = 1000,
    batch_size: int = 512,
) -> Evidence:
    """Run every check on one model.

    Args:
        logits: images (B, C, H, W) to logits (B, K), in evaluation mode (`frozen`).
        images: (N, C, H, W) in [0, 1].
        labels: (N,) classes from 0 to K - 1.
        norm: a name in `NORMS`.
        epsilon: the judging budget in pixel units, above 0.
        generator: seeds the attacks.
        undefended: logits of a baseline trained without a defence, in evaluation mode; None skips that check.
        attacks_at: the attacks under examination; `white_box` if not given.
        steps: iterations of each of them.
        queries: calls of the model by Square.
        batch_size: images per call of the model.

    Raises:
        InputError: for what `worst_case` refuses, such as a model that returns probabilities.
    """
    check_images(images)
    attacks_at = attacks_at or white_box(norm, classes=predict(logits, images[:1], batch_size=1).shape[1])
    large = largest_epsilon(norm, images)

    def accuracy(*attacks: Attack) -> float:
        result = worst_case(logits, images, labels, attacks, generator=generator, batch_size=batch_size)
        return _share(result.survived)

    transfer = transfer_attack(undefended, norm=norm, epsilon=epsilon, steps=steps) if undefended else None
    curve = accuracy_curve(
        logits,
        images,
        labels,
        epsilons=[epsilon * factor for factor in _CURVE if factor <= 1 or epsilon * factor <= large],
        attacks_at=attacks_at,
        steps=steps,
        generator=generator,
        batch_size=batch_size,
    )
    return Evidence(
        size=len(images),
        clean_accuracy=accuracy(),
        curve=curve,
        white_box_accuracy=curve.alone[curve.epsilons.index(epsilon)],
        doubled_accuracy=accuracy(*attacks_at(epsilon, 2 * steps)),
        large_epsilon_accuracy=accuracy(*attacks_at(large, steps)),
        square_accuracy=accuracy(square_attack(norm=norm, epsilon=epsilon, queries=queries, slack=SQUARE_SLACK)),
        noise_accuracy=accuracy(noise_attack(norm=norm, epsilon=epsilon, draws=10)),
        transfer_accuracy=accuracy(transfer) if transfer else None,
        zero_gradient_share=_share(_has_no_gradient(logits, images, labels, batch_size)),
        unstable_share=_share(_is_unstable(logits, images, batch_size)),
    )


def largest_epsilon(norm: str, images: Tensor) -> float:
    """Return a budget, in pixel units, within which any image in [0, 1] reaches any other, (N, C, H, W)."""
    corner = torch.ones_like(images[:1])
    return float(norm_named(norm).size(corner))


def noise_attack(*, norm: str, epsilon: float, draws: int) -> Attack:
    """Build an attack that draws random points of the ball, which an attack must beat to mean anything."""
    ball = norm_named(norm)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        return (victim.images + ball.random_start(victim.images, epsilon, generator))[rows].clamp(0, 1)

    return Attack("noise", draws, run)


def transfer_attack(other: Logits, *, norm: str, epsilon: float, steps: int) -> Attack:
    """Build PGD against another model, to its last step: an image just past one boundary is not past another's."""
    ball = norm_named(norm)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        loss = cross_entropy_loss(other, victim.labels[rows])
        return pgd(loss, victim.images[rows], norm=ball, epsilon=epsilon, steps=steps)

    return Attack("transfer", 1, run)


def _has_no_gradient(logits: Logits, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Return where (N,) the cross-entropy has no gradient at all."""
    parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    gradients = torch.cat([input_gradient(cross_entropy_loss(logits, label), image) for image, label in parts])
    return (gradients == 0).flatten(1).all(1)


def _is_unstable(logits: Logits, images: Tensor, batch_size: int) -> Tensor:
    """Return where (N,) two calls of the model give different logits."""
    first, second = (predict(logits, images, batch_size=batch_size) for _ in range(2))
    return ~torch.isclose(first, second, rtol=1e-3, atol=1e-4).all(1)


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


def _shown(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"

"""Square (Andriushchenko et al. 2020): a random search that reads logits and no gradient.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attacks.attack import Attack, Victim
from trainer.attacks.draws import uniform
from trainer.attacks.logits import margin
from trainer.attacks.norms import NORMS, checked_ball, choose, positive

SQUARE_SLACK = 0.05
"""Slack of the attack on finalists. At every twentieth of the queries an image is given up that would keep more than
this share of its first margin if the margin fell as much in every twentieth to come as in the last."""


def square_attack(
    *, norm: str, epsilon: float, queries: int = 5000, restarts: int = 1, slack: float = math.inf
) -> Attack:
    """Build the Square attack (Andriushchenko et al. 2020).

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        queries: proposals per image and round, each a call of the model; the start takes one more.
        restarts: rounds.
        slack: see `SQUARE_SLACK`; by default no image is given up.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or queries or restarts below 1.
    """
    checked_ball(norm, epsilon)
    positive("queries", queries)
    squares = SQUARES[norm]

    @torch.no_grad()
    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """Run algorithm 1, in which an image is done at its first wrong answer."""
        images = best = victim.images[rows]
        least = first = earlier = torch.full_like(best[:, 0, 0, 0], math.inf)
        found, position = best.clone(), torch.arange(len(rows), device=rows.device)
        stretch = max(1, queries // 20)
        for query in range(queries + 1):
            if query == 0:
                random = uniform((len(victim.images), _start_numbers(images)), images, generator)[rows]
                candidates = squares.start(images, epsilon, random)
            else:
                random = uniform((len(victim.images), 5 + images.shape[1]), images, generator)[rows]
                side = squares.side(square_share((query - 1) / queries), images)
                candidates = squares.propose(images, best, side, epsilon, random)
            loss = margin(victim.logits(candidates), victim.labels[rows])
            best, least = choose(loss < least, candidates, best), torch.minimum(loss, least)
            found[position] = best
            going = least >= 0
            if query == 0:
                first = least
            if query % stretch == 0:
                left = (queries - query) / stretch
                going &= ~(least - left * (earlier - least) > slack * first)
                earlier = least
            kept = (values[going] for values in (position, rows, images, best, least, first, earlier))
            position, rows, images, best, least, first, earlier = kept
            if not len(rows):
                break
        return found

    return Attack("square", positive("restarts", restarts), run)


def square_share(progress: float) -> float:
    """Return p, the share of pixels that a square covers: 0.8, halved as progress goes from 0 to 1 (section 3.1)."""
    halvings = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    return 0.8 / 2 ** bisect_left(halvings, progress)


class _Squares(Protocol):
    """Square's moves under one norm. `random` (B, .) holds uniform numbers from [0, 1), a row per image."""

    def start(self, images: Tensor, epsilon: float, random: Tensor) -> Tensor:
        """Return first points (B, C, H, W) inside the ball and [0, 1]; use at most (C + 1) H W numbers per image."""
        ...

    def side(self, share: float, images: Tensor) -> int:
        """Return the side, in pixels, of a square that covers this share of an image."""
        ...

    def propose(self, images: Tensor, best: Tensor, side: int, epsilon: float, random: Tensor) -> Tensor:
        """Return the best points (B, C, H, W), changed in a square; use 5 + C numbers per image."""
        ...


class _LinfSquares:
    """Squares of one colour on the edge of the ball (section 3.3, algorithm 2)."""

    def start(self, images: Tensor, epsilon: float, random: Tensor) -> Tensor:
        """Draw vertical stripes of one pixel's width."""
        _, channels, _, width = images.shape
        stripes = _signs(random[:, : channels * width]).view(-1, channels, 1, width)
        return (images + epsilon * stripes).clamp(0, 1)

    def side(self, share: float, images: Tensor) -> int:
        height, width = images.shape[2:]
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def propose(self, images: Tensor, best: Tensor, side: int, epsilon: float, random: Tensor) -> Tensor:
        """Change a square by 2 epsilon: that moves it to the edge of the ball from anywhere inside."""
        window = window_at(random[:, :2], side, images)
        colours = _signs(random[:, 5:])[:, :, None, None]
        delta = best - images + 2 * epsilon * colours * window.inside
        return (images + NORMS["linf"].project(delta, epsilon)).clamp(0, 1)


class _L2Squares:
    """Pairs of opposite bumps in one square, whose budget comes from another square (section 3.4, algorithm 3)."""

    def start(self, images: Tensor, epsilon: float, random: Tensor) -> Tensor:
        """Draw about 5 by 5 tiles of bumps, each turned its own way and with its own sign in every channel."""
        _, channels, height, width = images.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        random = random[:, : (channels + 1) * down * across].view(-1, channels + 1, down, across)
        turned = (random[:, -1] < 0.5).long()
        tiles = two_bumps(side, images)[turned].transpose(2, 3).reshape(-1, 1, down * side, across * side)
        signs = _signs(random[:, :-1]).repeat_interleave(side, 2).repeat_interleave(side, 3)
        delta = F.pad(tiles * signs, (0, width - across * side, 0, height - down * side))
        return (images + epsilon * NORMS["l2"].steepest_step(delta)).clamp(0, 1)

    def side(self, share: float, images: Tensor) -> int:
        """Return an odd side, so that a bump has a middle, and at least 3 where the image has as many pixels."""
        height, width = images.shape[2:]
        wanted = max(round(math.sqrt(share * height * width)), 3)
        return (min(wanted + 1 - wanted % 2, height, width) - 1) // 2 * 2 + 1

    def propose(self, images: Tensor, best: Tensor, side: int, epsilon: float, random: Tensor) -> Tensor:
        """Fill the first square with the second's share of the budget and what clipping left unused."""
        ball, channels = NORMS["l2"], images.shape[1]
        first, second = window_at(random[:, :2], side, images), window_at(random[:, 2:4], side, images)
        turned = (random[:, 4] < 0.5).long()
        delta = best - images
        both = first.inside | second.inside
        unused = (epsilon**2 - ball.size(delta).square()).clamp_min(0)
        available = (_channel_size(delta * both).square() + unused / channels).sqrt()
        bump = _signs(random[:, 5:])[:, :, None, None] * first.filled_with(two_bumps(side, images)[turned])
        direction = bump + _channel_unit(delta * first.inside)
        delta = torch.where(both, 0, delta) + _channel_unit(direction) * available
        return (images + ball.project(delta, epsilon)).clamp(0, 1)


SQUARES: dict[str, _Squares] = {"linf": _LinfSquares(), "l2": _L2Squares()}
"""Moves by the name of the norm."""


class _Window(NamedTuple):
    """A square at its own position in each image, of `side` pixels."""

    rows: Tensor
    """(B, H) row of a pixel counted from the square's first."""
    columns: Tensor
    """(B, W) column of a pixel counted from the square's first."""
    side: int

    @property
    def inside(self) -> Tensor:
        """(B, 1, H, W) bool: True for the pixels of the square."""
        down = (self.rows >= 0) & (self.rows < self.side)
        across = (self.columns >= 0) & (self.columns < self.side)
        return (down[:, :, None] & across[:, None, :])[:, None]

    def filled_with(self, content: Tensor) -> Tensor:
        """Fill the square with content (B, side, side): (B, 1, H, W), 0 elsewhere."""
        rows, columns = self.rows.clamp(0, self.side - 1), self.columns.clamp(0, self.side - 1)
        image = torch.arange(len(content), device=content.device)[:, None, None]
        return content[image, rows[:, :, None], columns[:, None, :]][:, None] * self.inside


def window_at(random: Tensor, side: int, images: Tensor) -> _Window:
    """Place squares anywhere inside the images by two uniform numbers from [0, 1) each (B, 2)."""
    height, width = images.shape[2:]
    top, left = (random * torch.tensor([height - side + 1, width - side + 1]).to(random)).long().split(1, dim=1)
    rows, columns = (torch.arange(length, device=images.device) for length in (height, width))
    return _Window(rows - top, columns - left, side)


def two_bumps(side: int, like: Tensor) -> Tensor:
    """Return (2, side, side) of norm 1: two bumps of opposite sign, one above the other and side by side (eq. 2)."""
    upper = side // 2
    bumps = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    bumps = (bumps / torch.linalg.vector_norm(bumps)).to(like)
    return torch.stack([bumps, bumps.T])


def _bump(height: int, width: int) -> Tensor:
    """Return (height, width): at Chebyshev distance d from the middle, the sum of 1 / (c + 1)^2 over c from d on."""
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2).square()
    return terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]


def _signs(random: Tensor) -> Tensor:
    """Return 1 or -1 for each uniform number from [0, 1)."""
    return 1 - 2 * (random < 0.5).to(random.dtype)


def _channel_size(delta: Tensor) -> Tensor:
    """Return the Euclidean norm (B, C, 1, 1) of every channel."""
    return torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True)


def _channel_unit(delta: Tensor) -> Tensor:
    """Scale every channel (B, C, H, W) to norm 1; leave it 0 where it is 0."""
    return delta / _channel_size(delta).clamp_min(torch.finfo(delta.dtype).tiny)


def _start_numbers(images: Tensor) -> int:
    _, channels, height, width = images.shape
    return (channels + 1) * height * width

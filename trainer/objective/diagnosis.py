"""TODO one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.objective import transport
from trainer.objective.terms import WEIGHTED_TERMS, Knobs, LossTerms


class _Spread(NamedTuple):
    """What shape the cloud of embeddings has; both measures are blind to its scale. () each, or (L,) of L clouds."""

    rank: Tensor
    """() effective rank, in [1, min(B, D)]: exp of the entropy of the shares of the singular values (Roy and Vetterli
    2007, eq. 4) of the centred embeddings; 0 if they all coincide."""

    spread: Tensor
    """() share of the mean squared norm that is variance, in [0, 1]: 0 where all embeddings coincide or vanish."""

    @property
    def collapsed(self) -> Tensor:
        """Whether the embeddings fell into one point or onto one line, where ten classes can't be told apart; bool."""
        return (self.rank < LEAST_RANK) | (self.spread < LEAST_SPREAD)


LEAST_RANK = 1.5
LEAST_SPREAD = 0.01
"""Alarms. A classifier of K classes that works has an effective rank near min(K - 1, D) and a spread near 1."""


@torch.no_grad()
def embedding_spread(embedding: Tensor) -> _Spread:
    """Effective rank and spread of embeddings (..., B, D)."""
    # A NaN fails the trial by its loss, with a reason; here it would only stop the decomposition.
    embedding = embedding.nan_to_num()
    centred = embedding - embedding.mean(-2, keepdim=True)
    mean_square = embedding.square().sum(-1).mean(-1)
    variance = centred.square().sum(-1).mean(-1)
    spread = torch.where(mean_square > transport.NO_DIRECTION**2, variance / mean_square, 0)
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum(-1, keepdim=True)
    rank = torch.special.entr(shares).sum(-1).exp()
    return _Spread(torch.where(spread > 0, rank, 0), spread)


def gradient_shares(terms: LossTerms, knobs: Knobs, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """Each weighted term's gradient norm over the cross-entropy's, () by name: which term steers.

    The graph of the terms is kept, so that they can still be stepped on.

    Args:
        parameters: of stacked trials, terms (L,), each of shape (L, ...).
    """
    parameters = list(parameters)

    def norm(term: Tensor) -> Tensor:
        gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
        return torch.cat([g.reshape(*term.shape, -1) for g in gradients if g is not None], -1).norm(dim=-1)

    reference = norm(terms.cross_entropy).clamp(min=torch.finfo().tiny)
    return {
        name: norm(getattr(knobs, f"{name}_weight") * getattr(terms, name)) / reference
        for name in WEIGHTED_TERMS
        if getattr(terms, name) is not None
    }

"""Diagnosis of a training step: which term dominates the gradient, and whether the embeddings have collapsed.

Shape letters: B images of a batch, D embedding size, K classes, T stacked trials.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.objective import transport
from trainer.objective.terms import CROSS_ENTROPIES, OTHER_TERMS, Knobs, LossTerms, total_loss

LEAST_RANK = 1.5
"""Effective rank below which the embeddings have collapsed; a working classifier's is near min(K - 1, D)."""

LEAST_SPREAD = 0.01
"""Spread below which they have collapsed; a working classifier's is near 1."""


class _Spread(NamedTuple):
    """The shape of a cloud of embeddings; both measures are blind to its scale. () each, or (T,) for T clouds."""

    rank: Tensor
    """() effective rank, in [1, min(B, D)]: exp of the entropy of the shares of the singular values (Roy and Vetterli
    2007, eq. 4) of the centred embeddings; 0 if they all coincide."""

    spread: Tensor
    """() share of the mean squared norm that is variance, in [0, 1]: 0 if all embeddings coincide or vanish."""

    @property
    def collapsed(self) -> Tensor:
        """() bool: the embeddings lie in one point or on one line, where classes can't be told apart."""
        return (self.rank < LEAST_RANK) | (self.spread < LEAST_SPREAD)


@torch.no_grad()
def embedding_spread(embedding: Tensor) -> _Spread:
    """Measure effective rank and spread of embeddings (..., B, D)."""
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
    """Return each weighted term's gradient norm over that of the weighted cross-entropies, () at least 0, by name.

    The graph of the terms is kept, so that the loss can still be differentiated.

    Args:
        terms: () each, or (T,).
        knobs: () each, or (T,).
        parameters: the model's, or (T, ...) each of stacked models.
    """
    parameters = list(parameters)

    def norm(term: Tensor) -> Tensor:
        gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
        return torch.cat([g.reshape(*term.shape, -1) for g in gradients if g is not None], -1).norm(dim=-1)

    reference = norm(total_loss(terms, knobs, CROSS_ENTROPIES)).clamp(min=torch.finfo().tiny)
    return {
        name: norm(getattr(knobs, f"{name}_weight") * getattr(terms, name)) / reference
        for name in OTHER_TERMS
        if getattr(terms, name) is not None
    }

"""The objective of a trial, term by term: transport, regularisers, weights."""

from trainer.objective.certificates import certified_cross_entropy, certified_images
from trainer.objective.diagnosis import embedding_spread, gradient_shares
from trainer.objective.own import check_regularizer, why_regularizer_alone
from trainer.objective.terms import Knobs, LossTerms, loss_terms, total_loss, transport_attack_loss

__all__ = [
    "certified_cross_entropy",
    "certified_images",
    "check_regularizer",
    "embedding_spread",
    "gradient_shares",
    "Knobs",
    "loss_terms",
    "LossTerms",
    "total_loss",
    "transport_attack_loss",
    "why_regularizer_alone",
]

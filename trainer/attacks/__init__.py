"""Sensitivity attacks: norms, FGSM, PGD, APGD, FAB, Square, their worst case, and whether an attack means something."""

from trainer.attacks.apgd import APGD_SLACK, apgd_attacks, embedding_attack
from trainer.attacks.attack import Attack, Victim
from trainer.attacks.checks import check_logits
from trainer.attacks.draws import DrawnAhead, Draws, uniform
from trainer.attacks.evidence import Evidence, gather_evidence
from trainer.attacks.fab import fab_attack
from trainer.attacks.gradient import (
    Loss,
    cross_entropy_loss,
    cross_entropy_scores,
    fgsm,
    kl_loss,
    pgd,
    pgd_attack,
    score_with_gradient,
)
from trainer.attacks.logits import frozen, judged, predict
from trainer.attacks.norms import NORMS
from trainer.attacks.own import own_attack
from trainer.attacks.square import SQUARE_SLACK, square_attack
from trainer.attacks.worst_cases import WorstCase, worst_case

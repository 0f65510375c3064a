"""Invariance attacks and their judge: alignments, neighbours, perturbations, human-labelled sets, preparation."""

from trainer.invariance.attacks import INVARIANCE_ATTACKS, allowed_targets
from trainer.invariance.judge import Judge, build_judge
from trainer.invariance.judge_training import TRAINING_BATCH, train_member, training_half, training_passes
from trainer.invariance.labelled_sets import LabelledSet, answers_of, ask_people, read_examples
from trainer.invariance.neighbours import bring_back, find_neighbours
from trainer.invariance.perturbations import JudgingSet, TrainingPerturbation
from trainer.invariance.preparation import PreparationPipeline, Prepared, prepare
from trainer.invariance.published import alignments_for
from trainer.invariance.recipes import recipe_for

__all__ = [
    "alignments_for",
    "allowed_targets",
    "answers_of",
    "ask_people",
    "bring_back",
    "build_judge",
    "find_neighbours",
    "INVARIANCE_ATTACKS",
    "Judge",
    "JudgingSet",
    "LabelledSet",
    "PreparationPipeline",
    "prepare",
    "Prepared",
    "read_examples",
    "recipe_for",
    "train_member",
    "TRAINING_BATCH",
    "training_half",
    "training_passes",
    "TrainingPerturbation",
]

"""Invariance attacks and their judge: alignments, neighbours, perturbations, human-labelled sets, preparation."""

from trainer.invariance.labelled_sets import LabelledSet, answers_of, ask_people, read_examples
from trainer.invariance.perturbations import JudgingSet, TrainingPerturbation
from trainer.invariance.preparation import PreparationPipeline, Prepared, prepare

__all__ = [
    "answers_of",
    "ask_people",
    "JudgingSet",
    "LabelledSet",
    "PreparationPipeline",
    "prepare",
    "Prepared",
    "read_examples",
    "TrainingPerturbation",
]

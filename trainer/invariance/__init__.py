"""Invariance attacks and their judge: alignments, neighbours, perturbations, human-labelled sets, preparation."""

from trainer.invariance.crowd_fitting import Calibration, calibrate, calibrate_on
from trainer.invariance.judge import Judge
from trainer.invariance.labelled_sets import LabelledSet, answers_of, ask_people, read_examples
from trainer.invariance.people import read_perturbed
from trainer.invariance.perturbations import JudgingSet, TrainingPerturbation
from trainer.invariance.preparation import PreparationPipeline, Prepared, open_judge, prepare
from trainer.invariance.resampled_mass import changed_mass
from trainer.invariance.tradeoff import ceiling

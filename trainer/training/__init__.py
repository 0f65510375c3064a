"""Train and evaluate: the step, evaluation, one trial, stacked trials (vmap), profiling."""

from trainer.training.batches import check_batch_size, to_device
from trainer.training.evaluation import (
    BATCH,
    attacked,
    ensemble,
    evaluate_attacked,
    evaluation_attacks,
    final_attacks,
    judging_generator,
    predict_labels,
)
from trainer.training.given_models import read_given_model
from trainer.training.loop import run_trial
from trainer.training.model_file import MODEL_FILE, load_model
from trainer.training.own_attacks import check_attack
from trainer.training.pack import Pack, PackedTrial, structure
from trainer.training.profiling import Timer
from trainer.training.trial import check_own

__all__ = [
    "attacked",
    "BATCH",
    "check_attack",
    "check_batch_size",
    "check_own",
    "ensemble",
    "evaluate_attacked",
    "evaluation_attacks",
    "final_attacks",
    "judging_generator",
    "load_model",
    "MODEL_FILE",
    "Pack",
    "PackedTrial",
    "predict_labels",
    "read_given_model",
    "run_trial",
    "structure",
    "Timer",
    "to_device",
]

"""Train and evaluate: the step, evaluation, one trial, stacked trials (vmap), profiling."""

from trainer.training.evaluation import BATCH, ensemble, evaluate, judging_attacks, mean, predict_labels
from trainer.training.pack import Lane, Pack, structure
from trainer.training.profiling import Timer
from trainer.training.step import check_batch_size
from trainer.training.trial import MODEL_FILE, judging_generator, load_model, run_trial, to_device

__all__ = [
    "BATCH",
    "check_batch_size",
    "ensemble",
    "evaluate",
    "judging_attacks",
    "judging_generator",
    "Lane",
    "load_model",
    "mean",
    "MODEL_FILE",
    "Pack",
    "predict_labels",
    "run_trial",
    "structure",
    "Timer",
    "to_device",
]

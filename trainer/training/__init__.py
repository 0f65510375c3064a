"""Train and evaluate: the step, evaluation, one trial, stacked trials (vmap), profiling."""

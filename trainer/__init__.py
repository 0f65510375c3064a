"""One trial: the optimal-transport-regularised adversarial trainer. Imports torch, never ray, optuna or mlflow."""

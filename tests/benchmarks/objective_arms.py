"""Both robust accuracies of each arm of the objective, on scikit-learn's digits, over several seeds.

All arms train by PGD-5 at 0.2 on the same splits with the same initial weights and orders; they differ in what else
they see. The seeds are the trials' (weights, order, attack), and the evaluation is that of a sweep of `digits`. The
result is the mean product of the two accuracies with partial transport over that of its control, which saw the same
labelled images.

    python -m tests.benchmarks.objective_arms [FIRST_SEED] [SEEDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.common import print_machine, print_result
from trainer.config import EvaluationConfig, TrialConfig
from trainer.invariance import prepare
from trainer.training import run_trial

PGD: dict[str, Any] = {
    "clean_ce_weight": 0.0,
    "sensitivity_ce_weight": 1.0,
    "sensitivity_epsilon": 0.2,
    "sensitivity_steps": 5,
    "batch_size": 100,
    "learning_rate": 0.002,
    "epochs": 10,
}
CONTROL = {**PGD, "invariance_ce_weight": 0.5}
TRANSPORT = {**CONTROL, "regularizer": "ot_triplet", "invariance_weight": 1.0, "margin": 0.3}

ARMS: dict[str, dict[str, Any]] = {
    "PGD": PGD,
    "+ 0.5 CE(X_v)": CONTROL,
    "  + triplet": {**TRANSPORT, "regularizer": "triplet"},
    "  + sinkhorn": {**TRANSPORT, "regularizer": "sinkhorn"},
    "  + ot_triplet, share 1": {**TRANSPORT, "negative_share": 1.0},
    "  + ot_triplet, share 1/4": {**TRANSPORT, "negative_share": 0.25},
    "  + ot_triplet, share 1/16": {**TRANSPORT, "negative_share": 0.0625},
}


def main(first: int = 0, seeds: int = 5) -> None:
    print_machine()
    evaluation = EvaluationConfig(dataset="digits", eval_sensitivity_epsilon=0.2, eval_invariance_epsilon=0.3)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(evaluation, cache_dir=Path(folder))
        products: dict[str, float] = {}
        print(f"\nseeds {first} to {first + seeds - 1}: mean and standard deviation over seeds")
        print(f"{'arm':28}{'clean':>8}{'sensitivity':>16}{'invariance':>16}{'product':>16}")
        for arm, settings in ARMS.items():
            finals = []
            for seed in range(first, first + seeds):
                *_, final = run_trial(TrialConfig(**settings, seed=seed), evaluation, prepared)
                finals.append(final)
            sensitivity = [final.sensitivity_accuracy for final in finals]
            invariance = [final.invariance_accuracy for final in finals]
            both = [s * v for s, v in zip(sensitivity, invariance, strict=True)]
            clean = statistics.fmean(final.clean_accuracy for final in finals)
            print(f"{arm:28}{clean:>8.3f}{_spread(sensitivity)}{_spread(invariance)}{_spread(both)}", flush=True)
            products[arm] = statistics.fmean(both)
    print_result("objective_arms", products["  + ot_triplet, share 1/16"] / products["+ 0.5 CE(X_v)"])


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):>8.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))

"""How far the number that a front is made of lies above the full ensemble's, on models of several kinds of training.

Each model is judged on the same validation images by the attack of an epoch (PGD-20), by what judges the chosen epoch
(`final_attacks`, with several numbers of steps), and by the full ensemble of an audit. The result is the largest gap
between the chosen epoch's number and the ensemble's, in points, with the default steps.

    python -m tests.benchmarks.selection_gap [digits|mnist]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.common import print_machine, print_result
from trainer.attacks import Attack
from trainer.config import EvaluationConfig, TrialConfig
from trainer.files import FolderStore
from trainer.invariance import prepare
from trainer.presets import preset
from trainer.training import MODEL_FILE, ensemble, evaluation_attacks, judging_generator, load_model, run_trial
from trainer.training.evaluation import final_attacks, surviving

METHODS = {
    "pgd-at": {},
    "trades": {},
    "tla": {},
    "sat": {},
    "feature-scattering": {},
    "pgd-at, ot_triplet": {"preset": "pgd-at", "regularizer": "ot_triplet", "sensitivity_weight": 1.0, "margin": 0.3},
}
SETTINGS = {
    "digits": (
        EvaluationConfig(dataset="digits"),
        {"sensitivity_epsilon": 0.2, "sensitivity_steps": 7, "epochs": 10, "batch_size": 100, "learning_rate": 0.002},
    ),
    "mnist": (
        EvaluationConfig(
            dataset="mnist",
            train_size=4000,
            validation_size=300,
            eval_sensitivity_epsilon=0.3,
            eval_sensitivity_steps=40,
            eval_invariance_size=20,
        ),
        {"sensitivity_epsilon": 0.3, "sensitivity_steps": 10, "epochs": 6, "batch_size": 100},
    ),
}


def main(dataset: str = "digits") -> None:
    print_machine()
    evaluation, usual = SETTINGS[dataset]
    norm, epsilon = evaluation.eval_sensitivity_norm, evaluation.eval_sensitivity_epsilon
    kinds = {"epoch": evaluation_attacks(evaluation)}
    for steps in (20, 70, 140):
        stronger = evaluation.replace(eval_final_steps=steps)
        kinds[f"final-{steps}"] = final_attacks(stronger, classes=10)
    default = f"final-{evaluation.eval_final_steps}"
    print(f"\n{dataset}: accuracy, and seconds\n{'':22}" + "".join(f"{name:>16}" for name in (*kinds, "ensemble")))
    gaps = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(evaluation, cache_dir=Path(folder))
        for name, changes in METHODS.items():
            settings = {**preset(str(changes.get("preset", name))), **usual, **changes}
            if name == "feature-scattering":
                settings["sensitivity_steps"] = 1
            settings.pop("preset", None)
            store = FolderStore(Path(folder) / name)
            for _ in run_trial(TrialConfig.from_mapping(settings), evaluation, prepared, store=store):
                pass
            model = load_model(store.folder / MODEL_FILE)
            full = ensemble(norm=norm, epsilon=epsilon, model=model)

            def judged(attacks: Sequence[Attack], model: torch.nn.Module = model) -> tuple[float, float]:
                begun, generator = time.perf_counter(), judging_generator(evaluation)
                robust = surviving(model, prepared.data.validation, attacks, generator=generator)
                return robust.double().mean().item(), time.perf_counter() - begun

            found = {kind: judged(attacks) for kind, attacks in {**kinds, "ensemble": [*kinds["epoch"], *full]}.items()}
            print(f"{name:22}" + "".join(f"{a:>9.3f} {t:5.1f}s" for a, t in found.values()), flush=True)
            gaps.append(100 * (found[default][0] - found["ensemble"][0]))
    print_result("selection_gap", max(gaps))


if __name__ == "__main__":
    main(*sys.argv[1:2])

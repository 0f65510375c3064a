"""The model that a sweep chose, attacked again where it was chosen: before and under the full set of attacks."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from torch import nn

from sweep.audit.measuring import answers_on_validation
from sweep.plan.audit_options import AuditOptions
from trainer.answers import Answers
from trainer.config import EvaluationConfig, TrialConfig
from trainer.files import FolderStore
from trainer.invariance.preparation import Prepared, prepare
from trainer.training import MODEL_FILE, load_model, run_trial
from trainer.training.evaluation import answers_in_bits, evaluate, evaluation_attacks, judging_generator

WEAK = EvaluationConfig(
    train_size=200, validation_size=60, eval_sensitivity_epsilon=0.15, eval_sensitivity_steps=1, eval_final_steps=0
)
OPTIONS = AuditOptions.of({"steps": 20, "queries": 50})


@pytest.fixture(scope="module")
def weakly(cache_dir: Path) -> Prepared:
    """What trials share that are judged by one step of PGD from a random start alone."""
    return prepare(WEAK, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def model(weakly: Prepared, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    store = FolderStore(tmp_path_factory.mktemp("model"))
    config = TrialConfig(
        architecture="mlp", batch_size=50, epochs=8, sensitivity_epsilon=0.1, sensitivity_ce_weight=1.0
    )
    deque(run_trial(config, WEAK, weakly, store=store), maxlen=0)
    return load_model(store.folder / MODEL_FILE)


def test_a_stronger_attack_breaks_what_the_selection_left(model: nn.Module, weakly: Prepared) -> None:
    found = answers_on_validation(model, weakly, OPTIONS)
    selected, attacked = (Answers.decode(found[name]) for name in ("selected", "attacked"))
    generator = judging_generator(WEAK)
    as_chosen = evaluate(
        model, weakly.data.validation, weakly.judging, evaluation_attacks(WEAK), generator=generator
    ).answers
    assert selected == as_chosen
    assert not (attacked.robust & ~selected.robust).any()
    assert 0 < attacked.robust.sum() < selected.robust.sum()
    assert (attacked.right == selected.right).all()


def test_answers_stay_what_they_were_when_a_tensor_changes() -> None:
    flags = torch.tensor([True, True])
    answers = answers_in_bits(flags, flags, torch.tensor([1, 2]), flags)
    flags[:] = False
    assert answers.right.all()
    assert answers.robust.all()
    assert answers.right_sources.all()

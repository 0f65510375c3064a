"""A preparation whose judge is hardly trained, for tests to which it does not matter what people see."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from trainer.config import EvaluationConfig
from trainer.invariance import Prepared, prepare
from trainer.invariance.judge_training import train_ensemble
from trainer.invariance.recipes import RECIPES


def prepare_quickly(evaluation: EvaluationConfig, cache_dir: Path) -> Prepared:
    """Prepare the digits, with a judge of two epochs and no training perturbations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[train_ensemble.__module__], "_LEAST_STEPS", 5)
        patch.setitem(RECIPES["judge"], "digits", dataclasses.replace(RECIPES["judge"]["digits"], epochs=2))
        return prepare(evaluation, invariance_norms=(), cache_dir=cache_dir)

"""Fixtures for tests on a bare GPU machine, where the project's conftest can't be imported for want of Ray."""

from __future__ import annotations

import pytest

from trainer.config import EvaluationConfig
from trainer.invariance import Prepared, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """What trials on few digits share."""
    evaluation = EvaluationConfig(train_size=200, validation_size=60, eval_sensitivity_steps=5)
    return prepare(evaluation, cache_dir=tmp_path_factory.mktemp("cache"))

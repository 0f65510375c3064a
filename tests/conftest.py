"""What all tests share: seeded, single-threaded, away from the user's own folders and servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from trainer.config import EvaluationConfig
from trainer.data import DATA_DIR_VARIABLE, Data, load_data
from trainer.preparation import Prepared, prepare

# One thread: sums come out the same on every machine, and the tests' small tensors gain nothing from more.
torch.set_num_threads(1)

# Time limits on single examples fail on a busy machine, whatever the code does.
hypothesis.settings.register_profile(
    "otsweep", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("otsweep")


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings of the user's shell would send results to their folders, their MLflow server or their Ray cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if (
                name.startswith("OTSWEEP_")
                and name != DATA_DIR_VARIABLE
                or name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
            ):
                patch.delenv(name)
        patch.setenv("OTSWEEP_STORAGE", str(tmp_path_factory.mktemp("storage")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real MNIST and the published invariance examples; tests that use it are marked `mnist`."""
    named = os.environ.get(DATA_DIR_VARIABLE)
    if not named:
        pytest.skip(f"{DATA_DIR_VARIABLE} is not set: it names the folder that holds MNIST/raw")
    if not (Path(named) / "MNIST" / "raw").is_dir():
        pytest.skip(f"{DATA_DIR_VARIABLE} = {named}: there is no MNIST/raw in it")
    return Path(named)


@pytest.fixture(scope="session")
def cache_dir(_own_environment: None) -> Iterator[Path]:
    """One cache for the session, where commands look for it too; removed afterwards, since MNIST's takes 220 MB."""
    folder = Path(os.environ["OTSWEEP_STORAGE"]) / "cache"
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def digits(cache_dir: Path) -> Data:
    """The embedded digits, whole, split by seed 0."""
    return load_data(EvaluationConfig(dataset="digits"), cache_dir=cache_dir)


@pytest.fixture(scope="session")
def prepared(cache_dir: Path) -> Prepared:
    """What trials on few digits share; its oracles take some ten seconds to train, once per session."""
    evaluation = EvaluationConfig(train_size=200, validation_size=60, eval_sensitivity_steps=5)
    return prepare(evaluation, cache_dir=cache_dir)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who asks for the real data is marked `mnist`, so that the rule below holds for all of them."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("mnist")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where the real data is said to be, a test on it that is skipped counts as failed: CI must not lose them."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get(DATA_DIR_VARIABLE) and item.get_closest_marker("mnist") and not needs_gpu(item):
        report.outcome = "failed"
        report.longrepr = (
            f"{DATA_DIR_VARIABLE} is set, and yet this test on the real data was skipped: {report.longrepr}"
        )
    return report


def needs_gpu(item: pytest.Item) -> bool:
    """Whether a skip has another honest reason than missing data."""
    return item.get_closest_marker("gpu") is not None

"""What all tests share: seeded, single-threaded, away from the user's own folders and servers."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from tests.support.commands import end_processes
from trainer.config import EvaluationConfig
from trainer.data.datasets import Data, load_data
from trainer.data.locate import DATA_DIR_VARIABLE
from trainer.invariance.preparation import Prepared, prepare

# One thread: sums come out the same on every machine, and the tests' small tensors gain nothing from more.
torch.set_num_threads(1)

# Time limits on single examples fail on a busy machine, whatever the code does.
hypothesis.settings.register_profile(
    "otsweep", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("otsweep")

HONEST = ("no CUDA device", "root", "not root")
"""How the reason begins for which any machine may skip a test."""

SECONDS = {
    **{"test_crowds": 530, "test_survival": 350, "test_sweep": 230, "test_study": 220, "test_packs": 200},
    **{
        "test_submit": 200,
        "test_audit": 200,
        "test_compose": 140,
        "test_slurm": 150,
        "test_audit_people": 140,
        "test_slots": 130,
    },
    **{
        "test_gpu_rehearsal": 200,
        "test_thaw": 150,
        "test_remote_storage": 120,
        "test_samplers": 120,
        "test_outage": 100,
        "test_rungs": 90,
        "test_pack": 90,
    },
}
"""How long the longest files take on two cores, about: what `--durations=0` told, summed."""

SHARED = pytest.StashKey[Path]()
"""A folder of the run, which the workers of a parallel one have in common."""


def pytest_configure(config: pytest.Config) -> None:
    """Who starts the workers makes the folder, and removes it at the end: MNIST's tensors take 220 MB."""
    # A shell that puts the tests into its background has them, and what they start, ignore Ctrl-C; nohup, a hang-up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    given = getattr(config, "workerinput", {}).get("shared")
    config.stash[SHARED] = Path(given or tempfile.mkdtemp(prefix="otsweep-tests-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker is about to start: tell it where."""
    node.workerinput["shared"] = str(node.config.stash[SHARED])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[SHARED], ignore_errors=True)


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
        end_processes()


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
def cache_dir(_own_environment: None, pytestconfig: pytest.Config) -> Path:
    """One cache for all that prepare data, whichever worker they run in; where commands look for it too."""
    folder = pytestconfig.stash[SHARED] / "cache"
    folder.mkdir(exist_ok=True)
    (Path(os.environ["OTSWEEP_STORAGE"]) / "cache").symlink_to(folder)
    return folder


@pytest.fixture(scope="session")
def new_storage(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Callable[[str], Path]:
    """Makes storage folders for sweeps. All have the one cache, so that oracles are trained once in a run."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "cache").symlink_to(cache_dir)
        return folder

    return make


@pytest.fixture(scope="session")
def digits(cache_dir: Path) -> Data:
    """The embedded digits, whole, split by seed 0."""
    return load_data(EvaluationConfig(dataset="digits"), cache_dir=cache_dir)


@pytest.fixture(scope="session")
def prepared(cache_dir: Path) -> Prepared:
    """What trials on few digits share; its oracles take some ten seconds to train, once in a run."""
    evaluation = EvaluationConfig(train_size=200, validation_size=60, eval_sensitivity_steps=5)
    return prepare(evaluation, cache_dir=cache_dir)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark `mnist` what asks for the real data, and `slow` what asks for a sweep; have the longest files come first.

    Two workers then end at about the same time: the quick files fill what is left at the end.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "data_dir" in fixtures:
            item.add_marker("mnist")
        if "undisturbed" in fixtures:
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: -SECONDS.get(item.path.stem, 30 if item.path in slow else 5))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Count a test that may not be skipped here, and was, as failed: nobody reads what CI skips."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if rule := broken_rule(item, reason.removeprefix("Skipped: ")):
            report.outcome, report.longrepr = "failed", f"{rule}, and yet this test was skipped: {reason}"
    return report


def broken_rule(item: pytest.Item, reason: str) -> str:
    """Return the rule by which a test may not be skipped here for a reason; empty where it may."""
    if reason.startswith(HONEST):
        return ""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return "this is CI"
    if os.environ.get(DATA_DIR_VARIABLE) and item.get_closest_marker("mnist"):
        return f"{DATA_DIR_VARIABLE} is set and this test is on the real data"
    return ""

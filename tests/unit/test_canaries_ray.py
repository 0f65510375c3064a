"""Everything undocumented of Ray that this project uses: one test per symbol or text.

It is in `sweep.ray_internals`, in the Ray Tune adapters in `sweep.engine` and in `sweep.RAY_ENVIRONMENT`. A failure
names the symbol, what it is for and the versions that had it. No test starts Ray.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.utils import flatten_dict

from sweep import RAY_ENVIRONMENT
from sweep import ray_internals as internals
from sweep.engine.pack_worker import PackFailed
from sweep.engine.result_keys import REPORT, report_of

pytestmark = pytest.mark.canary

FOLDER = Path(str(ray.__file__)).parent


def told(symbol: str, purpose: str) -> str:
    """Return the message of a failure."""
    tried = ", ".join(internals.TRIED_VERSIONS)
    return f"{symbol} ({purpose}) is not in Ray {ray.__version__} as it was in {tried}"


def source_of(module: str) -> str:
    """Return the text of a module, whatever another test has patched in it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, told(module, "module")
    assert spec.origin is not None, told(module, "module")
    return Path(spec.origin).read_text()


@cache
def python_sources() -> str:
    """Return all of Ray's own Python that reads settings."""
    folders = [FOLDER / name for name in ("tune", "_private", "_common")]
    return "".join(path.read_text() for folder in folders for path in sorted(folder.rglob("*.py")))


# ----------------------------------------------------------------------------------------------------------- starting


@pytest.mark.parametrize("start", internals.UNNEEDED_STARTS)
def test_what_a_node_starts(start: str) -> None:
    """Look for a method that the node calls by its name, and whose result it does not use."""
    symbol, purpose = f"ray._private.node.Node.{start}", "a process that a sweep does not need"
    source = source_of("ray._private.node")
    assert f"    def {start}(" in source, told(symbol, purpose)
    assert f"\n            self.{start}(" in source or f"\n        self.{start}(" in source, told(symbol, purpose)


def test_starts_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.node import Node

    for start in internals.UNNEEDED_STARTS:
        monkeypatch.setattr(Node, start, getattr(Node, start))  # put back at the end
    internals.start_only_what_is_needed()
    assert [getattr(Node, start)(None, raise_on_failure=True) for start in internals.UNNEEDED_STARTS] == [None] * 3


def test_the_message_of_a_slow_start() -> None:
    text = internals.SLOW_START
    assert text in source_of("ray._private.node"), told(text, "a start that is worth another try")
    assert internals.is_slow_start(Exception(f"The current node {text}. Try again."))


def test_lines_of_lost_nodes_are_printed_by_a_function_of_the_worker() -> None:
    symbol, purpose = "ray._private.worker.print_to_stdstream", "silenced: pages of a lost node's logs"
    source = source_of("ray._private.worker")
    assert "\ndef print_to_stdstream(data, ignore_prefix" in source, told(symbol, purpose)
    assert "\n            print_to_stdstream(\n" in source, told(symbol, f"looked up when it is called; {purpose}")


@pytest.mark.parametrize("module", ["ray.tune.execution.tune_controller", "ray.train.base_trainer"])
def test_loggers_have_their_modules_names(module: str) -> None:
    assert "logger = logging.getLogger(__name__)" in source_of(module), told(module, "silenced: errors of trials")
    assert module.startswith(internals.LOGGERS)


def test_ray_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    before = {name: logging.getLogger(name).level for name in internals.LOGGERS}
    try:
        internals.silence_ray()
        assert worker.print_to_stdstream({"lines": ["lost"], "is_err": True}, ignore_prefix=False) is None
        assert not logging.getLogger("ray.tune.execution.tune_controller").isEnabledFor(logging.ERROR)
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("module", "text", "purpose"),
    [
        ("ray._private.worker", "ray._private.utils.set_sigterm_handler(", "taken back: SIGTERM"),
        ("ray._private.node", "ray._private.utils.set_sigterm_handler(", "taken back: SIGTERM"),
        ("ray._private.services", "\n    process = ConsolePopen(\n", "replaced: processes in a group of their own"),
        ("ray._private.worker", "os.path.abspath(os.path.curdir)", "what workers search first is ours"),
    ],
)
def test_signals_and_imports_of_rays_processes(module: str, text: str, purpose: str) -> None:
    assert text in source_of(module), told(text, purpose)


def test_signals_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services, utils

    monkeypatch.setattr(utils, "set_sigterm_handler", utils.set_sigterm_handler)
    monkeypatch.setattr(services, "ConsolePopen", services.ConsolePopen)
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        internals.keep_signals()
    utils.set_sigterm_handler(lambda number, frame: None)
    assert signal.getsignal(signal.SIGTERM) is before
    with services.ConsolePopen(["sleep", "100"]) as process:
        try:
            assert os.getsid(process.pid) == process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("symbol", ["DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE"])
def test_environment_variables_that_ray_tune_sends_along(symbol: str) -> None:
    source = source_of("ray.tune.execution.class_cache")
    name = f"ray.tune.execution.class_cache.{symbol}"
    assert f"\n{symbol} = " in source, told(name, "emptied: variables sent along with trials")
    assert source.count(symbol) >= 2, told(name, "read at each call")


def test_keys_stay_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an actor of a trial's class: it has no environment of its own, whatever keys this process has."""
    from ray.tune.execution import class_cache

    for symbol in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE"):
        monkeypatch.setattr(class_cache, symbol, getattr(class_cache, symbol))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    given: dict[str, Any] = {}

    def remote(**options: Any) -> Callable[[type], type]:
        given.update(options)
        return lambda trainable: trainable

    monkeypatch.setattr(ray, "remote", remote)
    internals.keep_keys_at_home()
    class_cache._ActorClassCache().get(SimpleNamespace)
    assert given == {"runtime_env": {"env_vars": {}}}, told("_ActorClassCache.get", "variables sent along with trials")


@pytest.mark.parametrize("variable", [*RAY_ENVIRONMENT, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"])
def test_settings(variable: str) -> None:
    of_the_library = variable.encode() in (FOLDER / "_raylet.so").read_bytes()
    assert f'"{variable}"' in python_sources() or of_the_library, told(variable, "a setting of Ray")


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Return a trial of Ray Tune that has a file for its failures, and never ran."""
    made = Trial("never run", stub=True, trial_id="one")
    monkeypatch.setattr(Trial, "local_path", property(lambda self: str(tmp_path)))
    return made


def fail(trial: Trial, error: Any) -> str:
    """Let Ray Tune handle an error of a trial; return the file with its failures."""
    trial.handle_error(error)
    assert trial.error_file is not None, told("ray.tune.experiment.Trial.error_file", "how a trial's worker was lost")
    return trial.error_file


def test_the_message_about_a_lost_node() -> None:
    binary = FOLDER / "core" / "src" / "ray" / "gcs" / "gcs_server"
    text = internals.NODE_DIED
    assert text.encode() in binary.read_bytes(), told(text, "failures that are no trial's own")


def test_the_file_of_a_trials_failures(trial: Trial) -> None:
    symbol, purpose = "Failure # in Trial.error_file", "the last failure of a trial"
    for error in (ActorDiedError(), RuntimeError(f"The actor died because {internals.NODE_DIED}.")):
        file = fail(trial, error)
    assert internals.lost_with_its_node(file), told(symbol, purpose)
    file = fail(trial, ActorDiedError())
    assert internals.NODE_DIED in Path(file).read_text()
    assert not internals.lost_with_its_node(file), told(symbol, purpose)


def test_the_message_of_a_trials_own_exception(trial: Trial) -> None:
    """Find what a worker raised in the file, behind the name of its class."""
    reason = "--pack 2: too many"
    failed = RayTaskError("step", f"Traceback ...\n{PackFailed.__module__}.PackFailed: {reason}", PackFailed(reason))
    file = fail(trial, failed.as_instanceof_cause())
    symbol = "str(RayTaskError) in Trial.error_file"
    assert internals.last_message(file, PackFailed) == reason, told(symbol, "why a pack can't go on")
    assert internals.last_message(fail(trial, ActorDiedError()), PackFailed) == ""


def test_a_failure_is_forgiven(trial: Trial) -> None:
    symbol = "ray.tune.experiment.Trial.run_metadata.num_failures"
    purpose = "nodes that left, which don't count towards max_failures"
    fail(trial, ActorDiedError())
    assert trial.run_metadata.num_failures == 1, told(symbol, purpose)
    internals.forgive_failure(trial)
    assert trial.num_failures == 0, told(symbol, purpose)
    assert "self.run_metadata.num_failures <= self.max_failures" in inspect.getsource(Trial), told(symbol, purpose)


def test_the_worker_of_a_trial(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    symbol, purpose = "ray.tune.experiment.Trial.temporary_state.ray_actor", "the worker that says nothing, to be ended"
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    internals.end_worker(trial)
    assert killed == [], "it has none yet"
    trial.set_ray_actor(worker := MagicMock())
    internals.end_worker(trial)
    assert killed == [worker], told(symbol, purpose)


def test_an_actors_obituary_ends_with_its_constructors_exception() -> None:
    cause = RayTaskError("__init__", "Traceback ...\nValueError: no room", ValueError("no room"))
    for symbol, line in (("first", internals.first_line), ("last", internals.last_line)):
        assert line(ActorDiedError()).strip(), told(f"{symbol} line of ActorDiedError", "why it died")
    assert internals.last_line(ActorDiedError(cause)) == "ValueError: no room", told("str(ActorDiedError)", "its cause")


# --------------------------------------------------------------------------------------------------------------- jobs

SUPERVISOR = "ray.dashboard.modules.job.job_supervisor"


def test_the_line_before_a_jobs_own_log() -> None:
    text = internals.ENTRYPOINT_LINE
    assert f'f"{text} ' in source_of(SUPERVISOR), told(text, "the head of a job's log, which is not shown")
    log = f"2026 INFO job_manager.py -- Runtime env is setting up.\n{text} a: python\nours\nmore"
    assert internals.strip_preamble(log) == "ours\nmore"
    assert internals.strip_preamble("2026 INFO job_manager.py -- Runtime env is setting up.\n") == ""


def test_the_seconds_that_ray_waits_for_a_job_to_stop() -> None:
    variable = internals.STOP_WAIT_VARIABLE
    assert f'"{variable}"' in source_of(SUPERVISOR), told(variable, "epochs in flight end before a job is killed")


@pytest.mark.parametrize("logger", internals.JOB_LOGGERS)
def test_loggers_of_the_job_client(logger: str) -> None:
    assert "logger = logging.getLogger(__name__)" in source_of(logger), told(logger, "silenced: errors told in a line")


# ----------------------------------------------------------------------------------------------------------- Ray Tune


def test_flat_results() -> None:
    symbol, purpose = "ray.tune.utils.flatten_dict", "results as the scheduler and the searcher get them"
    report = {"epoch": 1, "loss/term": 0.5}
    assert report_of(flatten_dict({"report": report, "done": False})) == report, told(symbol, purpose)
    source = source_of("ray.tune.execution.tune_controller")
    assert source.count("flatten_dict(") >= 3, told(symbol, purpose)
    assert REPORT == "report/"


def test_the_limiter_counts_trials_and_may_be_changed_while_it_runs() -> None:
    purpose = "slots that come and go"

    class Unlimited(Searcher):
        def suggest(self, trial_id: str) -> dict[str, Any]:
            return {"trial": trial_id}

    limiter = ConcurrencyLimiter(Unlimited(), max_concurrent=1)
    assert limiter.suggest("a") == {"trial": "a"}
    assert limiter.suggest("b") is None, told("ConcurrencyLimiter.suggest", purpose)
    limiter.max_concurrent = 2
    assert limiter.suggest("b") == {"trial": "b"}, told("ConcurrencyLimiter.max_concurrent", purpose)
    assert limiter.live_trials == {"a", "b"}, told("ConcurrencyLimiter.live_trials", purpose)


@pytest.mark.parametrize("key", ["NodeID", "NodeManagerAddress", "Alive", "Resources"])
def test_what_is_known_of_a_node(key: str) -> None:
    compiled = (FOLDER / "_raylet.so").read_bytes()
    assert key.encode() in compiled, told(f'ray.nodes()[0]["{key}"]', "nodes and their resources")

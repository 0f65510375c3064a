"""Sweeps from Python: run with a callback, iterated and stopped, resumed; in a process of its own with its own Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import sys
import sweep

storage = sys.argv[1]
space = {
    "name": "tiny",
    "trials": 2,
    "evaluation": {"dataset": "digits", "train_size": 300, "validation_size": 100, "eval_sensitivity_steps": 3},
    "space": {"architecture": "mlp", "batch_size": 50, "epochs": 2, "sensitivity_steps": 2,
              "sensitivity_epsilon": {"low": 0.05, "high": 0.3}},
}
options = {"storage": storage, "max_concurrent": 1, "keep_models": "none"}

seen = []
done = sweep.run(space, on_report=seen.append, **options)
assert [(each.trial, each.state, each.report["final"]) for each in seen] == [
    (0, "running", False), (0, "running", False), (0, "finished", True),
    (1, "running", False), (1, "running", False), (1, "finished", True),
], seen
assert done.complete and len(done.front) >= 1 and len(done.trials) == 2
assert sweep.open(done.name, storage=storage).front.equals(done.front)

running = sweep.start(space, seed=1, **options)
for number, report in enumerate(running):
    if number == 0:
        try:
            sweep.run(space, **options)
        except sweep.InputError as error:
            assert "a sweep runs in this process already" in str(error)
        else:
            raise AssertionError("two at once")
        running.stop()
try:
    running.result()
except sweep.Interrupted as stopped:
    assert not stopped.sweep.complete and f"resume('{running.plan.name}')" in str(stopped)
else:
    raise AssertionError("it was not stopped")
assert sweep.resume(running.plan.name, storage=storage).complete
"""


@pytest.mark.slow
def test_a_sweep_is_run_iterated_stopped_and_resumed_and_prints_nothing(
    new_storage: Callable[[str], Path],
) -> None:
    words = [sys.executable, "-c", SCRIPT, str(new_storage("python"))]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


NOTEBOOK = Path(__file__).parents[2] / "search_spaces" / "first_front.ipynb"
RUNNER = """
import ast, io, json, sys

class OutStream(io.StringIO):
    def isatty(self):
        return False

OutStream.__module__ = "ipykernel.iostream"

def execute(source, names):
    *before, last = ast.parse(source).body
    ends = isinstance(last, ast.Expr)
    exec(compile(ast.Module(before if ends else [*before, last], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if ends else None

shown, names, said = [], {}, sys.stdout
sys.stdout, sys.stderr = OutStream(), OutStream()
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        value = execute(cell["source"], names)
        html = getattr(value, "_repr_html_", lambda: None)()
        shown.append(html or repr(value))
        if hasattr(value, "savefig"):
            value.savefig(io.BytesIO())
said.write(json.dumps({"shown": shown, "out": sys.stdout.getvalue(), "errors": sys.stderr.getvalue()}))
"""
"""Runs a notebook's code cells in one namespace, as a kernel does: the value of each last expression is shown."""


@pytest.mark.slow
def test_the_notebook_runs_from_a_trial_to_a_longer_front(new_storage: Callable[[str], Path], tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, str(NOTEBOOK)],
        env={**os.environ, "OTSWEEP_STORAGE": str(new_storage("notebook"))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    _, accuracies, front, figure, trials, growth, written = told["shown"]
    assert accuracies.startswith("(0.")
    assert "front of" in front
    assert "<table" in front
    assert figure.startswith("<Figure")
    assert "config.regularizer" in trials
    assert float(growth[1:].partition(",")[0]) >= 0, "a longer sweep covers what the shorter one did"
    assert written == "[PosixPath('digits.db')]"
    assert (tmp_path / "digits.db").exists()
    assert "6/6 done" in told["out"].rpartition("\r")[0]
    assert "8/8 done" in told["out"]
    assert "Traceback" not in told["errors"]

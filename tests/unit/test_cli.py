"""The command: every wrong word is answered with exit status 2, one clear message and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.cli.commands import COMMANDS, main
from sweep.cli.console import BAD_INPUT
from tests.support.commands import otsweep
from trainer.__main__ import REPORT_FILE, earlier_reports
from trainer.files.checkpoints import FolderStore

SPACES = {
    "low above high": ("space:\n  margin: {low: 1, high: 0.5}\n", "line 2: margin: low = 1.0 must be below high = 0.5"),
    "log from zero": ("space:\n  margin: {low: 0, high: 1, log: true}\n", "line 2: margin: log needs low above 0"),
    "unknown key": ("spce:\n  margin: {low: 0, high: 1}\n", "'spce'"),
    "unknown field": (
        "space:\n  margn: {low: 0, high: 1}\n",
        "line 2: unknown setting 'margn': did you mean 'margin'?",
    ),
    "wrong type": ("space:\n  margin: wide\n", "line 2: margin = 'wide': must be a number"),
    "out of range": ("space:\n  epochs: 0\n  margin: {low: 0, high: 1}\n", "line 2: epochs = 0: must be at least 1"),
    "unknown dataset": (
        "evaluation: {dataset: mnst}\nspace:\n  margin: {low: 0, high: 1}\n",
        "line 1: dataset = 'mnst': did you mean 'mnist'?",
    ),
    "unknown preset": (
        "space:\n  margin: {low: 0, high: 1}\npoints: [{preset: pgdat}]\n",
        "line 3: unknown preset 'pgdat': did you mean 'pgd-at'?",
    ),
    "epsilon above one": (
        "space:\n  margin: {low: 0, high: 1}\n  sensitivity_epsilon: 1.5\n",
        "line 3: sensitivity_epsilon = 1.5: must be at least 0 and at most 1",
    ),
}

WORDS = {
    "unknown command": (["rnu"], "unknown command 'rnu': did you mean 'run'?"),
    "unknown option": (["run", "--trails", "3"], "unknown option '--trails': did you mean '--trials'?"),
    "unknown space": (["run", "digitz"], "unknown search space 'digitz': did you mean 'digits'?"),
    "no trials": (["run", "--trials", "0"], "--trials = 0: must be at least 1"),
    "word for a number": (["run", "--trials", "few"], "--trials = 'few': must be a whole number"),
    "unknown sampler": (["run", "--sampler", "tpo"], "--sampler = 'tpo': did you mean 'tpe'?"),
    "unwritable storage": (["run", "--storage", "/proc/nowhere"], "--storage '/proc/nowhere': can't be written"),
    "resume of nothing": (["resume", "nothing"], "no sweep 'nothing'"),
    "front of nothing": (["front", "nothing"], "no sweep 'nothing'"),
    "unknown format": (["front", "any", "--format", "xml"], "--format xml: known: table, json, csv"),
    "more GPUs than there are": (["run", "--gpus-per-trial", "64"], "--gpus-per-trial 64: this machine has"),
    "more cores than there are": (["run", "--cpus-per-trial", "999"], "--cpus-per-trial 999: this machine has"),
    "unknown space to plan": (["plan", "digitz"], "unknown search space 'digitz': did you mean 'digits'?"),
    "unknown format of a plan": (["plan", "--format", "xml"], "--format xml: known: table, json"),
    "unknown option of a plan": (["plan", "--trails", "3"], "unknown option '--trails': did you mean '--trials'?"),
    "more cores than there are to plan": (
        ["plan", "--cpus-per-trial", "999"],
        "--cpus-per-trial 999: this machine has",
    ),
    "sync of nothing": (["sync", "nothing"], "no sweep 'nothing'"),
    "secret in a URI": (["run", "--mlflow-uri", "http://me:hunter2@host"], "holds what may be a secret"),
    "missing data folder": (["run", "--data-dir", "/proc/nowhere"], "--data-dir '/proc/nowhere': no such folder"),
    "unknown trial knob": (["trial", "--set", "margn=1"], "unknown setting 'margn': did you mean 'margin'?"),
    "unknown trial preset": (["trial", "--preset", "pgdat"], "unknown preset 'pgdat': did you mean 'pgd-at'?"),
    "trial epsilon above one": (
        ["trial", "--set", "sensitivity_epsilon=2"],
        "sensitivity_epsilon = 2.0: must be at least",
    ),
    "examples for other data": (
        ["trial", "--invariance-examples", "/tmp"],
        "28x28 grey images in 10 classes (mnist, fashion_mnist); the data set here is 'digits'",
    ),
    "missing examples": (
        ["trial", "--dataset", "mnist", "--invariance-examples", "/proc/nowhere"],
        "--invariance-examples '/proc/nowhere': no such folder",
    ),
    "audit of nothing": (["audit", "nothing", "--invariance-examples", "/proc/nowhere"], "no sweep 'nothing'"),
    "no value": (["trial", "--set", "epochs"], "--set 'epochs': write it as key=value"),
}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OTSWEEP_STORAGE", str(tmp_path))
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == BAD_INPUT
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    return said.err


@pytest.mark.parametrize(("words", "message"), WORDS.values(), ids=WORDS.keys())
def test_a_wrong_word(words: list[str], message: str, storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capfd, words)


@pytest.mark.parametrize(("text", "message"), SPACES.values(), ids=SPACES.keys())
def test_a_wrong_space(text: str, message: str, storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = storage / "space.yaml"
    path.write_text(text)
    said = refused(capfd, ["run", str(path)])
    assert str(path) in said
    assert message in said


def test_a_refused_sweep_leaves_its_name_free(storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, ["run", "--name", "mine", "--cpus-per-trial", "999"])
    assert not (storage / "mine").exists()


def test_a_name_that_exists(storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (storage / "mine").mkdir()
    assert "--name 'mine': exists" in refused(capfd, ["run", "--name", "mine"])


@pytest.mark.slow
@pytest.mark.parametrize(("command", "damage"), [("run", "truncated"), ("run", "wrong magic"), ("plan", "wrong magic")])
def test_a_damaged_idx_file(command: str, damage: str, storage: Path) -> None:
    raw = storage / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        header = bytes([0, 0, 8, 3 if "images" in part else 1]) + (60_000).to_bytes(4, "big")
        (raw / f"{part}-ubyte").write_bytes(header[:6] if damage == "truncated" else b"\x7fELF" + header)
    done = otsweep(storage, command, "mnist", "--data-dir", str(storage / "data"))
    assert done.returncode == BAD_INPUT, done.stdout
    assert "train-images-idx3-ubyte" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


OURS = {"config": {"seed": 1}, "evaluation": {"dataset": "digits"}, "data_fingerprint": "abc"}
REPORTS = [{"epoch": 1, "final": False}, {"epoch": 1, "final": True}]


@pytest.mark.parametrize(
    ("content", "known"),
    [
        ({**OURS, "reports": REPORTS}, [(False, 1), (True, 1)]),
        ({**OURS, "reports": REPORTS, "people": None}, [(False, 1), (True, 1)]),
        ({**OURS, "config": {"seed": 2}, "reports": REPORTS}, []),
        ({**OURS, "data_fingerprint": "of other data", "reports": REPORTS}, []),
        ({"reports": REPORTS}, []),
        (OURS, []),
        ({**OURS, "reports": "none"}, []),
        ({**OURS, "reports": [{"epoch": 1}]}, []),
        (["a", "list"], []),
        (None, []),
        ("", []),
    ],
)
def test_a_foreign_report_is_passed_over(content: object, known: list[tuple[bool, int]], tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert earlier_reports(store, OURS) == {}
    store.write(REPORT_FILE, json.dumps(content).encode() if content != "" else b"{half a fi")
    assert list(earlier_reports(store, OURS)) == known


def test_no_words_show_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == BAD_INPUT
    shown = capfd.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_at_once_without_heavy_imports(command: str) -> None:
    code = (
        "import sys; from sweep.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.rstrip().endswith("[]")

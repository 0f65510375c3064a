"""A checkpoint of others, judged as sweep/README.md tells it, by a small network in the place of the large one."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.commands import PATIENCE, call, command, start, wait_for

README = (Path(__file__).parents[2] / "sweep" / "README.md").read_text()
SECTION = README.partition("### Judging any model\n")[2].partition("\n### ")[0]
FACTORY = re.search(r"```python\n(.*?)```", SECTION, re.S)
COMMAND = re.search(r"```\n(otsweep judge Carmon.*?)```", SECTION, re.S)
SMALL = """
from torch import nn


class WideResNet(nn.Module):
    def __init__(self, depth, widen_factor, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(1, widen_factor, 3)
        self.fc = nn.Linear(36 * widen_factor, num_classes)

    def forward(self, images):
        return self.fc(self.conv1(images).relu().flatten(1))
"""
QUICK = ("--test-size", "20", "--steps", "2", "--queries", "3", "--judges", "1", "--set", "eval_invariance_size=40")


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    """Return a storage, with a stand-in for the library that the README names, its factory and a checkpoint."""
    folder = new_storage("judged")
    module = folder / "code" / "stand_in" / "model_zoo" / "architectures" / "wide_resnet.py"
    module.parent.mkdir(parents=True)
    module.write_text(SMALL)
    assert FACTORY
    (folder / "code" / "zoo.py").write_text(FACTORY[1].replace("robustbench.", "stand_in."))
    torch.manual_seed(0)
    weights = {"conv1.weight": (10, 1, 3, 3), "conv1.bias": (10,), "fc.weight": (10, 360), "fc.bias": (10,)}
    checkpoint = {"state_dict": {f"module.{name}": 0.1 * torch.randn(shape) for name, shape in weights.items()}}
    torch.save(checkpoint, folder / "checkpoint.pt")
    return folder


def words(storage: Path, *more: str) -> list[str]:
    """Return the README's command, on the digits and with little effort."""
    assert COMMAND
    _, verb, _, *given = shlex.split(COMMAND[1].splitlines()[0])
    given[given.index("--dataset") + 1] = "digits"
    return [verb, str(storage / "checkpoint.pt"), *given, *QUICK, *more]


@pytest.mark.slow
def test_the_readmes_example(storage: Path) -> None:
    page = storage / "page.html"
    done = call(command(storage, *words(storage, "--format", "json", "--html", str(page))), cwd=storage / "code")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["models"]
    assert (found["model"], found["kind"]) == ("checkpoint", "state dict")
    assert found["not_certified"] == "bounds are known for the built-in networks alone"
    assert 0 <= found["numbers"]["sensitivity_accuracy"] <= found["numbers"]["clean_accuracy"] <= 1
    assert "<svg" in page.read_text()
    again = call(command(storage, *words(storage)), cwd=storage / "code")
    assert again.returncode == 0, again.stderr
    assert "judging checkpoint" not in again.stderr  # it is kept
    assert re.search(r"opens    http://127.0.0.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}", again.stdout)
    served = re.search(r"^MLflow   otsweep (ui .*)$", again.stdout, re.MULTILINE)
    assert served
    [words_of_ui] = [shlex.split(each) for each in served.groups()]
    assert words_of_ui[:2] == ["ui", "--mlflow-uri"]
    missing = call([*command(storage, "ui"), "--mlflow-uri", f"sqlite:///{storage}/none.db"])
    assert missing.returncode == 2
    assert f"there is no file '{storage}/none.db'" in missing.stderr
    words_of_server = command(storage, *words_of_ui, "--port", "0", "--no-browser")
    with start(words_of_server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        assert server.stdout is not None
        line = next((line for line in server.stdout if "/?" in line), "")
        assert line.startswith("sqlite:///")  # no sweep is there to open at
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=PATIENCE) == 0


@pytest.mark.slow
def test_ctrl_c_keeps_the_models_that_are_done(storage: Path) -> None:
    for name in ("first", "second"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        torch.save(network.state_dict(), storage / f"{name}.pt")
    (storage / "code" / "linear.py").write_text(
        "from torch import nn\ndef network(shape, classes, embedding_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    given = ["judge", *(str(storage / f"{name}.pt") for name in ("first", "second"))]
    given += ["--architecture", "python:linear:network", *QUICK, "--queries", "300"]
    kept = storage / "cache" / "judged"
    before = set(kept.glob("*"))
    process = start(command(storage, *given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=storage / "code")
    wait_for(lambda: len(set(kept.glob("*.json")) - before) == 1, process)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command goes on with the others" in said
    assert len(set(kept.glob("*.json")) - before) == 1

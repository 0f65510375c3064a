"""The example of trainer/README.md: data, network, regulariser and attack of one's own, in a trial and in a sweep."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from search_spaces.reading import space_from_yaml
from search_spaces.yaml_file import parse_yaml
from tests.support.commands import call, command, front
from trainer import plugins
from trainer.config import TrialConfig
from trainer.invariance import prepare
from trainer.invariance.judge_training import train_ensemble
from trainer.objective import check_regularizer
from trainer.training import check_attack, run_trial
from trainer.training.own_attacks import why_attack_alone

README = Path(__file__).parents[2] / "trainer/README.md"
SECTION = README.read_text().partition("## Bring your own\n")[2].partition("\n## ")[0]
BLOCKS = dict(re.findall(r"^```(python|yaml)\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)[:2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module and the space of the README."""
    (tmp_path / "mine.py").write_text(BLOCKS["python"])
    (tmp_path / "mine.yaml").write_text(BLOCKS["yaml"])
    monkeypatch.setattr(plugins, "_allowed", None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_example_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[train_ensemble.__module__], "_LEAST_STEPS", 20)
    space = space_from_yaml(parse_yaml(BLOCKS["yaml"].encode(), "README"), name="mine")
    knobs = ("architecture", "regularizer", "sensitivity_attack")
    names = [*(value for knob in knobs for value in space.values_of(knob)), space.evaluation.dataset]
    own = [f"python:mine:{name}" for name in ("network", "pull", "momentum", "squares")]
    assert set(own) <= set(names)
    drawn = {"regularizer": own[1], "own_a": 1.0, "sensitivity_attack": own[2], "own_b": 0.9, "seed": 0}
    config = TrialConfig.from_mapping({**space.fixed, **drawn})
    check_regularizer(config)
    check_attack(config)
    assert why_attack_alone(config, shape=(1, 8, 8), classes=3) == ""
    evaluation = space.evaluation.replace(eval_sensitivity_steps=2, eval_final_steps=0)
    prepared = prepare(evaluation, invariance_norms=(), cache_dir=folder / "cache")
    *_, last = run_trial(config, evaluation, prepared)
    assert last.final
    assert last.terms["loss/sensitivity"] > 0


@pytest.mark.slow
def test_a_sweep_with_a_wrong_attack_ends_before_its_trials(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.py").write_text(BLOCKS["python"].replace("return perturbed\n", "return perturbed + 1\n"))
    done = call(command(tmp_path / "storage", "run", "mine.yaml", "--trials", "2", "--name", "own"), cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "sensitivity_attack = 'python:mine:momentum': " in done.stderr


@pytest.mark.slow
def test_the_example_is_swept_and_read_without_its_module(folder: Path, tmp_path: Path) -> None:
    """The workers get the module from the command; whoever looks at the sweep afterwards imports nothing of it."""
    done = call(command(tmp_path / "storage", "run", "mine.yaml", "--trials", "2", "--name", "own"), cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "mine.py").write_text("raise SystemExit('imported')\n")
    assert front(tmp_path / "storage", "own")["front"]
    for words in (("front", "own"), ("sync", "own")):
        shown = call(command(tmp_path / "storage", *words), cwd=folder)
        assert shown.returncode == 0, shown.stderr
        assert "imported" not in shown.stdout + shown.stderr
    again = call(command(tmp_path / "storage", "resume", "own"), cwd=folder)
    assert again.returncode == 0, again.stderr  # nothing is left to train

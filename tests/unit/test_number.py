"""Fractions: numbers wherever numbers are read, and kept as they were written in the plan's file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from search_spaces.reading import space_from_yaml
from search_spaces.yaml_file import dump_yaml, parse_yaml
from sweep.plan.from_options import make_plan
from sweep.plan.plan_file import parse_plan, plan_text
from sweep.search.points import read_space
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError
from trainer.fields import parse_settings
from trainer.number import parse_number

SPACE = """
evaluation: {dataset: digits, eval_sensitivity_epsilon: 8/255}
space:
  learning_rate: {low: 1/1000, high: 1e-2}
  sensitivity_epsilon: {choices: [0.0, 51/255]}
  weight_decay: 1 / 4
require: clean_accuracy >= 9/10
points:
  - {sensitivity_epsilon: 76.5/255}
"""


def test_a_plan_keeps_fractions_as_they_were_written_and_computes_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("sensitivity_epsilon;margin\n2/255;0,5\n")
    (tmp_path / "points.json").write_text('[{"sensitivity_epsilon": "3/255"}]')
    space = space_from_yaml(parse_yaml(SPACE.encode(), "space.yaml"), name="fractions")
    for name in ("points.csv", "points.json"):
        space = read_space(space, {"points": tmp_path / name}, storage=None)
    plan = make_plan(space.requiring(["invariance_stuck<=1/2"]), storage=str(tmp_path), cpus_per_trial="1/2")
    text = plan_text(plan)
    for written in ("8/255", "1/1000", "51/255", "1 / 4", ">= 9/10", "76.5/255", "2/255", "3/255", "<= 1/2", ": 1/2"):
        assert written in text
    assert space.evaluation.eval_sensitivity_epsilon == 8 / 255
    assert [point["sensitivity_epsilon"] for point in space.points] == [3 / 255, 2 / 255, 0.3]
    read = parse_plan(parse_yaml(text.encode(), "plan.yaml"))
    assert (read, read.hash, plan_text(read)) == (plan, plan.hash, text)
    decimals = text.replace("8/255", repr(8 / 255)).replace("51/255", "0.2").replace("76.5/255", "0.3")
    assert parse_plan(parse_yaml(decimals.encode(), "plan.yaml")) == plan


def test_options_of_a_trial_take_fractions() -> None:
    given = parse_settings(["sensitivity_epsilon=8/255", "epochs=4/2"], TrialConfig, EvaluationConfig)
    assert given == {"sensitivity_epsilon": 8 / 255, "epochs": 2}


@pytest.mark.parametrize("text", ["8/0", "/255", "8/", "8/255/2", "8//255", "8/x", "8/-255", "1/1e-999"])
def test_what_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="sensitivity_epsilon = .*must be a number"):
        parse_settings([f"sensitivity_epsilon={text}"], TrialConfig)
    with pytest.raises(InputError, match="must be a number|is not a finite number"):
        space_from_yaml(parse_yaml(f"space: {{sensitivity_epsilon: {text}}}".encode(), "x"), name="x")


def test_a_fraction_is_shown_as_a_number_and_copied_as_one() -> None:
    number = parse_number("8/255")
    assert str(number) == f"{number}" == repr(number) == repr(8 / 255)
    assert type(copy.deepcopy(number)) is float
    assert TrialConfig.from_mapping({"sensitivity_epsilon": number}).to_dict()["sensitivity_epsilon"] == 8 / 255


def test_a_word_that_looks_like_a_fraction_stays_a_word() -> None:
    assert parse_yaml(dump_yaml({"word": "8/255"}).encode(), "x").plain() == {"word": "8/255"}

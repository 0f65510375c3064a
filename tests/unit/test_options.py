"""Options: one line in the plan declares one, and everything else follows from it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweep.cli.commands import build_parser
from sweep.plan.options import flag
from sweep.plan.plan import OPTIONS, PLACES, RESUMABLE, SweepPlan

ROOT = Path(__file__).parents[2]

ADDED = """
    warmth: int = option(3, "degrees of the room", low=1, high=9, metavar="C", decides=True, since=3)

    light: str = option("day", "light of the room", choices=("day", "night"), metavar="WHICH", resumable=True)
"""

SCRIPT = """
import json, sys
from pathlib import Path

from search_spaces import load_space
from sweep.cli.commands import build_parser
from sweep.cli.run import plan_of, run_command
from sweep.cluster.submit import Submission
from sweep.plan import OPTIONS, make_plan, plan_text, read_plan, with_resume_overrides, write_plan
from trainer.errors import InputError

def message(call):
    try:
        return str(call() and None)
    except InputError as error:
        return str(error)

storage = sys.argv[1]
parser = build_parser()
words = ["digits", "--storage", storage, "--warmth", "4", "--light", "night"]
arguments = parser.parse_args(["plan", *words])
plan = plan_of(arguments)
plain = make_plan(load_space("digits"), storage=storage, name="plain")
write_plan(plan)
resume = vars(parser.parse_args(["resume", plan.name, "--light", "day"]))
print(json.dumps({
    "values": [plan.warmth, plan.light],
    "defaults": [plain.warmth, plain.light],
    "file": [line for line in plan_text(plan).splitlines() if line.startswith(("warmth", "light"))],
    "read": read_plan(plan.name, storage=storage) == plan,
    "hashes": [make_plan(load_space("digits"), storage=storage, **options).hash
               for options in ({}, {"warmth": 3}, {"warmth": 4}, {"light": "night"})],
    "resumed": [with_resume_overrides(plan, resume).warmth, with_resume_overrides(plan, resume).light],
    "command": run_command(arguments),
    "sent": Submission.of("digits", name="a", options={"warmth": "4", "light": "night"}, paths={}).command,
    "wrong": [message(lambda: make_plan(load_space("digits"), storage=storage, warmth="10")),
              message(lambda: make_plan(load_space("digits"), storage=storage, light="nihgt"))],
}))
"""


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's source in which `SweepPlan` has two more options, and nothing else was touched."""
    folder = tmp_path_factory.mktemp("edited")
    for package in ("search_spaces", "sweep", "trainer"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "sweep" / "plan" / "plan.py"
    before, place, after = path.read_text().partition("\n    def __post_init__")
    path.write_text(before + ADDED + place + after)
    return folder


def answer(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "MLFLOW_TRACKING_URI": ""}
    run = subprocess.run(
        [sys.executable, "-P", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def seen(edited: Path) -> dict[str, Any]:
    return json.loads(answer(edited, "-c", SCRIPT, str(edited / "storage")))


@pytest.mark.parametrize("command", ["run", "plan", "submit"])
def test_an_added_option_is_in_the_help(edited: Path, command: str) -> None:
    shown = answer(edited, "-m", "sweep", command, "--help")
    assert "--warmth C" in shown
    assert "degrees of the room (default: 3)" in shown
    assert "light of the room: day, night (default: day)" in shown


def test_resume_takes_what_may_change_alone(edited: Path, seen: dict[str, Any]) -> None:
    shown = answer(edited, "-m", "sweep", "resume", "--help")
    assert "light of the room: day, night (default: the sweep's)" in shown
    assert "--warmth" not in shown
    assert seen["resumed"] == [4, "day"]


def test_an_added_option_is_in_the_plan_and_its_file(seen: dict[str, Any]) -> None:
    assert seen["values"] == [4, "night"]
    assert seen["defaults"] == [3, "day"]
    assert seen["file"] == ["warmth: 4", "light: night"]
    assert seen["read"]


def test_an_added_option_changes_the_hash_where_it_decides_numbers(seen: dict[str, Any], tmp_path: Path) -> None:
    from search_spaces.reading import load_space
    from sweep.plan.from_options import make_plan

    plain, implied, other, undecided = seen["hashes"]
    assert plain == implied == undecided == make_plan(load_space("digits"), storage=str(tmp_path)).hash
    assert other != plain


def test_an_added_option_is_passed_on(seen: dict[str, Any]) -> None:
    assert "--warmth 4 --light night" in seen["command"]
    assert seen["sent"][-4:] == ["--warmth", "4", "--light", "night"]


def test_an_added_option_is_checked(seen: dict[str, Any]) -> None:
    assert "--warmth = 10: must be at least 1 and at most 9" in seen["wrong"][0]
    assert "--light = 'nihgt': did you mean 'night'?" in seen["wrong"][1]


def test_every_field_of_a_plan_is_an_option_or_made_by_the_plan() -> None:
    made = {"space", "created", "code_version", "versions", "objectives", "measure_memory", "history", "id"}
    assert {spec.name for spec in dataclasses.fields(SweepPlan)} - set(OPTIONS) == made


def test_what_resume_may_change_decides_no_number() -> None:
    assert [name for name in RESUMABLE if OPTIONS[name].metadata["decides"]] == []
    assert [name for name in PLACES if OPTIONS[name].metadata["decides"]] == []


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_can_be_typed(option: str) -> None:
    arguments = build_parser().parse_args(["run", flag(option), "x"])
    assert getattr(arguments, option) == "x"

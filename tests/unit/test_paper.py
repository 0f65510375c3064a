"""The table beside the published figures: which trial is which, and what either side measured."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from search_spaces.reading import load_space
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.plan import SweepPlan
from sweep.report.paper import PREFIX, PUBLISHED, RELATED, paper_table, published_trials
from sweep.report.verdicts import verdict
from sweep.state.sweep_state import SweepState
from tests.support.tuned_search import TunedSearch
from trainer.presets import PRESETS

REPORT = {
    "epoch": 2,
    "final": True,
    "clean_accuracy": 0.99,
    "sensitivity_accuracy": 0.125,
    "invariance_accuracy": 0.375,
    "invariance_stuck": 0.5,
    "invariance_original_label": 0.875,
}


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return make_plan(load_space("paper"), storage=str(tmp_path), epochs="2", seed="5")


def finished(plan: SweepPlan, count: int) -> SweepState:
    """Return the state that a sweep over the space would leave after so many trials."""
    search = TunedSearch(plan.space, plan.objectives, sampler="random", seed=plan.seed, epochs=plan.epochs)
    records = {}
    for number in range(count):
        config = search.suggest(str(number))["config"]
        records[number] = TrialRecord(number, config, plan.seed, "finished", reports=[REPORT])
    return SweepState(plan.objectives, records, total=plan.trials)


def test_every_published_configuration_is_a_given_point(plan: SweepPlan) -> None:
    found = published_trials(plan, finished(plan, len(plan.space.points)))
    published = {name.removeprefix(PREFIX) for name in PRESETS if name.startswith(PREFIX)}
    assert found.keys() == {*published, *RELATED}
    assert {*published, *RELATED, "baseline", "ibp", "crown-ibp"} == {name.removeprefix(PREFIX) for name in PRESETS}
    assert {found[name].config["sensitivity_epsilon"] for name in RELATED} == {0.3}
    assert PUBLISHED.keys() < found.keys()
    assert found["clean-nll"].number == 0


def test_drawn_trials_are_not_mistaken_for_published_ones(plan: SweepPlan) -> None:
    points = len(plan.space.points)
    found = published_trials(plan, finished(plan, points + 10))
    assert all(record.number < points for record in found.values())


def test_another_sweep_has_no_such_table(tmp_path: Path) -> None:
    plan = make_plan(load_space("digits"), storage=str(tmp_path))
    assert published_trials(plan, finished(plan, 6)) == {}


def test_the_table_says_units_and_labels(plan: SweepPlan) -> None:
    text = io.StringIO()
    results = finished(plan, len(plan.space.points))
    Console(file=text, width=80).print(paper_table(plan, published_trials(plan, results)))
    shown = text.getvalue()
    rows = [line.split() for line in shown.splitlines()]
    first = next(n for n, row in enumerate(rows) if row[:2] == ["clean-nll", "theirs"])
    assert " ".join(rows[first][2:]) == "99.0±0.1 98.0±0.9 86.3±2.8"
    assert rows[first + 1] == ["here", "99.0", "12.5", "87.5", "37.5", "50.0"]
    assert ["nll-ml-sens-invar", "here", "99.0", "12.5", "87.5", "37.5", "50.0"] in rows  # never logged by its authors
    for words in ("normalised units", "about 0.003 of the pixel range", "by the label before the attack", "PGD-40"):
        assert words in " ".join(shown.split())


def test_what_collapsed_is_marked_and_told(plan: SweepPlan) -> None:
    """Report what the published nll-ml-invariance did unseen."""
    text, results = io.StringIO(), finished(plan, len(plan.space.points))
    trials = published_trials(plan, results)
    number = trials["nll-ml-invariance"].number
    results.trials[number].reports[:] = [REPORT | {"collapsed": 1.0, "embedding_rank": 1.1, "embedding_spread": 0.001}]
    Console(file=text, width=80).print(paper_table(plan, trials))
    marked = [line for line in text.getvalue().splitlines() if "here *" in line]
    assert len(marked) == 1
    assert "collapsed" not in verdict(plan, finished(plan, 3))
    assert verdict(plan, results).endswith(f"The embeddings of 1 finished trial have collapsed: {number:03d}.")


def test_the_figures_are_those_of_the_reference_table() -> None:
    """Compare means and deviations with the publication: clean, sensitivity, invariance by the original label."""
    assert PUBLISHED["nll-invariance"].invariance == (95.83, 0.27)
    assert PUBLISHED["nll-ml-invariance"].clean == (78.4, 18.6)
    assert PUBLISHED["clean-nll"].sensitivity == (97.97, 0.89)

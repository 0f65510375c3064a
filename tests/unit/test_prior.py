"""Priors: beliefs about the best configurations, read, drawn from, forgotten, and part of a plan."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from search_spaces.prior import Belief, Prior
from search_spaces.reading import fix_knobs, space_from_dict, space_from_yaml
from search_spaces.space import Space
from search_spaces.swept import Choices, Range, Swept
from search_spaces.yaml_file import parse_yaml
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan_file import read_plan, write_plan
from tests.support.tuned_search import TunedSearch
from tests.unit.test_search import run
from trainer.errors import InputError

TEXT = """
space:
  epochs: 3
  regularizer: {choices: [none, triplet, sinkhorn]}
  sensitivity_epsilon: {low: 0.0, high: 0.3}
  sensitivity_steps: {low: 1, high: 9, step: 2}
  margin: {low: 0.01, high: 1.0, log: true, when: {regularizer: triplet}}
prior:
  forget: 0.1
  sensitivity_accuracy:
    sensitivity_epsilon: {value: 0.25, sure: 0.9}
    regularizer: {value: triplet, sure: 0.8}
    margin: 0.1
  invariance_accuracy:
    sensitivity_epsilon: {value: 0.02, sure: 0.9}
"""


def read(text: str) -> Space:
    return space_from_yaml(parse_yaml(text.encode(), "space.yaml"), name="space")


def drawn(belief: Belief, domain: Range | Choices, count: int = 4000) -> list[Any]:
    generator = random.Random(0)
    return [belief.draw(domain, generator) for _ in range(count)]


# ----------------------------------------------------------------------------------------------- of an earlier sweep


def belief_of(domain: Range | Choices, values: list[Any]) -> Belief | None:
    best = {"clean_accuracy": [{"margin": value} for value in values]}
    return Prior.of_best({"margin": Swept(domain)}, best).beliefs.get("clean_accuracy", {}).get("margin")


def test_the_nearer_the_best_lie_together_the_surer_is_their_middle() -> None:
    domain = Range(0.0, 1.0)
    alone, near, far = (belief_of(domain, values) for values in ([0.3], [0.29, 0.3, 0.31], [0.1, 0.3, 0.5]))
    assert alone
    assert near
    assert far
    assert [each.value for each in (alone, near, far)] == pytest.approx([0.3] * 3)
    assert near.sure > far.sure > 0
    assert near.sure > alone.sure
    many = belief_of(domain, [0.29, 0.3, 0.31] * 20)
    assert many
    assert near.sure < many.sure < 1
    assert belief_of(domain, [0.0, 0.0, 1.0, 1.0]) is None, "anywhere is no belief"
    assert belief_of(domain, [1.2, -3]) is None, "outside"


def test_it_is_a_value_that_can_be_drawn() -> None:
    logarithmic = belief_of(Range(0.01, 1.0, log=True), [0.02, 0.1, 0.5])
    assert logarithmic
    assert logarithmic.value == pytest.approx(0.1)
    whole = belief_of(Range(1, 9, step=2), [3, 4, 5, 5])
    assert whole
    assert whole.value in (3, 5)
    assert isinstance(whole.value, int)


def test_of_words_it_is_the_commonest_if_that_tells_anything() -> None:
    words = Choices(("a", "b", "c"))
    assert belief_of(words, ["b", "a", "b"]) == Belief("b", 0.5)
    assert belief_of(words, ["a", "b", "c"]) is None
    assert belief_of(words, ["d", "d"]) is None


# ------------------------------------------------------------------------------------------------------------- draws


def test_a_range_is_drawn_from_a_normal_distribution_within_its_ends() -> None:
    values = drawn(Belief(0.25, 0.9), Range(0.0, 0.3))
    expected = stats.truncnorm((0 - 0.25) / 0.015, (0.3 - 0.25) / 0.015, loc=0.25, scale=0.015)
    assert stats.kstest(values, expected.cdf).pvalue > 0.01
    logarithms = np.log(drawn(Belief(0.1, 0.5), Range(0.01, 1.0, log=True)))
    deviation = 0.25 * np.log(100)
    limits = (np.log(0.01) - np.log(0.1)) / deviation, -np.log(0.1) / deviation
    assert stats.kstest(logarithms, stats.truncnorm(*limits, loc=np.log(0.1), scale=deviation).cdf).pvalue > 0.01


def test_whole_numbers_and_steps_stay_what_they_are() -> None:
    steps = drawn(Belief(3, 0.5), Range(1, 9, step=2))
    assert set(steps) == {1, 3, 5, 7, 9}
    assert {type(each) for each in steps} == {int}
    assert max(set(steps), key=steps.count) == 3
    assert set(drawn(Belief(0.5, 0.1), Range(0.0, 1.0, step=0.25))) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_choice_is_as_probable_as_one_is_sure_beside_its_even_share() -> None:
    values = drawn(Belief("b", 0.7), Choices(("a", "b", "c")))
    assert values.count("b") / len(values) == pytest.approx(0.8, abs=0.03)
    assert values.count("a") == pytest.approx(values.count("c"), rel=0.2)


def test_a_draw_follows_one_objective_and_its_share_is_forgotten() -> None:
    space = read(TEXT)
    found = [space.believed(draws=0, seed=seed) for seed in range(2000)]
    followed = [each for each in found if each is not None]
    assert len(followed) / len(found) == pytest.approx(0.5, abs=0.04)
    high = [each for each in followed if each["sensitivity_epsilon"] > 0.18]
    low = [each for each in followed if each["sensitivity_epsilon"] < 0.12]
    assert len(high) + len(low) == len(followed)
    assert len(high) == pytest.approx(len(low), rel=0.2)
    # What nothing is believed of is drawn evenly: a third of the choices, every step.
    assert sum(each["regularizer"] == "triplet" for each in low) / len(low) == pytest.approx(1 / 3, abs=0.06)
    assert sum(each["regularizer"] == "triplet" for each in high) / len(high) == pytest.approx(0.87, abs=0.05)
    assert {each["sensitivity_steps"] for each in low} == {1, 3, 5, 7, 9}
    later = [space.believed(draws=10, seed=seed) for seed in range(2000)]
    assert sum(each is not None for each in later) / 2000 == pytest.approx(0.5 * 0.9**10, abs=0.03)
    assert all(space.believed(draws=500, seed=seed) is None for seed in range(500))


# ------------------------------------------------------------------------------------------------------------ search


def search(space: Space, sampler: str, history: tuple[TrialRecord, ...] = ()) -> TunedSearch:
    return TunedSearch(space, OBJECTIVES, sampler=sampler, seed=7, epochs=3, history=history)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "qmc"])
def test_a_search_rebuilt_from_the_ledger_goes_on_as_the_undisturbed_one(sampler: str) -> None:
    space = read(TEXT)
    whole = run(search(space, sampler), 14)
    for cut in (1, 6, 11):
        again = search(space, sampler, tuple(whole[:cut]))
        rest = run(again, 14 - cut)
        assert [each.config for each in rest] == [each.config for each in whole[cut:]]


def test_a_search_follows_its_prior_first_and_the_sampler_later() -> None:
    space = read(TEXT.replace("forget: 0.1", "share: 1\n  forget: 0.1"))
    without = dataclasses.replace(space, prior=Prior())
    believed, usual = (
        [each.config["sensitivity_epsilon"] for each in run(search(each, "random"), 40)] for each in (space, without)
    )
    assert all(not 0.12 < each < 0.18 for each in believed[:3])
    assert any(0.12 < each < 0.18 for each in usual[:12])
    assert believed[-8:] == usual[-8:]


# ----------------------------------------------------------------------------------------------------- reading, plan


def test_a_prior_is_part_of_the_plan_and_of_its_digest(tmp_path: Path) -> None:
    space = read(TEXT)
    assert space_from_dict(space.to_dict()) == space
    assert "prior" not in dataclasses.replace(space, prior=Prior()).to_dict()
    plan = make_plan(space, storage=str(tmp_path))
    without = make_plan(dataclasses.replace(space, prior=Prior()), storage=str(tmp_path))
    assert plan.hash != without.hash
    plan.folder.mkdir()
    write_plan(plan)
    assert read_plan(plan.name, storage=str(tmp_path)) == plan


def test_a_knob_that_is_fixed_is_believed_nothing_of() -> None:
    fixed = fix_knobs(read(TEXT), ["regularizer=none"])
    assert fixed.prior.beliefs["sensitivity_accuracy"].keys() == {"sensitivity_epsilon"}  # the margin is off with it


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sensitivity_accuracy:", "sensitivty_accuracy:", "line 10.*'sensitivty_accuracy'.*sensitivity_accuracy"),
        ("margin: 0.1", "margins: 0.1", "line 13.*'margins' is not swept.*margin"),
        ("value: 0.25", "value: 0.5", "line 11.*0.5: must be from 0.0 to 0.3"),
        ("value: triplet", "value: ot_triplet", "line 12.*'ot_triplet'.*none, triplet, sinkhorn"),
        ("sure: 0.8", "sure: 1", "line 12.*sure = 1"),
        ("sure: 0.8", "certain: 1", "line 12.*'certain'.*sure"),
        ("forget: 0.1", "forget: 2", "line 9.*prior.forget = 2"),
        ("margin: 0.1", "margin: much", "line 13.*margin = 'much'"),
        ("value: triplet, ", "", "line 12.*needs a value"),
    ],
)
def test_a_wrong_prior_is_told_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(TEXT.replace(old, new, 1))


def test_a_belief_about_no_objective_of_the_sweep_is_refused(tmp_path: Path) -> None:
    space = read(TEXT.replace("invariance_accuracy", "clean_accuracy"))
    with pytest.raises(InputError, match="clean_accuracy is no objective; the sweep's are sensitivity_accuracy, inv"):
        make_plan(space, storage=str(tmp_path))
    with pytest.raises(InputError, match="believes nothing"):
        read(TEXT[: TEXT.index("  sensitivity_accuracy:")])

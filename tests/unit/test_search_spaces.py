"""Search spaces: what is drawn is legal and honours its conditions; whatever is read, only InputError comes out."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.reading import FOLDER, fix_knobs, load_space, names, space_from_dict, space_from_yaml
from search_spaces.space import Space
from search_spaces.swept import Choices, Range
from search_spaces.yaml_file import LARGEST_FILE, LONGEST_TEXT, dump_yaml, parse_yaml
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.presets import PRESETS, preset

NAMES = names()
CONDITIONAL = """\
space:
  epochs: 3
  margin: {low: 0.01, high: 1.0, log: true, when: {regularizer: [triplet, ot_triplet], mining: hard}}
  regularizer: {choices: [none, triplet, sinkhorn]}
  mining: {choices: [hard, semihard], when: {regularizer: triplet}}
  sensitivity_steps: {low: 1, high: 9, step: 2}
  sensitivity_epsilon: {low: 0.0, high: 0.3, step: 0.1}
  batch_size: {low: 16, high: 256, log: true}
  norm_weight: {choices: [0, 1e-3]}
points:
  - {regularizer: triplet, margin: 0.5}
  - {sensitivity_epsilon: 0.9, embedding_size: 8}
"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Optuna's messages about every trial are no part of a test's output."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def read(text: str, name: str = "my.yaml") -> Space:
    return space_from_yaml(parse_yaml(text.encode(), name), name="my")


def study_for(seed: int = 0) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=seed))


def draws(space: Space, count: int) -> Iterator[tuple[dict, FrozenTrial]]:
    study = study_for()
    for _ in range(count):
        trial = study.ask()
        config = space.sample(trial)
        yield config, study.tell(trial, [0.5, 0.5])


@pytest.fixture(params=[*NAMES, "conditional"])
def space(request: pytest.FixtureRequest) -> Space:
    return read(CONDITIONAL) if request.param == "conditional" else load_space(request.param)


# ---------------------------------------------------------------------------------------------------------------------
# The spaces that come with otsweep


def test_the_embedded_spaces_are_there() -> None:
    assert {"digits", "mnist", "paper", "cifar10"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_space_covers_weights_margin_and_budgets(name: str) -> None:
    swept = load_space(name).swept
    knobs = {"sensitivity_weight", "invariance_weight", "margin", "sensitivity_epsilon", "invariance_epsilon"}
    assert knobs <= set(swept)
    assert all("none" not in swept[knob].when.get("regularizer", ()) for knob in ("sensitivity_weight", "margin"))


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_space_draws_no_regulariser_as_often_as_any(name: str) -> None:
    """Check that the baselines get as many trials as any idea: a choice draws evenly, so each stands there once."""
    swept = load_space(name).swept["regularizer"]
    assert isinstance(swept.domain, Choices)
    assert "none" in swept.domain.options
    assert len(set(swept.domain.options)) == len(swept.domain.options)
    assert not swept.when


ARMS = {
    "clean": {"sensitivity_ce_weight": 0.0, "invariance_ce_weight": 0.0, "trades_weight": 0.0, "regularizer": "none"},
    "labelled, without an attack": {"sensitivity_ce_weight": 0.0, "invariance_ce_weight": 0.5, "trades_weight": 0.0},
    "adversarial alone": {"sensitivity_ce_weight": 1.0, "invariance_ce_weight": 0.0, "regularizer": "none"},
    "labelled": {"sensitivity_ce_weight": 1.0, "invariance_ce_weight": 0.5, "regularizer": "none"},
    "TRADES": {"trades_weight": 6.0, "regularizer": "none"},
    "transport over sensitivity alone": {"regularizer": "ot_triplet", "invariance_weight": 0.0},
    "transport over invariance alone": {"regularizer": "ot_triplet", "sensitivity_weight": 0.0},
}
CERTIFIED_ARM = {"certified_ce_weight": 0.5, "regularizer": "none"}


@pytest.mark.parametrize("name", ["digits", "mnist", "mnist-small", "cifar10"])
def test_an_embedded_space_draws_every_arm(name: str) -> None:
    space = load_space(name)
    drawn = [config for config, _ in draws(space, 1000)]
    arms = [*ARMS.values(), *([CERTIFIED_ARM] if name != "cifar10" else [])]
    for arm in arms:
        assert any(arm.items() <= {"trades_weight": 0.0, **config}.items() for config in drawn), arm


def test_the_related_methods_of_the_paper_space_get_the_attack_of_their_papers() -> None:
    related = ("pgd-at", "trades", "tla", "sat")
    points = load_space("paper").points
    chosen = [next(point for point in points if preset(name).items() <= point.items()) for name in related]
    attacks = {(p["sensitivity_epsilon"], p["sensitivity_steps"], p["sensitivity_step_size"]) for p in chosen}
    assert attacks == {(0.3, 40, 0.01)}


def test_points_of_the_cifar_space_train_as_its_draws_do() -> None:
    space = load_space("cifar10")
    shared = {"augmentation": "crop_flip", "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
    assert shared.items() <= space.fixed.items()
    rates = space.swept["learning_rate"].domain
    assert isinstance(rates, Range)
    for point in space.points:
        assert shared.items() <= point.items()
        assert rates.low <= point["learning_rate"] <= rates.high
        attacked = TrialConfig.from_mapping(point).uses_sensitivity
        assert not attacked or (point["sensitivity_steps"], point["sensitivity_step_size"]) == (10, 2 / 255)


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_space_starts_with_points(name: str) -> None:
    space = load_space(name)
    assert 0 < len(space.points) < space.trials
    assert space.description


def test_the_paper_space_starts_with_every_published_configuration() -> None:
    space = load_space("paper")
    for name, values in PRESETS.items():
        if name.startswith("paper/"):
            assert any(values.items() <= point.items() for point in space.points), name


def test_budgets_match_the_literature() -> None:
    assert load_space("mnist").evaluation.eval_sensitivity_epsilon == 0.3
    assert load_space("paper").evaluation.dataset == "mnist"
    assert load_space("cifar10").evaluation.eval_sensitivity_epsilon == pytest.approx(8 / 255, abs=1e-6)
    assert load_space("cifar10").fixed["architecture"] == "resnet18"


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def test_every_draw_is_a_legal_configuration_that_honours_its_conditions(space: Space) -> None:
    defaults = TrialConfig().to_dict()
    for config, _ in draws(space, 60):
        legal = TrialConfig.from_mapping(config).to_dict()
        assert set(legal) - set(config) == {"seed"}
        assert space.fixed.items() <= config.items()
        for name, swept in space.swept.items():
            holds = all(config[parent] in values for parent, values in swept.when.items())
            if not holds:
                assert config[name] == defaults[name]
            elif isinstance(swept.domain, Range):
                assert swept.domain.low <= config[name] <= swept.domain.high
            else:
                assert config[name] in swept.domain.options


def test_every_swept_knob_moves(space: Space) -> None:
    configs = [config for config, _ in draws(space, 60)]
    for name in space.swept:
        assert len({config[name] for config in configs}) > 1, name


def test_a_drawn_trial_can_be_told_again_from_its_configuration(space: Space) -> None:
    """What resume relies on: parameters and distributions come back exactly from the configuration alone."""
    study = study_for()
    for config, trial in draws(space, 30):
        assert space.active(config) == trial.params
        assert space.distributions(config) == trial.distributions
        study.add_trial(
            create_trial(params=space.active(config), distributions=space.distributions(config), values=trial.values)
        )
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_equal_seeds_draw_equal_configurations_also_after_the_plan_was_stored() -> None:
    space = load_space("digits")
    again = space_from_dict(space.to_dict())
    assert [c for c, _ in draws(space, 10)] == [c for c, _ in draws(again, 10)]


def test_a_condition_on_a_knob_that_is_off_does_not_hold() -> None:
    """`mining` stays at its default `hard` without a triplet, but `margin` must not take that for a choice made."""
    for config, trial in draws(read(CONDITIONAL), 60):
        chosen = config["regularizer"] == "triplet" and config["mining"] == "hard"
        assert ("margin" in trial.params) == chosen


def test_steps_are_drawn_on_the_grid_and_whole_numbers_stay_whole() -> None:
    drawn = [config for config, _ in draws(read(CONDITIONAL), 60)]
    assert {config["sensitivity_steps"] for config in drawn} == {1, 3, 5, 7, 9}
    assert {round(config["sensitivity_epsilon"], 9) for config in drawn} == {0.0, 0.1, 0.2, 0.3}
    assert all(isinstance(config["batch_size"], int) for config in drawn)
    assert {config["norm_weight"] for config in drawn} == {0.0, 0.001}


def test_a_log_range_is_drawn_evenly_in_the_logarithm() -> None:
    space = read("space:\n  learning_rate: {low: 1e-4, high: 1e-2, log: true}")
    below = [config["learning_rate"] < 1e-3 for config, _ in draws(space, 300)]
    assert 0.4 < sum(below) / len(below) < 0.6


def test_the_order_in_the_file_does_not_matter_to_conditions() -> None:
    order = list(read(CONDITIONAL).swept)
    assert order.index("regularizer") < order.index("mining") < order.index("margin")


# ---------------------------------------------------------------------------------------------------------------------
# Points


def test_points_are_whole_configurations_over_the_fixed_values() -> None:
    space = read(CONDITIONAL)
    first, outside = space.points
    assert {**first, "seed": 0} == TrialConfig(epochs=3, regularizer="triplet", margin=0.5).to_dict()
    assert {**outside, "seed": 0} == TrialConfig(epochs=3, sensitivity_epsilon=0.9, embedding_size=8).to_dict()


def test_a_point_takes_a_preset_over_the_fixed_values_and_its_own_values_over_the_preset() -> None:
    fixed = "space: {sensitivity_ce_weight: 0.5, margin: {low: 0.0, high: 1.0}}\n"
    (point,) = read(f"{fixed}points: [{{preset: pgd-at, margin: 0.7}}]").points
    assert (point["clean_ce_weight"], point["sensitivity_ce_weight"]) == (0.0, 1.0)
    assert point["margin"] == 0.7


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_be_a_point(name: str) -> None:
    (point,) = read(f"space: {{epochs: 3}}\npoints: [{{preset: {name}}}]").points
    assert PRESETS[name].items() <= point.items()
    assert point["epochs"] == 3


def test_a_space_of_points_alone_runs_them_once() -> None:
    space = read("space: {epochs: 3}\npoints: [{margin: 0.1}, {margin: 0.2}]")
    assert space.trials == 2


def test_the_values_of_a_field_include_those_of_points_and_of_a_condition_that_is_off() -> None:
    assert read(CONDITIONAL).values_of("invariance_norm") == ("linf",)
    assert read(CONDITIONAL + "  - {invariance_norm: l0}\n").values_of("invariance_norm") == ("l0", "linf")
    conditional = (
        "invariance_norm: {choices: [l0], when: {regularizer: triplet}}\n  regularizer: {choices: [none, triplet]}"
    )
    assert read(f"space:\n  {conditional}").values_of("invariance_norm") == ("l0", "linf")
    assert read("space:\n  invariance_norm: l0\n  margin: {low: 0, high: 1}").values_of("invariance_norm") == ("l0",)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


def test_a_space_comes_back_from_its_plain_form_and_from_yaml(space: Space) -> None:
    again = space_from_dict(space.to_dict())
    assert again == space
    assert list(again.swept) == list(space.swept)
    assert space_from_yaml(parse_yaml(dump_yaml(space.to_dict()).encode(), "plan"), name="") == space
    assert pickle.loads(pickle.dumps(space)) == space


def test_numbers_keep_their_last_bit_through_yaml() -> None:
    space = read("space:\n  margin: {low: 0.1, high: 0.30000000000000004}\n  learning_rate: 1.2345678901234567e-05")
    again = space_from_yaml(parse_yaml(dump_yaml(space.to_dict()).encode(), "plan"), name="")
    assert again.swept["margin"].domain.corners() == (0.1, 0.30000000000000004)
    assert again.fixed["learning_rate"] == 1.2345678901234567e-05


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=20)
    | st.sampled_from(
        ["1e5", "no", "null", "1:30", "2026-11-22", "0x10", "010", "", "~", "<<", "=", "- a", "a: b", "#"]
    ),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text("abcxyz_", min_size=1), children, max_size=3)
    ),
    max_leaves=12,
)


def test_the_core_schemas_words_and_jsons_escapes_are_read() -> None:
    words = parse_yaml(b"[null, Null, NULL, ~, true, True, TRUE, false, False, FALSE]", "file").plain()
    assert words == [*[None] * 4, *[True] * 3, *[False] * 3]
    escaped = r'{"a": "\ud83d\ude00", "b": "\\ud83d", "c": "\u00e4"}'
    assert parse_yaml(escaped.encode(), "file").plain() == json.loads(escaped) == {"a": "😀", "b": r"\ud83d", "c": "ä"}


@given(PLAIN)
@settings(deadline=None)
def test_yaml_gives_back_exactly_what_was_written(plain: object) -> None:
    text = dump_yaml({"value": plain})
    assert parse_yaml(text.encode(), "file").plain() == {"value": plain}
    assert yaml.safe_load(text) == {"value": plain}


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def space_with(line: str) -> str:
    return f"space:\n  epochs: 3\n  {line}\n"


MISTAKES = {
    "low not below high": (
        space_with("margin: {low: 1.0, high: 0.5}"),
        3,
        "margin: low = 1.0 must be below high = 0.5",
    ),
    "low equals high": (space_with("margin: {low: 0.5, high: 0.5}"), 3, "must be below"),
    "log from zero": (space_with("margin: {low: 0.0, high: 1.0, log: true}"), 3, "log needs low above 0, not 0.0"),
    "log is no boolean": (space_with("margin: {low: 0.1, high: 1.0, log: 1}"), 3, "log = 1: must be true or false"),
    "step of zero": (space_with("margin: {low: 0.0, high: 1.0, step: 0}"), 3, "step = 0: must be above 0"),
    "negative step": (space_with("margin: {low: 0.0, high: 1.0, step: -0.1}"), 3, "step = -0.1: must be above 0"),
    "step past the end": (space_with("margin: {low: 0.0, high: 1.0, step: 0.3}"), 3, "the last stop is 0.9"),
    "step larger than the range": (space_with("margin: {low: 0.0, high: 1.0, step: 3}"), 3, "larger than the range"),
    "tiny step": (space_with("margin: {low: 0.0, high: 1.0, step: 5e-324}"), 3, "more than 1,000,000 steps"),
    "fractional step of whole numbers": (space_with("batch_size: {low: 8, high: 16, step: 0.5}"), 3, "a whole number"),
    "step is a word": (space_with("margin: {low: 0.0, high: 1.0, step: big}"), 3, "step = 'big': must be a number"),
    "log and step": (
        space_with("margin: {low: 0.5, high: 1.0, log: true, step: 0.5}"),
        3,
        "log and step exclude each other",
    ),
    "range of words": (space_with("regularizer: {low: 0, high: 1}"), 3, "regularizer: holds no number"),
    "empty choices": (space_with("regularizer: {choices: []}"), 3, "choices is empty"),
    "repeated choice": (space_with("regularizer: {choices: [none, none]}"), 3, "'none' stands 2 times"),
    "unknown choice": (space_with("regularizer: {choices: [none, tripplet]}"), 3, "did you mean 'triplet'?"),
    "choices and range": (space_with("margin: {choices: [0.1], low: 0.1}"), 3, "either choices or a range, not both"),
    "no high": (space_with("margin: {low: 0.1}"), 3, "high is missing"),
    "empty knob": (space_with("margin: {}"), 3, "low is missing"),
    "bare list": (space_with("regularizer: [none, triplet]"), 3, "write {choices: [...]}"),
    "unknown key of a knob": (space_with("margin: {low: 0.1, hihg: 1}"), 3, "'hihg' in 'margin': did you mean 'high'?"),
    "low out of range": (space_with("margin: {low: -1, high: 1.0}"), 3, "margin.low = -1.0: must be at least 0"),
    "high out of range": (space_with("margin: {low: 1, high: 1000}"), 3, "margin.high = 1000.0: must be"),
    "infinite end": (space_with("margin: {low: 1, high: 1e999}"), 3, "1e999 is not a finite number"),
    "end is not a number": (space_with("margin: {low: .nan, high: 1.0}"), 3, "margin.low = '.nan': must be a number"),
    "huge whole number": (space_with(f"margin: {{low: 1, high: {'9' * 400}}}"), 3, "at most 18 digits"),
    "unknown field": (space_with("marginn: 0.1"), 3, "unknown setting 'marginn': did you mean 'margin'?"),
    "field of the evaluation": (space_with("eval_sensitivity_epsilon: 0.1"), 3, "it belongs under 'evaluation'"),
    "fixed value of a wrong type": (space_with("batch_size: many"), 3, "batch_size = 'many': must be a whole number"),
    "fixed value out of range": (space_with("margin: -0.1"), 3, "margin = -0.1: must be at least 0"),
    "empty fixed value": (space_with("margin:"), 3, "margin = None: must be a number"),
    "seed": (space_with("seed: 3"), 3, "'seed' is not set here: the sweep gives it (--seed)"),
    "swept epochs": (
        "space:\n  epochs: {low: 1, high: 9}",
        2,
        "'epochs' can't be swept: a trial would win by training",
    ),
    "key twice": (space_with("epochs: 4"), 3, "'epochs' stands twice; the first is at line 2"),
    "key is a number": (space_with("3: 4"), 3, "a key must be a word, not 3"),
    "key is a list": (space_with("? [a, b]\n  : 4"), 3, "a key must be a word, not a list or mapping"),
    "Linf range above 1": (
        space_with("sensitivity_epsilon: {low: 0.0, high: 2.0}"),
        3,
        "sensitivity_epsilon = 2.0: must be",
    ),
    "range illegal for one choice": (
        space_with("sensitivity_norm: {choices: [l2, linf]}\n  sensitivity_epsilon: {low: 0.0, high: 2.0}"),
        4,
        "sensitivity_epsilon = 2.0: must be",
    ),
    "condition on an unknown field": (
        space_with("margin: {low: 0, high: 1, when: {regulariser: triplet}}"),
        3,
        "margin: unknown setting 'regulariser' in when: did you mean 'regularizer'?",
    ),
    "condition on an absent field": (
        space_with("margin: {low: 0, high: 1, when: {regularizer: triplet}}"),
        3,
        "depends on 'regularizer', which is not in this space",
    ),
    "condition on a range": (
        space_with("entropy: {low: 0.1, high: 1}\n  margin: {low: 0, high: 1, when: {entropy: 0.1}}"),
        4,
        "depends on 'entropy', a range",
    ),
    "condition on an impossible value": (
        space_with("regularizer: none\n  margin: {low: 0, high: 1, when: {regularizer: [triplet, sinkhorn]}}"),
        4,
        "its condition never holds: regularizer is only ever none",
    ),
    "condition on a wrong value": (
        space_with("regularizer: none\n  margin: {low: 0, high: 1, when: {regularizer: nothing}}"),
        4,
        "regularizer = 'nothing'",
    ),
    "empty condition": (
        space_with("regularizer: none\n  margin: {low: 0, high: 1, when: {regularizer: []}}"),
        4,
        "when regularizer is empty",
    ),
    "circle of one": (
        space_with("mining: {choices: [hard, semihard], when: {mining: hard}}"),
        3,
        "conditions go in a circle: mining needs mining",
    ),
    "circle of two": (
        space_with(
            "mining: {choices: [hard, semihard], when: {regularizer: none}}\n"
            "  regularizer: {choices: [none], when: {mining: hard}}"
        ),
        3,
        "conditions go in a circle: mining needs regularizer needs mining",
    ),
    "unknown section": ("spaces: {margin: 0.1}", 1, "unknown key 'spaces' in a search space: did you mean 'space'?"),
    "name of another folder": (
        "name: ../../x\nspace: {margin: {low: 0, high: 1}}",
        1,
        "name = '../../x': must be printable, without /",
    ),
    "no space": ("trials: 3", 1, "needs the section 'space:'"),
    "nothing swept": ("trials: 3\nspace: {margin: 0.1}", 2, "nothing is swept"),
    "empty space": ("trials: 3\nspace:", 2, "space must be a mapping (key: value), not empty"),
    "more trials than points": (
        "trials: 3\nspace: {epochs: 3}\npoints: [{margin: 0.1}]",
        1,
        "trials = 3: nothing is swept, so there are 1 points to run",
    ),
    "no trials": ("space: {margin: {low: 0, high: 1}}\ntrials: 0", 2, "trials = 0: must be at least 1"),
    "trials is a word": (
        "space: {margin: {low: 0, high: 1}}\ntrials: all",
        2,
        "trials = 'all': must be a whole number",
    ),
    "evaluation is a list": (
        "evaluation: [digits]\nspace: {margin: {low: 0, high: 1}}",
        1,
        "evaluation must be a mapping",
    ),
    "unknown dataset": (
        "evaluation:\n  dataset: mnits\nspace: {margin: {low: 0, high: 1}}",
        2,
        "dataset = 'mnits': did you mean 'mnist'?",
    ),
    "evaluation epsilon above 1": (
        "evaluation:\n  dataset: mnist\n  eval_sensitivity_epsilon: 8\nspace: {margin: {low: 0, high: 1}}",
        3,
        "eval_sensitivity_epsilon = 8.0: must be at least 0 and at most 1",
    ),
    "trained field in evaluation": ("evaluation:\n  margin: 1\nspace: {}", None, "belongs under 'space'"),
    "points is a mapping": (
        space_with("margin: {low: 0, high: 1}") + "points: {margin: 1}",
        4,
        "points must be a list",
    ),
    "point is a word": (space_with("margin: {low: 0, high: 1}") + "points:\n  - none", 5, "a point must be a mapping"),
    "unknown field in a point": (
        space_with("margin: {low: 0, high: 1}") + "points:\n  - {}\n  - {margn: 1}",
        6,
        "did you mean 'margin'?",
    ),
    "unknown preset": (
        space_with("margin: {low: 0, high: 1}") + "points:\n  - preset: pgd-add",
        5,
        "did you mean 'pgd-at'?",
    ),
    "illegal point": (
        space_with("margin: {low: 0, high: 1}") + "points:\n  - margin: 0.1\n    sensitivity_epsilon: 3.0",
        6,
        "sensitivity_epsilon = 3.0: must be at least 0 and at most 1",
    ),
    "point twice": (
        space_with("margin: {low: 0, high: 1}") + "points:\n  - {margin: 0.1}\n  - {}\n  - {margin: 1e-1}",
        7,
        "this point is the same as point 1",
    ),
    "seed of a point": (space_with("margin: {low: 0, high: 1}") + "points:\n  - seed: 3", 5, "'seed' can't differ"),
    "epochs of a point": (
        space_with("margin: {low: 0, high: 1}") + "points:\n  - epochs: 3",
        5,
        "'epochs' can't differ",
    ),
    "list at the top": ("- margin: 0.1", 1, "a search space must be a mapping (key: value), not a list"),
    "word at the top": ("margin", 1, "a search space must be a mapping (key: value), not 'margin'"),
    "description is a list": ("description: [a]\nspace: {margin: {low: 0, high: 1}}", 1, "description must be a word"),
    "not YAML": ("space:\n  margin: {low: 0, high: 1\n", 3, "expected ',' or '}'"),
    "tab": ("space:\n\tmargin: 1", 2, "cannot start any token"),
    "two documents": ("space: {}\n---\nspace: {}", 2, "another document"),
    "alias": ("space: &a\n  margin: 1\npoints: *a", 1, "anchors and aliases are refused"),
    "tag": ("space: !!python/object/apply:os.system [ls]", 1, "python/object/apply:os.system is refused"),
    "local tag": ("space: !x 1", 1, "the tag !x is refused"),
    "deep nesting": ("space: " + "[" * 100_000, 1, "nested too deeply"),
    "deep block nesting": ("space:\n" + "\n".join(" " * n + "-" for n in range(1, 300)), 13, "nested too deeply"),
    "long text": (f"description: {'x' * (LONGEST_TEXT + 1)}", 1, f"at most {LONGEST_TEXT} are read"),
    "unprintable text": ('description: "\\e[31m"', 1, "can't be printed"),
    "lone surrogate": ('description: "\\ud800"', 1, "can't be printed"),
}


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_file_and_line(text: str, line: int | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    said = str(caught.value)
    assert said.startswith("my.yaml, line " if line is None else f"my.yaml, line {line}: ")
    assert message in said
    assert "\n" not in said


BYTES = {
    "empty": (b"", "is empty"),
    "comment only": (b"# nothing\n", "is empty"),
    "binary": (b"a: 1\n\x7fELF\x02\x00\x00", "line 2: holds a zero byte"),
    "not UTF-8": (b"a: 1\nb: \xff\n", "line 2: byte 0xff is not UTF-8 text"),
    "UTF-16, cut": ("a: 1".encode("utf-16")[:-1], "line 1: byte 0x31 is not UTF-16 text"),
    "too large": (b"a" * (LARGEST_FILE + 1), "larger than 256 KiB"),
    "huge escape": (b'a: "\\UFFFFFFFF"', "not YAML"),
    "huge version": (b"%YAML " + b"1" * 5000 + b".1\n---\na: 1", "not YAML"),
}


@pytest.mark.parametrize(("raw", "message"), BYTES.values(), ids=BYTES.keys())
def test_a_file_that_is_no_text_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        load_space(str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_byte_order_mark_and_carriage_returns_are_read_past(tmp_path: Path) -> None:
    path = tmp_path / "windows.yml"
    path.write_bytes(b"\xef\xbb\xbf" + CONDITIONAL.replace("\n", "\r\n").encode())
    assert load_space(str(path)).swept == read(CONDITIONAL).swept


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown search space 'digit': did you mean 'digits'?"),
        ("", "unknown search space ''"),
        ("nothing/like.yaml", "nothing/like.yaml: no such file"),
        ("..", "unknown search space '..'"),
        ("a\0b.yaml", "no such file"),
        ("x" * 5000 + ".yaml", "can't be read: File name too long"),
        (str(FOLDER), "is a folder"),
        ("/dev/null.yaml", "no such file"),
    ],
)
def test_a_space_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_space(name)
    assert message in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match="no such file"):
        load_space(str(tmp_path / "pipe.yaml"))


# ---------------------------------------------------------------------------------------------------------------------
# Fuzz: nothing but InputError, whatever is read


def only_input_error(raw: bytes) -> Space | None:
    try:
        return space_from_yaml(parse_yaml(raw, "fuzz.yaml"), name="fuzz")
    except InputError as error:
        message = str(error)
    assert message.startswith("fuzz.yaml")
    return None


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_raise_nothing_else(raw: bytes) -> None:
    only_input_error(raw)


@given(st.text(st.sampled_from("ab01.:-,[]{}&*!|>'\"%#?\n \t\\<=~e") | st.characters(codec="utf-8"), max_size=120))
@settings(max_examples=400, deadline=None)
def test_arbitrary_text_raises_nothing_else(text: str) -> None:
    only_input_error(text.encode())
    only_input_error(f"space:\n  margin: {text}".encode())


VALID = [path.read_text() for path in sorted(FOLDER.glob("*.yaml"))] + [CONDITIONAL]
WORDS = sorted({word for text in VALID for word in text.replace(",", " ").split()}) + [
    *(
        "!!python/name:os",
        "&a",
        "*a",
        "<<:",
        "-1",
        "0",
        "1e999",
        ".inf",
        "null",
        "{}",
        "[]",
        "9" * 30,
        "seed:",
        "\x00",
        "\ud83d",
    )
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file after a few cuts, swaps and insertions of words and of bytes."""
    words = draw(st.sampled_from(VALID)).replace(" ", "\0 \0").replace("\n", "\0\n\0").split("\0")
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(words) - 1))
        words[place] = draw(st.sampled_from(WORDS) | st.just("") | st.sampled_from(words))
    raw = "".join(words).encode(errors="replace")
    return raw[: draw(st.integers(len(raw) // 2, len(raw)))] if draw(st.booleans()) else raw


@given(mutated())
@settings(max_examples=400, deadline=None)
def test_mutated_files_raise_nothing_else_and_what_is_accepted_can_be_drawn(raw: bytes) -> None:
    space = only_input_error(raw)
    if space is not None:
        assert space_from_dict(space.to_dict()) == space
        for config, trial in draws(space, 2):
            TrialConfig.from_mapping(config)
            assert space.active(config) == trial.params


def test_importing_the_spaces_is_cheap() -> None:
    code = "import sys, search_spaces; search_spaces.load_space('digits'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "optuna", "mlflow", "numpy"} & set(loaded)


# ------------------------------------------------------------------------------------------ the older cross_entropy_on

OLDER = """
space:
  cross_entropy_on: {choices: [clean, sensitivity, invariance]}
  sensitivity_epsilon: {low: 0.0, high: 0.3, when: {cross_entropy_on: sensitivity}}
points: [{cross_entropy_on: invariance}, {preset: pgd-at}]
"""


def test_a_space_with_the_older_knob_draws_it_and_gives_weights() -> None:
    space = read(OLDER)
    drawn = {config["cross_entropy_on"]: config for config in space.grid(["cross_entropy_on"])}
    assert set(drawn) == {"clean", "sensitivity", "invariance"}
    for view, config in drawn.items():
        assert config[f"{view}_ce_weight"] == 1.0
        assert space.active(config)["cross_entropy_on"] == view
        assert ("sensitivity_epsilon" in space.active(config)) == (view == "sensitivity")


def test_the_plain_form_of_an_older_space_is_what_it_was() -> None:
    """Check what a sweep's plan holds, whose digest a resumed sweep must meet."""
    plain = read(OLDER).to_dict()
    attack = {"sensitivity_steps": 40, "sensitivity_step_size": 0.01}
    assert plain["points"] == [{"cross_entropy_on": "invariance"}, {"cross_entropy_on": "sensitivity", **attack}]
    assert read(yaml.safe_dump(plain)).to_dict() == plain


def test_a_point_with_the_older_knob_replaces_the_fixed_weights() -> None:
    fixed = "space: {clean_ce_weight: 0.5, sensitivity_ce_weight: 0.5, margin: {low: 0.0, high: 1.0}}\n"
    (point,) = read(f"{fixed}points: [{{cross_entropy_on: invariance}}]").points
    assert [point[f"{view}_ce_weight"] for view in ("clean", "sensitivity", "invariance")] == [0.0, 0.0, 1.0]


def test_a_condition_is_met_at_the_corners_of_what_it_asks_for() -> None:
    """Check a pair of knobs that are never on together, and one that is on under the second of its options alone."""
    space = read("""
space:
  sensitivity_ce_weight: {choices: [0.0, 1.0]}
  clean_ce_weight: {choices: [0.0, 1.0], when: {sensitivity_ce_weight: 1.0}}
  trades_weight: {low: 1.0, high: 6.0, when: {sensitivity_ce_weight: 0.0}}
""")
    for config in space.corners():
        assert config.clean_ce_weight > 0 or config.sensitivity_ce_weight > 0
        assert not (config.trades_weight > 0 and config.sensitivity_ce_weight > 0)


def test_a_fixed_knob_holds_for_all_trials_and_frees_those_that_it_rules_out() -> None:
    space = fix_knobs(read(CONDITIONAL), ["regularizer=triplet", "sensitivity_epsilon=8/255"])
    assert set(space.swept) == {"mining", "margin", "sensitivity_steps", "batch_size", "norm_weight"}
    assert space.swept["mining"].is_on(space.fixed)
    assert {point["sensitivity_epsilon"] for point in space.points} == {8 / 255}
    assert [point["regularizer"] for point in space.points] == ["triplet", "triplet"]
    drawn = [space.sample(study_for(seed).ask()) for seed in range(20)]
    assert {(each["regularizer"], each["sensitivity_epsilon"]) for each in drawn} == {("triplet", 8 / 255)}
    again = space_from_dict(space.to_dict())
    assert again == space, "else a plan could not hold it"
    assert list(again.swept) == list(space.swept), "else a resumed sweep would draw otherwise"

    without = fix_knobs(read(CONDITIONAL), ["regularizer=none"])
    assert not {"margin", "mining"} & set(without.swept)


def test_points_that_a_fixed_knob_makes_equal_run_once() -> None:
    text = "space: {regularizer: triplet}\npoints:\n  - {margin: 0.1}\n  - {margin: 0.2}\n"
    assert fix_knobs(read(text), ["margin=0.3"]).trials == 1


def test_a_space_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(InputError, match="leaves nothing to sweep; `otsweep trial` runs one trial"):
        fix_knobs(read("space: {mining: {choices: [hard, semihard]}, regularizer: triplet}\n"), ["mining=hard"])


def test_what_judges_is_fixed_too() -> None:
    space = fix_knobs(read(CONDITIONAL), ["eval_sensitivity_epsilon=0.1", "crowd=lenient"])
    assert (space.evaluation.eval_sensitivity_epsilon, space.evaluation.crowd) == (0.1, "lenient")
    assert space.swept == read(CONDITIONAL).swept


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["margn=1"], "unknown setting 'margn': did you mean 'margin'"),
        (["margin"], "write it as key=value"),
        (["seed=1"], "--set seed: is not set so: the sweep gives it"),
        (["sensitivity_steps=-1"], "sensitivity_steps = -1: must be"),
    ],
)
def test_a_wrong_fixed_knob_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fix_knobs(read(CONDITIONAL), texts)

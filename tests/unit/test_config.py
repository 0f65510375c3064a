"""The two configurations: the values they accept, and the messages for those they refuse."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import (
    DATASETS,
    OLDER_FIELDS,
    EvaluationConfig,
    TrialConfig,
    usual_settings,
    view_of_cross_entropy,
)
from trainer.errors import InputError, OtsweepError
from trainer.fields import describe_range, field_type, parse_settings
from trainer.words import SHORT_NAMES, did_you_mean

RECORDS = (TrialConfig, EvaluationConfig)
KNOBS = [(record, name, spec) for record in RECORDS for name, spec in record.fields().items()]
NUMBERS = [knob for knob in KNOBS if field_type(knob[2]) in (int, float)]
CHOICES = [knob for knob in KNOBS if knob[2].metadata["choices"]]
every_knob = pytest.mark.parametrize(("record", "name", "spec"), KNOBS, ids=[name for _, name, _ in KNOBS])


def values_of(spec: dataclasses.Field) -> st.SearchStrategy:
    """Draw any value that a knob accepts; budgets only up to 1, which every norm allows."""
    low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
    if spec.metadata["choices"]:
        return st.sampled_from(spec.metadata["choices"])
    if field_type(spec) is str:  # of a crowd: what it may be is known where its numbers are
        return st.sampled_from(["strict", "mine threshold=0.4 auc=[1,0.9,nan]"])
    if field_type(spec) is int:
        return st.integers(low, high)
    bottom = low if above is None else above
    return st.floats(bottom, 1 if spec.name.endswith("epsilon") else high, exclude_min=above is not None)


def configs(record: type) -> st.SearchStrategy:
    """Draw any record, but none of an architecture that its certified term could not train."""
    values = st.fixed_dictionaries({n: values_of(f) for n, f in record.fields().items()})
    fit = values.map(
        lambda drawn: drawn if drawn.get("architecture") != "resnet18" else {**drawn, "certified_ce_weight": 0}
    )
    return st.builds(record.from_mapping, fit if record is TrialConfig else values)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


# What is accepted


@given(chosen=st.one_of(*map(configs, RECORDS)))
def test_a_record_survives_its_plain_form(chosen: Any) -> None:
    plain = json.loads(json.dumps(chosen.to_dict()))
    assert type(chosen).from_mapping(plain) == chosen


@given(chosen=st.one_of(*map(configs, RECORDS)))
def test_a_record_survives_the_command_line(chosen: Any) -> None:
    pairs = [f"{name}={value}" for name, value in chosen.to_dict().items()]
    settings = parse_settings(pairs, TrialConfig, EvaluationConfig)
    assert type(chosen).from_mapping(settings) == chosen
    assert all(type(settings[name]) is field_type(spec) for name, spec in type(chosen).fields().items())


def test_a_value_takes_the_type_of_its_knob() -> None:
    given_loosely = TrialConfig(epochs=3.0, margin=1)  # type: ignore[arg-type]
    assert given_loosely == TrialConfig(epochs=3, margin=1.0)
    assert (type(given_loosely.epochs), type(given_loosely.margin)) == (int, float)


def test_a_record_is_frozen_and_replaced() -> None:
    start = TrialConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        start.margin = 0.2  # type: ignore[misc]
    changed = start.replace(margin=0.2)
    assert (start.margin, changed.margin) == (0.05, 0.2)
    assert dataclasses.replace(changed, margin=start.margin) == start


def test_what_replaces_is_checked() -> None:
    with pytest.raises(InputError, match="margin = -1"):
        TrialConfig().replace(margin=-1)
    with pytest.raises(InputError, match=r"unknown setting 'margins': did you mean 'margin'\?"):
        TrialConfig().replace(margins=1)


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_data_set_has_defaults_that_fit(dataset: str) -> None:
    defaults = usual_settings(dataset)
    split = [{k: v for k, v in defaults.items() if k in record.fields()} for record in RECORDS]
    assert len(split[0]) + len(split[1]) == len(defaults)
    TrialConfig.from_mapping(split[0])
    EvaluationConfig.from_mapping({"dataset": dataset, **split[1]})


# What is refused


@pytest.mark.parametrize(("record", "name", "spec"), NUMBERS, ids=[name for _, name, _ in NUMBERS])
def test_a_number_must_be_in_range(record: type, name: str, spec: dataclasses.Field) -> None:
    low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
    inside = [limit for limit in (low, high) if limit is not None]
    outside = [] if high is None else [high + 1]
    outside += [low - 1] if low is not None else [above]
    if name.endswith("sensitivity_epsilon"):
        inside = [0, 1]
    for value in inside:
        assert getattr(record.from_mapping({name: value}), name) == value
    for value in outside:
        with pytest.raises(InputError) as raised:
            record.from_mapping({name: value})
        kept = field_type(spec)(value)
        assert str(raised.value) in {
            f"{name} = {kept!r}: must be {describe_range(spec)}",
            f"{name} = {kept!r}: must be at least 0 and at most 1 (pixel units of [0,1] images)",
        }
    if field_type(spec) is float:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(InputError, match=f"{name} = {value}: must be "):
                record.from_mapping({name: value})


@pytest.mark.parametrize(("record", "name", "spec"), CHOICES, ids=[name for _, name, _ in CHOICES])
def test_a_word_must_be_known(record: type, name: str, spec: dataclasses.Field) -> None:
    for word in spec.metadata["choices"]:
        with pytest.raises(InputError, match=rf"{name} = '{word}x': did you mean '{word}'\?"):
            record.from_mapping({name: word + "x"})
        with pytest.raises(InputError, match=rf"{name} = '{word.upper()}': did you mean '{word}'\?"):
            record.from_mapping({name: word.upper()})


MESSAGES: dict[str, tuple[type, dict[str, Any], str]] = {
    "word for a number": (
        TrialConfig,
        {"margin": "wide"},
        "margin = 'wide': must be a number, at least 0 and at most 100",
    ),
    "fraction for a count": (
        TrialConfig,
        {"epochs": 2.5},
        "epochs = 2.5: must be a whole number, at least 1 and at most 100000",
    ),
    "truth for a count": (
        TrialConfig,
        {"epochs": True},
        "epochs = True: must be a whole number, at least 1 and at most 100000",
    ),
    "truth for a number": (
        TrialConfig,
        {"margin": False},
        "margin = False: must be a number, at least 0 and at most 100",
    ),
    "nothing for a number": (
        TrialConfig,
        {"margin": None},
        "margin = None: must be a number, at least 0 and at most 100",
    ),
    "below a limit that counts": (TrialConfig, {"epochs": 0}, "epochs = 0: must be at least 1 and at most 100000"),
    "at a limit that does not": (
        TrialConfig,
        {"learning_rate": 0},
        "learning_rate = 0.0: must be above 0 and at most 10",
    ),
    "a limit of ten digits": (TrialConfig, {"seed": -1}, "seed = -1: must be at least 0 and at most 2147483647"),
    "number for a word": (TrialConfig, {"mining": 3}, "mining = 3: must be one of hard, semihard"),
    "nothing for a word": (TrialConfig, {"mining": None}, "mining = None: must be one of hard, semihard"),
    "negative size": (
        EvaluationConfig,
        {"train_size": -1},
        "train_size = -1: must be at least 0 and at most 1000000",
    ),
    "8 of 255": (
        TrialConfig,
        {"sensitivity_epsilon": 8},
        "sensitivity_epsilon = 8.0: must be at least 0 and at most 1 (pixel units of [0,1] images)",
    ),
    "8 of 255, judging": (
        EvaluationConfig,
        {"eval_sensitivity_epsilon": 8},
        "eval_sensitivity_epsilon = 8.0: must be at least 0 and at most 1 (pixel units of [0,1] images)",
    ),
    "too far in L2": (
        TrialConfig,
        {"sensitivity_norm": "l2", "sensitivity_epsilon": 65},
        "sensitivity_epsilon = 65.0: must be at least 0 and at most 64",
    ),
    "word far from any": (
        EvaluationConfig,
        {"dataset": "imagenet"},
        "dataset = 'imagenet': known: digits, mnist, fashion_mnist, kmnist, emnist, usps, cifar10, svhn, folder:PATH, "
        "npz:PATH, python:MODULE:FUNCTION",
    ),
    "part of a word": (
        EvaluationConfig,
        {"dataset": "cifar"},
        "dataset = 'cifar': did you mean 'cifar10'?",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_refusal_names_field_value_and_remedy(case: str) -> None:
    record, values, message = MESSAGES[case]
    with pytest.raises(InputError) as raised:
        record.from_mapping(values)
    assert str(raised.value) == message


def test_l2_budgets_may_exceed_one() -> None:
    assert TrialConfig(sensitivity_norm="l2", sensitivity_epsilon=8).sensitivity_epsilon == 8.0


@every_knob
@given(value=ANYTHING)
def test_no_value_raises_anything_else(record: type, name: str, spec: dataclasses.Field, value: Any) -> None:
    try:
        kept = getattr(record.from_mapping({name: value}), name)
    except InputError as error:
        assert str(error).startswith(f"{name} = ")  # noqa: PT017 - either outcome is right
    else:
        assert type(kept) is field_type(spec)
        assert kept == value


@given(pairs=st.lists(st.text() | st.builds("{}={}".format, st.sampled_from([k[1] for k in KNOBS]), st.text())))
def test_no_setting_raises_anything_else(pairs: list[str]) -> None:
    try:
        settings = parse_settings(pairs, TrialConfig, EvaluationConfig)
    except InputError:
        return
    for record in RECORDS:
        kept = {key: value for key, value in settings.items() if key in record.fields()}
        assert kept == {key: field_type(record.fields()[key])(value) for key, value in kept.items()}


HUGE = {
    "count": lambda: TrialConfig(epochs=10**400),
    "size": lambda: EvaluationConfig(train_size=10**400),
    "number": lambda: TrialConfig(margin=10**400),
    "negative": lambda: TrialConfig(margin=-(10**400)),
    "more digits than repr shows": lambda: TrialConfig(epochs=10**5000),
    "endless list": lambda: TrialConfig(epochs=list(range(1000))),  # type: ignore[arg-type]
    "on the command line": lambda: parse_settings(["seed=" + "9" * 5000], TrialConfig),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_huge_number_is_refused_like_any_other(case: str) -> None:
    with pytest.raises(InputError, match=r"^\w+ = .{1,80}: must be"):
        HUGE[case]()


# Names


@every_knob
def test_a_slip_is_answered_with_the_knob_that_was_meant(record: type, name: str, spec: dataclasses.Field) -> None:
    for slip in {name[:-1], name + "s", name[1:], name.upper(), name.replace("_", "")} - {name, "own_"}:
        with pytest.raises(InputError) as raised:
            record.from_mapping({slip: 1})
        assert str(raised.value) == f"unknown setting {slip!r}: did you mean {name!r}?"


def test_a_short_name_of_the_tables_is_answered_with_its_knob() -> None:
    for name, short in SHORT_NAMES.items():
        assert did_you_mean(short, TrialConfig.fields() | OLDER_FIELDS) == f"did you mean {name!r}?"


def test_what_is_like_nothing_gets_the_whole_list() -> None:
    assert did_you_mean("xyz", ["cnn", "mlp"]) == "known: cnn, mlp"
    assert did_you_mean(3, ["cnn", "mlp"]) == "known: cnn, mlp"


def test_short_names_are_of_knobs_and_distinct() -> None:
    assert SHORT_NAMES.keys() <= (TrialConfig.fields() | OLDER_FIELDS).keys()
    assert len(set(SHORT_NAMES.values())) == len(SHORT_NAMES)


def test_no_knob_is_in_both_records() -> None:
    """Check that no name is in both: `--set` and a trial's row use names without saying of which configuration."""
    assert not TrialConfig.fields().keys() & EvaluationConfig.fields().keys()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("margin", "--set 'margin': write it as key=value"),
        ("", "--set '': write it as key=value"),
        ("margin=", "margin = '': must be a number, at least 0 and at most 100"),
        ("epochs=ten", "epochs = 'ten': must be a whole number, at least 1 and at most 100000"),
        ("epochs=1.5", "epochs = 1.5: must be a whole number, at least 1 and at most 100000"),
        ("margin=nan", "margin = nan: must be at least 0 and at most 100"),
        ("mining=easy", "mining = 'easy': known: hard, semihard"),
    ],
)
def test_a_wrong_setting_is_reported(pair: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_settings([pair], TrialConfig, EvaluationConfig)
    assert str(raised.value) == message


def test_settings_are_read_as_people_write_them() -> None:
    pairs = [" learning-rate = 1e-3 ", "epochs=1e2", "seed=+7", "dataset=mnist", "margin=.5", "margin=0.25"]
    assert parse_settings(pairs, TrialConfig, EvaluationConfig) == {
        "learning_rate": 0.001,
        "epochs": 100,
        "seed": 7,
        "dataset": "mnist",
        "margin": 0.25,
    }


def test_a_setting_must_be_of_the_records_asked_for() -> None:
    with pytest.raises(InputError, match="unknown setting 'dataset'"):
        parse_settings(["dataset=mnist"], TrialConfig)


# What a trial uses


@pytest.mark.parametrize(
    ("changes", "sensitivity", "invariance"),
    [
        ({}, False, False),
        ({"sensitivity_weight": 1.0, "invariance_weight": 1.0}, False, False),
        ({"regularizer": "triplet"}, False, False),
        ({"regularizer": "triplet", "sensitivity_weight": 1.0}, True, False),
        ({"regularizer": "sinkhorn", "invariance_weight": 1.0}, False, True),
        ({"trades_weight": 1.0}, True, False),
        ({"norm_weight": 1.0}, False, False),
        ({"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}, True, False),
        ({"clean_ce_weight": 0.0, "invariance_ce_weight": 1.0}, False, True),
    ],
)
def test_perturbations_are_made_only_where_a_term_needs_them(
    changes: dict[str, Any], sensitivity: bool, invariance: bool
) -> None:
    chosen = TrialConfig(**changes)
    assert (chosen.uses_sensitivity, chosen.uses_invariance) == (sensitivity, invariance)


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({}, ("clean",)),
        ({"certified_ce_weight": 0.5}, ("clean",)),
        ({"certified_ce_weight": 0.5, "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}, ("clean", "sensitivity")),
        ({"certified_ce_weight": 0.5, "clean_ce_weight": 0.0, "certified_ramp": 0.0}, ("clean",)),
    ],
)
def test_what_the_certified_term_does_not_have_yet_goes_to_the_clean_images(
    changes: dict[str, Any], views: tuple[str, ...]
) -> None:
    assert TrialConfig(**changes).cross_entropy_views == views


def test_certified_training_refuses_an_architecture_whose_bounds_explode() -> None:
    message = "architecture = 'resnet18': can't be trained by certified_ce_weight .* must be one of cnn, mlp"
    with pytest.raises(InputError, match=message):
        TrialConfig(architecture="resnet18", certified_ce_weight=0.5)
    TrialConfig(architecture="resnet18", certified_method="crown-ibp", certified_epsilon=0.3)


# The module


def test_errors_are_one_family_and_still_values() -> None:
    assert issubclass(InputError, OtsweepError)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("record", RECORDS)
def test_every_knob_is_documented(record: type) -> None:
    (body,) = (node.body for node in ast.walk(ast.parse(inspect.getsource(record))) if isinstance(node, ast.ClassDef))
    documented = {
        node.target.id
        for node, after in zip(body, body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr)
    }
    assert record.fields().keys() <= documented


def test_reading_configurations_costs_no_torch() -> None:
    code = "import sys, trainer.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------ the older cross_entropy_on


@pytest.mark.parametrize("view", ["clean", "sensitivity", "invariance"])
def test_what_the_cross_entropy_saw_becomes_three_weights(view: str) -> None:
    config = TrialConfig.from_mapping({"cross_entropy_on": view, "margin": 0.5})
    weights = {name: getattr(config, f"{name}_ce_weight") for name in ("clean", "sensitivity", "invariance")}
    assert weights == {**dict.fromkeys(weights, 0.0), view: 1.0}
    assert config.cross_entropy_views == (view,)
    assert view_of_cross_entropy(config.to_dict()) == view
    assert config.margin == 0.5


def test_a_weight_that_is_given_stands_beside_the_older_knob() -> None:
    config = TrialConfig.from_mapping({"cross_entropy_on": "sensitivity", "invariance_ce_weight": 0.5})
    assert (config.clean_ce_weight, config.sensitivity_ce_weight, config.invariance_ce_weight) == (0.0, 1.0, 0.5)


def test_a_wrong_view_is_answered_with_the_right_ones() -> None:
    with pytest.raises(InputError, match="cross_entropy_on = 'sensitive': did you mean 'sensitivity'"):
        TrialConfig.from_mapping({"cross_entropy_on": "sensitive"})


def test_without_any_weight_the_clean_view_is_seen_and_nothing_taught() -> None:
    assert TrialConfig(clean_ce_weight=0.0).cross_entropy_views == ("clean",)

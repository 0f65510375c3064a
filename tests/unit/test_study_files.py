"""Studies read from YAML: what is understood, and what is refused with file, line and the right word."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from search_spaces.reading import load_space
from search_spaces.study import load_study, names_study, study_from_yaml
from search_spaces.yaml_file import locate, parse_yaml
from sweep.cli.commands import main
from sweep.cluster.submission import study_submission
from sweep.plan.audit_options import AUDIT_OPTIONS
from sweep.plan.plan_file import write_plan
from sweep.plan.study_plan import StudyPlan, begin_study, has_study, make_study, read_study
from trainer.errors import InputError

STUDY = """\
question: does it help?
evaluation: {dataset: digits}
space:
  epochs: 2
  learning_rate: {low: 0.001, high: 0.01}
arms:
  control: {regularizer: none}
  triplet: {regularizer: triplet, margin: {low: 0.1, high: 1}}
effort: {trials: 4, epochs: 3}
seeds: 3
audit: {seeds: 2}
"""


def read(text: str):
    return study_from_yaml(parse_yaml(text.encode(), "my.yaml"), name="my", audit_options=AUDIT_OPTIONS)


def test_arms_share_what_the_study_says_and_differ_in_their_own_knobs() -> None:
    study = read(STUDY)
    assert list(study.arms) == ["control", "triplet"]
    control, triplet = study.arms.values()
    assert list(control.swept) == ["learning_rate"]
    assert list(triplet.swept) == ["learning_rate", "margin"]
    assert {control.trials, triplet.trials} == {4}
    assert {control.name, triplet.name} == {"my"}
    assert (study.seeds, study.effort.epochs, study.audit) == ((0, 1, 2), 3, {"seeds": 2})
    assert study.space("triplet", 2).evaluation.split_seed == 2
    assert read(STUDY.replace("seeds: 3", "seeds: [7, 5]")).seeds == (7, 5)


def test_a_study_is_read_back_from_its_plain_values() -> None:
    study = read(STUDY)
    again = study_from_yaml(locate(study.source, "kept"), name="", audit_options=AUDIT_OPTIONS)
    assert again == study


def test_a_knob_fixed_on_the_command_line_holds_for_all_arms() -> None:
    study = read(STUDY).fixing(["batch_size=32", "eval_sensitivity_epsilon=0.1"], audit_options=AUDIT_OPTIONS)
    assert {space.fixed["batch_size"] for space in study.arms.values()} == {32}
    assert {space.evaluation.eval_sensitivity_epsilon for space in study.arms.values()} == {0.1}
    assert study.source["space"]["batch_size"] == 32
    assert "batch_size" not in read(STUDY).source["space"]
    with pytest.raises(InputError, match="--set regularizer: arm 'control' has it itself"):
        read(STUDY).fixing(["regularizer=none"], audit_options=AUDIT_OPTIONS)


WRONG = {
    "one arm": (("  triplet: {regularizer: triplet, margin: {low: 0.1, high: 1}}\n", ""), "line 6: arms: 1 given"),
    "unknown knob": (("margin: {", "margn: {"), "line 8: unknown setting 'margn' in arm 'triplet': did you mean"),
    "same space": (
        ("triplet: {regularizer: triplet, margin: {low: 0.1, high: 1}}", "triplet: {}"),
        "line 8: arm 'triplet' is the same space as arm 'control'",
    ),
    "range upside down": (("low: 0.1, high: 1}", "low: 2, high: 1}"), "line 8: margin: low = 2.0 must be below"),
    "no mapping": (("control: {regularizer: none}", "control: none"), "line 7: arm 'control' must be a mapping"),
    "name of an arm": (("control:", "the-control:"), "line 7: arm 'the-control': must be 1 to 24 letters"),
    "no effort": (("effort: {trials: 4, epochs: 3}\n", ""), "needs the section 'effort:'"),
    "two efforts": (("trials: 4,", "trials: 4, hours: 2,"), "line 9: effort must have either trials or hours"),
    "unknown effort": (("trials: 4,", "trails: 4,"), "line 9: unknown setting 'trails': did you mean 'trials'?"),
    "no seeds": (("seeds: 3", "seeds: 0"), "line 10: seeds = 0: must be at least 1"),
    "a seed twice": (("seeds: 3", "seeds: [1, 1]"), "line 10: seed 1 stands twice"),
    "unknown option of the audit": (("{seeds: 2}", "{sedes: 2}"), "line 11: unknown setting 'sedes': did you mean"),
    "value of the audit": (("{seeds: 2}", "{seeds: none}"), "line 11: seeds = 'none': must be a whole number"),
    "split": (("{dataset: digits}", "{dataset: digits, split_seed: 3}"), "line 2: 'split_seed' is not set here"),
    "unknown section": (("seeds: 3", "seed: 3"), "line 10: unknown key 'seed' in a study: did you mean 'seeds'?"),
    "evaluation in an arm": (
        ("{regularizer: none}", "{crowd: lenient}"),
        "line 7: 'crowd' is what every trial is judged by",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_line(change: tuple[str, str], message: str) -> None:
    assert change[0] in STUDY
    with pytest.raises(InputError) as raised:
        read(STUDY.replace(*change))
    assert str(raised.value).startswith("my.yaml")
    assert message in str(raised.value)


def test_a_study_is_told_from_a_space(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(STUDY)
    assert names_study(str(tmp_path / "my.yaml"))
    assert names_study("studies/mnist")
    assert names_study("regularizers")
    assert not names_study("mnist")
    with pytest.raises(InputError, match=r"is a study, since it has 'arms': run it by `otsweep study FILE`"):
        load_space(str(tmp_path / "my.yaml"))


@pytest.mark.parametrize("name", ["regularizers", "mnist"])
def test_the_studies_that_come_along_compare_with_what_saw_the_labelled_images(name: str) -> None:
    study = load_study(name, audit_options=AUDIT_OPTIONS)
    control = next(iter(study.arms.values()))
    assert "invariance_ce_weight" in control.swept, "else the question would not be about transport"
    assert len({space.evaluation for space in study.arms.values()}) == 1
    shared = set(control.swept) - {"invariance_ce_weight", "invariance_epsilon"}
    assert all(shared <= set(space.swept) for space in study.arms.values())


def planned(folder: Path, text: str = STUDY, *, name: str | None = "mine", **options: object) -> StudyPlan:
    (folder / "my.yaml").write_text(text)
    return make_study(str(folder / "my.yaml"), name=name, options={"storage": str(folder / "all"), **options})


def test_every_arm_meets_every_seed_and_no_arm_is_always_first(tmp_path: Path) -> None:
    rounds = list(planned(tmp_path).rounds())
    assert [[step.arm for step in each] for each in rounds] == [
        ["control", "triplet"],
        ["triplet", "control"],
        ["control", "triplet"],
    ]
    assert [{step.seed for step in each} for each in rounds] == [{0}, {1}, {2}]


def test_arms_get_the_same_effort_seeds_and_options(tmp_path: Path) -> None:
    study = planned(tmp_path, sampler="random")
    plans = [study.sweep_plan(step) for step in study.steps]
    assert {(plan.trials, plan.epochs, plan.sampler, plan.keep_models) for plan in plans} == {(4, 3, "random", "none")}
    assert [(plan.seed, plan.space.evaluation.split_seed) for plan in plans] == [(s, s) for s in (0, 0, 1, 1, 2, 2)]
    timed = planned(tmp_path, STUDY.replace("trials: 4, epochs: 3", "hours: 2"), name="timed")
    assert {timed.sweep_plan(step).max_hours for step in timed.steps} == {2}


def test_a_study_that_was_begun_goes_on_under_its_name_with_its_file_alone(tmp_path: Path) -> None:
    study = begin_study(planned(tmp_path))
    assert has_study("mine", storage=str(tmp_path / "all"))
    assert read_study("mine", storage=str(tmp_path / "all")) == study
    assert begin_study(planned(tmp_path, max_concurrent="1")).options["max_concurrent"] == "1"
    with pytest.raises(InputError, match="is another study in .* whose file or --sampler differs"):
        begin_study(planned(tmp_path, STUDY.replace("trials: 4", "trials: 5")))
    swapped = STUDY.replace("  control: {regularizer: none}\n", "").replace(
        "effort:", "  control: {regularizer: none}\neffort:"
    )
    with pytest.raises(InputError, match="is another study"):
        begin_study(planned(tmp_path, swapped))  # another control

    path = study.folder / "study.yaml"
    path.write_text(path.read_text().replace("trials: 4", "trials: 6"))
    with pytest.raises(InputError, match="is damaged or was changed by hand"):
        read_study("mine", storage=str(tmp_path / "all"))


def test_a_study_is_sent_to_a_cluster_as_its_file_and_the_command_that_runs_it(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(STUDY)
    paths = {"storage": "/shared", "mlflow_uri": None, "data_dir": None}
    sent = study_submission(str(tmp_path / "my.yaml"), name="mine", options={"sampler": "random"}, paths=paths)
    assert sent.command == ("study", "my.yaml", "--name", "mine", "--storage", "/shared", "--sampler", "random")
    assert sent.space_file is not None
    assert read(sent.space_file[1]) == read(STUDY)
    assert sent.plan.hash == planned(tmp_path, sampler="random").hash, "else it could be sent twice"
    fixed = study_submission("mnist", name="mine", options={}, paths={}, settings=["epochs=2"])
    assert fixed.space_file is not None
    assert read(fixed.space_file[1]).source["space"]["epochs"] == 2
    assert fixed.command == ("study", "mnist.yaml", "--name", "mine")
    assert study_submission("mnist", name="mine", options={}, paths={}).command == ("study", "mnist", "--name", "mine")


COMMANDS = {
    "unknown study": (["study", "regularisers"], "unknown study 'regularisers': did you mean 'regularizers'?"),
    "no such study": (["study", "nothing", "--report"], "no study 'nothing' in"),
    "unknown option": (["study", "regularizers", "--trials", "3"], "unknown option '--trials'"),
    "unknown sampler": (["study", "regularizers", "--sampler", "tpo"], "--sampler = 'tpo': did you mean 'tpe'?"),
    "a name too long": (["study", "regularizers", "--name", "n" * 60], "a sweep of the study"),
    "effort on the command line": (["plan", "regularizers", "--trials", "3"], "--trials: regularizers is a study"),
    "study run as a sweep": (["run", "regularizers"], "'regularizers' is a study: run it by `otsweep study regul"),
    "a pilot that is none": (["study", "regularizers", "--pilot", "nothing"], "study.json: can't be read"),
}


@pytest.mark.parametrize(("words", "message"), COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_word_is_answered(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_study_that_began_with_another_library_goes_on_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTSWEEP_STORAGE", str(tmp_path / "storage"))
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY)
    plan = begin_study(make_study(str(file), name="mine", options={"storage": None}))
    first = plan.sweep_plan(plan.steps[0])
    write_plan(dataclasses.replace(first, versions=first.versions | {"torch": "1.0"}))
    assert main(["study", str(file), "--name", "mine"]) == 2
    assert "began with torch 1.0, here " in capsys.readouterr().err
    assert main(["resume", "mine"]) == 2
    assert "give --other-versions" in capsys.readouterr().err

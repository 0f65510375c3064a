"""The audit: its rules on results made by hand, and a whole one of a real sweep, also interrupted and repeated."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import sweep
from search_spaces.reading import load_space
from sweep.audit import audit as module
from sweep.audit.audit import Audit, run_audit
from sweep.audit.figures import audit_figure, curves_figure
from sweep.audit.finalists import (
    Finalist,
    choose_finalists,
    cloud,
    dominated_beyond,
    effective,
    share_interval,
)
from sweep.audit.measures import MEASURED
from sweep.audit.measuring import _draw
from sweep.audit.results import AuditResult, judged_by, sealed
from sweep.audit.tables import (
    _audit_json,
    _summary,
    command,
    doubles,
    finalist_lines,
    front_line,
    front_lines,
    rows,
    show_people,
)
from sweep.audit.verdicts import Outcome, outcome
from sweep.cli.commands import main
from sweep.front.objectives import Objectives
from sweep.front.pareto import front_mask
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.audit_options import AuditOptions
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import read_plan, write_plan
from sweep.report.audited import AUDIT_JSON
from sweep.report.page import front_page
from sweep.report.rows import front_rows
from sweep.report.verdicts import verdict
from sweep.state.data_summary import read_data_summary
from sweep.state.judged import JudgedImages
from sweep.state.sweep_state import SweepState
from sweep.tracking.curves import audited_numbers
from tests.integration.test_sweep import SPACE, run_words
from tests.support.commands import PATIENCE, otsweep, start, wait_for
from tests.support.commands import command as shell_words
from trainer.answers import Answers
from trainer.attacks.evidence import wilson_interval
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.human_agreement import (
    JUDGE,
    MODEL,
    ORIGINAL,
    Agreement,
    ExamplesFolder,
    HumanAgreement,
    SetComparison,
    Share,
)
from trainer.invariance.preparation import Prepared
from trainer.training.loop import run_trial

CHANGED = 100
IMAGES = 300
SHARES = st.floats(0, 1).map(lambda share: round(share, 2))


def shares(sensitivity: float, invariance: float, *, clean: float = 0.9, changed: int = CHANGED) -> dict[str, float]:
    return {
        "sensitivity_accuracy": sensitivity,
        "invariance_accuracy": invariance,
        "clean_accuracy": clean,
        "invariance_stuck": 0.5,
        "invariance_effective_size": changed,
    }


def trial(number: int, sensitivity: float, invariance: float, **config: object) -> TrialRecord:
    final = {**shares(sensitivity, invariance), "epoch": 12, "final": True}
    return TrialRecord(number, config={"seed": 0, **config}, seed=0, state="finished", reports=[final])


def results_of(points: Sequence[tuple[float, float]]) -> SweepState:
    trials = {number: trial(number, *point) for number, point in enumerate(points)}
    return SweepState(OBJECTIVES, trials, total=len(trials))


def chosen(points: Sequence[tuple[float, float]], *, images: int = IMAGES) -> list[int]:
    return [record.number for record in choose_finalists(results_of(points), images=images)]


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return make_plan(load_space("digits"), name="hand-made", storage=str(tmp_path))


def crowd_of(changed: int = CHANGED) -> JudgedImages:
    """Return judged images of class 0 in which everybody sees a 1."""
    seen = np.tile(np.eye(2, dtype=np.float32)[1], (changed, 1))
    return JudgedImages(np.arange(changed), np.zeros(changed, dtype=np.int64), {"uncalibrated": seen})


def answering(numbers: Mapping[str, float], *, seed: int = 0) -> str:
    """Return answers that give these shares, on images drawn by seed; a robust image is right."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(IMAGES)
    right, robust = (np.zeros(IMAGES, dtype=bool) for _ in range(2))
    right[order[: round(numbers["clean_accuracy"] * IMAGES)]] = True
    robust[order[: round(numbers["sensitivity_accuracy"] * IMAGES)]] = True
    perturbed = np.zeros(CHANGED, dtype=np.uint8)
    perturbed[generator.permutation(CHANGED)[: round(numbers["invariance_accuracy"] * CHANGED)]] = 1
    return Answers(right, robust, perturbed, np.ones(CHANGED, dtype=bool)).encode()


def audited(number: int, seed: int, numbers: Mapping[str, float], *, own: bool = False) -> AuditResult:
    result = AuditResult(
        number=number,
        config={"seed": seed},
        judged_by=judged_by(AuditOptions()),
        images=IMAGES,
        rows=[],
        numbers={
            **numbers,
            "certified_accuracy": 0.05,
            "sensitivity_invalid": 0.2,
            "sensitivity_doubted": 0.1,
            "adversary_accuracy": 0.1,
            "adversary_stuck": 0.8,
            "adversary_size": CHANGED,
        },
        answers=answering(numbers, seed=seed),
        broken_by={"apgd-ce": 10},
    )
    if not own:
        return result
    return dataclasses.replace(
        result,
        own=True,
        numbers={**result.numbers, "curve_area": 0.4},
        validation={name: answering(numbers, seed=99) for name in ("selected", "attacked")},
        curve={"epsilons": [0.0, 0.1, 0.2], "accuracies": [0.9, 0.6, 0.3], "alone": [0.9, 0.6, 0.3]},
    )


def finalist(selected: Mapping[str, float], *fresh: Mapping[str, float], number: int = 0) -> Finalist:
    """Return a finalist that its own model confirms and that other seeds trained to other numbers."""
    record = trial(number, selected["sensitivity_accuracy"], selected["invariance_accuracy"], regularizer="triplet")
    runs = tuple(audited(number, seed, numbers) for seed, numbers in enumerate(fresh, start=1))
    return Finalist(record, (record,), (audited(number, 0, selected, own=True),), runs)


def outcome_of(finalists: Sequence[Finalist], *, judges: int = 2, margin: float = 0.1) -> Outcome:
    return outcome(list(finalists), crowd_of(), [crowd_of()] * judges, objectives=OBJECTIVES, margin=margin)


def people(digest: str, *, hits: int = 10) -> HumanAgreement:
    """Return one set of 100 images, of which people see 40 changed; the judge answers 60, the model all."""
    whole, none = Share(100, 100), Share(0, 0)
    return HumanAgreement(
        "there",
        digest,
        (
            SetComparison(
                name="linf/some",
                images=100,
                changed=40,
                unchanged=60,
                white=255,
                agreements=(
                    Agreement(ORIGINAL, whole, Share(0, 40), Share(40, 40), Share(60, 60), none),
                    Agreement(JUDGE, Share(60, 100), Share(15, 20), Share(3, 20), Share(35, 40), Share(15, 18)),
                    Agreement(MODEL, whole, Share(hits, 40), Share(20, 38), Share(50, 60), Share(hits, 30)),
                ),
            ),
        ),
    )


def shown_people(audit: Audit, finalists: Sequence[Finalist]) -> str:
    console = Console(file=io.StringIO(), width=80)
    show_people(audit, finalists, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def audit_of(plan: SweepPlan, trials: Sequence[TrialRecord], **options: int) -> Audit:
    results = SweepState(plan.objectives, {record.number: record for record in trials}, total=plan.trials)
    results.data_summary = {
        "validation_images": IMAGES,
        "judged_images": 300,
        "changed_mass": 90.0,
        "judge_accuracy": 1,
    }
    return Audit(plan, results, AuditOptions(**options))


class TestFinalists:
    def test_a_near_neighbour_of_the_front_is_one_and_a_point_beyond_the_intervals_is_not(self) -> None:
        # Half the interval of 0.6 on 300 images is 0.055; on 100 images 0.094.
        assert chosen([(0.60, 0.40), (0.59, 0.39), (0.30, 0.39), (0.59, 0.15)]) == [0, 1]

    def test_one_objective_beyond_the_interval_does_not_matter_where_another_is_better(self) -> None:
        assert set(chosen([(0.60, 0.40), (0.10, 0.41)])) == {0, 1}

    def test_the_front_comes_first_by_what_each_adds_then_the_nearest(self) -> None:
        points = [(0.60, 0.38), (0.60, 0.40), (0.61, 0.30), (0.59, 0.39)]
        # 1 adds more than 2; 3 lacks 0.01 in each, 0 lacks 0 in the first: it is as near as can be.
        assert chosen(points) == [1, 2, 0, 3]

    def test_equal_points_are_all_or_none_in_the_order_of_their_numbers(self) -> None:
        assert chosen([(0.5, 0.5)] * 3) == [0, 1, 2]

    @given(points=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=12))
    def test_the_whole_front_leads(self, points: list[tuple[float, float]]) -> None:
        front = set(np.flatnonzero(front_mask(points, OBJECTIVES)).tolist())
        assert set(chosen(points)[: len(front)]) == front

    @given(points=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=12))
    def test_fewer_images_leave_no_finalist_out(self, points: list[tuple[float, float]]) -> None:
        assert set(chosen(points, images=10_000)) <= set(chosen(points, images=50))

    @given(data=st.data(), points=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=12))
    def test_the_order_of_the_trials_does_not_matter(self, data: st.DataObject, points: list) -> None:
        order = data.draw(st.permutations(range(len(points))))
        assert {order[place] for place in chosen([points[i] for i in order])} == set(chosen(points))


class TestIntervals:
    @pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 1.0])
    def test_they_are_wilsons_on_the_images_of_each_share(self, share: float) -> None:
        result = {**shares(share, share, clean=share), "adversary_accuracy": share, "adversary_size": 40}
        for name, count in {
            **dict.fromkeys(MEASURED, IMAGES),
            "invariance_accuracy": 100,
            "adversary_accuracy": 40,
        }.items():
            expected = wilson_interval(round(share * count), count)
            assert share_interval(name, result, images=IMAGES) == pytest.approx(expected, abs=1e-9)

    def test_what_is_minimised_is_turned_with_its_interval(self) -> None:
        names = ("sensitivity_accuracy", "invariance_accuracy")
        up = cloud([shares(0.6, 0.4)], Objectives(names, (True, True), (0, 0)), images=IMAGES)
        mixed = cloud([shares(0.6, 0.4)], Objectives(names, (True, False), (0, 1)), images=IMAGES)
        assert mixed.gains.tolist() == [[0.6, -0.4]]
        assert (mixed.low[0, 1], mixed.high[0, 1]) == (-up.high[0, 1], -up.low[0, 1])
        assert (mixed.low <= mixed.gains).all()
        assert (mixed.gains <= mixed.high).all()

    @given(points=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=10))
    def test_none_of_the_front_is_dominated_beyond_them(self, points: list[tuple[float, float]]) -> None:
        measured = cloud([shares(*point) for point in points], OBJECTIVES, images=IMAGES)
        assert not (dominated_beyond(measured, measured) & front_mask(points, OBJECTIVES)).any()

    @given(points=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=10))
    def test_who_is_left_out_is_dominated_beyond_them_by_some_trial(self, points: list[tuple[float, float]]) -> None:
        measured = cloud([shares(*point) for point in points], OBJECTIVES, images=IMAGES)
        assert set(chosen(points)) == set(np.flatnonzero(~dominated_beyond(measured, measured)).tolist())


class TestVerdicts:
    def test_a_loss_beyond_chance_fell_by_so_much(self) -> None:
        found = outcome_of([finalist(shares(0.6, 0.4), *[shares(0.3, 0.4)] * 3)])
        assert re.fullmatch(r"fell: sensitivity by 30\.0 \(2\d\.\d to 3\d\.\d\)", found.verdicts[0])

    def test_it_held_only_if_a_loss_beyond_the_margin_is_excluded(self) -> None:
        same = [finalist(shares(0.6, 0.4), *[shares(0.6, 0.4)] * 3)]
        assert outcome_of(same, margin=0.2).verdicts == ["held"]
        # Half the interval of a difference of 100 judged images is 0.13.
        assert outcome_of(same, margin=0.1).verdicts == ["not decided"]

    def test_a_small_loss_neither_held_nor_fell(self) -> None:
        assert outcome_of([finalist(shares(0.6, 0.4), *[shares(0.54, 0.4)] * 3)]).verdicts == ["not decided"]

    def test_losses_of_many_finalists_need_more_to_be_shown(self) -> None:
        one = [finalist(shares(0.6, 0.4), *[shares(0.51, 0.4)] * 3)]
        many = one + [finalist(shares(0.6, 0.4), *[shares(0.6, 0.4)] * 3, number=k) for k in range(1, 8)]
        assert outcome_of(one).verdicts[0].startswith("fell")
        assert outcome_of(many).verdicts[0] == "not decided"


class TestFront:
    def test_the_steps_of_the_hypervolume_add_up(self) -> None:
        found = outcome_of([finalist(shares(0.6, 0.4), *[shares(0.5, 0.3)] * 3)])
        assert found.front.values == pytest.approx([0.24, 0.24, 0.24, 0.15, 0.15])
        assert sum(step[0] for step in found.front.steps) == pytest.approx(found.front.total[0])
        value, low, high = found.front.total
        assert low < value < high < 0
        assert found.front.steps[0] == (0, 0, 0)
        assert found.front.steps[3] == pytest.approx((0, 0, 0))


class TestPlanning:
    def test_seeds_are_fresh_and_more_of_them_keep_the_first(self, plan: SweepPlan) -> None:
        few = audit_of(plan, [trial(0, 0.5, 0.5)], seeds=2).fresh_seeds()
        taken = dataclasses.replace(trial(1, 0.4, 0.4), seed=few[1])
        assert len(set(few)) == 3
        assert audit_of(plan, [trial(0, 0.5, 0.5)], seeds=5).fresh_seeds()[:3] == few
        assert few[1] not in audit_of(plan, [trial(0, 0.5, 0.5), taken], seeds=5).fresh_seeds()

    def test_every_finalist_is_trained_on_every_seed_seed_by_seed(self, plan: SweepPlan) -> None:
        records = [trial(number, 0.5, 0.5, learning_rate=0.1 + number) for number in range(3)]
        audit = audit_of(plan, records, seeds=2, finalists=2)
        _, first, second = audit.fresh_seeds()
        assert [(task.number, task.config["seed"]) for task in audit.tasks()] == [
            (0, 0),
            (1, 0),
            (0, first),
            (1, first),
            (0, second),
            (1, second),
        ]
        assert all(
            task.config == {**records[task.number].config, "seed": task.config["seed"]} for task in audit.tasks()
        )

    def test_trials_that_differ_only_in_unused_knobs_are_one_finalist(self, plan: SweepPlan) -> None:
        settings = [{"margin": 0.1}, {"margin": 0.2}, {"learning_rate": 0.5}, {"invariance_epsilon": 0.4}]
        records = [trial(number, 0.5, 0.5, **each) for number, each in enumerate(settings)]
        audit = audit_of(plan, records, seeds=1, finalists=2)
        assert [[record.number for record in group] for group in audit.candidates()] == [[0, 1, 3], [2]]
        assert [task.number for task in audit.tasks()] == [0, 2, 0, 2]
        assert doubles(audit) == [
            f"trial {number} is trial 000 again: they differ in knobs that neither uses" for number in ("001", "003")
        ]

    def test_a_finalist_that_was_not_compared_with_these_people_is_not_done(self, plan: SweepPlan) -> None:
        write_plan(plan)
        audit = audit_of(plan, [trial(0, 0.5, 0.5)], seeds=1)
        own, task = audit.tasks()
        audit.folder.mkdir()
        of_own = dataclasses.replace(audited(0, 0, shares(0.4, 0.4), own=True), config=own.config)
        bare = dataclasses.replace(audited(0, 1, shares(0.4, 0.4)), config=task.config)
        asked = dataclasses.replace(bare, people=dataclasses.asdict(people("first")))
        for stored, digest, done in [
            (bare, None, True),
            (bare, "first", False),
            (asked, "first", True),
            (asked, "second", False),
            (asked, None, True),
        ]:
            for name, result in ((own.name, of_own), (task.name, stored)):
                (audit.folder / f"{name}.json").write_bytes(sealed(dataclasses.replace(result, people=stored.people)))
            examples = ExamplesFolder("there", digest) if digest else None
            assert (dataclasses.replace(audit, examples=examples).missing() == []) is done, (stored.people, digest)

    def test_an_undefended_baseline_is_shared(self, plan: SweepPlan) -> None:
        trained = {"architecture": "mlp", "optimizer": "sgd", "learning_rate": 0.1, "augmentation": "crop_flip"}
        trained |= {"momentum": 0.8, "learning_rate_schedule": "one_cycle"}
        first = trial(0, 0.5, 0.5, **trained, regularizer="triplet", sensitivity_weight=1.0)
        second = trial(1, 0.5, 0.5, **trained, clean_ce_weight=0.0, sensitivity_ce_weight=1.0, trades_weight=2.0)
        third = trial(2, 0.5, 0.5, architecture="cnn")
        audit = audit_of(plan, [first, second, third], seeds=2)
        baselines = {task.number: audit.undefended(task) for task in audit.tasks()}
        assert baselines[0] == baselines[1] != baselines[2]
        config = TrialConfig.from_mapping(baselines[0].config)
        assert trained.items() <= config.to_dict().items()
        assert not config.uses_sensitivity
        assert not config.uses_invariance
        assert config.norm_weight == 0
        assert config.seed not in {task.config["seed"] for task in audit.tasks()}

    def test_a_result_of_other_options_another_configuration_or_half_a_file_counts_for_nothing(
        self, plan: SweepPlan
    ) -> None:
        write_plan(plan)
        audit = audit_of(plan, [trial(0, 0.5, 0.5)], seeds=1)
        own, task = audit.tasks()
        audit.folder.mkdir()
        done = dataclasses.replace(audited(0, 0, shares(0.4, 0.4), own=True), config=own.config)
        (audit.folder / f"{own.name}.json").write_bytes(sealed(done))
        path = audit.folder / f"{task.name}.json"
        right = dataclasses.replace(audited(0, 1, shares(0.4, 0.4)), config=task.config)
        whole = sealed(right)
        for content, counts in [
            (whole, True),
            (whole[:-20], False),
            (whole.replace(b"0.9", b"0.8", 1), False),
            (json.dumps(dataclasses.asdict(right)).encode(), False),
            (b"[]", False),
            (b"{}", False),
            (b"null", False),
            (sealed(dataclasses.replace(right, config={**task.config, "margin": 9.0})), False),
            (sealed(dataclasses.replace(right, judged_by={**right.judged_by, "steps": 3})), False),
        ]:
            path.write_bytes(content)
            assert (audit.missing() == []) is counts, content
        path.unlink()
        assert audit.missing() == [task]

    def test_test_images_are_drawn_by_seed(self) -> None:
        some = _draw(50, 10, seed=3)
        assert torch.equal(some, _draw(50, 10, seed=3))
        assert not torch.equal(some, _draw(50, 10, seed=4))
        assert some.tolist() == sorted(set(some.tolist()))
        assert some.tolist() != list(range(10))
        for size in (0, 50, 51):
            assert torch.equal(_draw(50, size, seed=3), torch.arange(50))


class TestReport:
    @pytest.fixture
    def finalists(self) -> list[Finalist]:
        return [
            finalist(
                shares(0.6 - 0.1 * number, 0.3 + 0.1 * number), *[shares(0.5 - 0.1 * number, 0.31)] * 2, number=number
            )
            for number in range(2)
        ]

    def test_every_number_has_a_line_that_fits_a_terminal(self, plan: SweepPlan, finalists: list[Finalist]) -> None:
        found = outcome_of(finalists)
        audit = audit_of(plan, [one.record for one in finalists], seeds=2)
        lines = finalist_lines(audit, found)
        assert len(lines) == 1 + len(finalists) * (2 + len(rows(plan)) + 2 * len(OBJECTIVES.names))
        wide = [line for line in [*lines, *front_lines(audit, found)] if len(line) > 80]
        assert all(re.search(r"fell: |Selected: |R=", line) for line in wide), wide  # these the console folds
        [first, *_] = [line for line in lines if line.startswith("       sensitivity ")]
        change = found.changes[0]["sensitivity_accuracy"]
        assert re.search(rf"60\.0% +50\.0% ± +0\.0 +{change.audited.low:.1%} to {change.audited.high:.1%}$", first)
        assert f"change -10.0 ({100 * change.total.low:+.1f} to {100 * change.total.high:+.1f})" in "\n".join(lines)
        low, high = share_interval("certified_accuracy", finalists[0].mean, images=IMAGES)
        assert re.search(rf" certified +5\.0% ± +0\.0 +{low:.1%} to {high:.1%}$", "\n".join(lines), re.MULTILINE)
        assert re.search(r" class lost in attack +20\.0% ±", "\n".join(lines))

    def test_an_l2_budget_has_no_certificate_and_the_summary_says_why(
        self, plan: SweepPlan, finalists: list[Finalist]
    ) -> None:
        found, records = outcome_of(finalists), [one.record for one in finalists]
        assert "certified at the same budget" in _summary(audit_of(plan, records), found)
        evaluation = plan.space.evaluation.replace(eval_sensitivity_norm="l2")
        other = dataclasses.replace(plan, space=dataclasses.replace(plan.space, evaluation=evaluation))
        audit = audit_of(other, records)
        assert not any("certified" in line for line in finalist_lines(audit, found))
        assert "not certified (bounds are known for linf alone)" in _summary(audit, found)

    def test_a_finalist_that_lacks_a_seed_says_so(self, plan: SweepPlan, finalists: list[Finalist]) -> None:
        audit = audit_of(plan, [one.record for one in finalists], seeds=3)
        assert "\n".join(finalist_lines(audit, outcome_of(finalists))).count("(2 of 3 seeds)") == 2

    def test_a_network_of_ones_own_has_no_certified_accuracy(self, plan: SweepPlan, finalists: list[Finalist]) -> None:
        for run in (run for one in finalists for run in one.runs):
            del run.numbers["certified_accuracy"]  # type: ignore[attr-defined]
        lines = finalist_lines(audit_of(plan, [one.record for one in finalists]), outcome_of(finalists))
        certified = [line.split() for line in lines if "certified" in line]
        assert certified == [["certified", "not", "computable"]] * len(finalists)

    def test_the_spread_is_over_the_seeds(self) -> None:
        one = finalist(shares(0.6, 0.3), *(shares(0.3 + 0.1 * seed, 0.3) for seed in (1, 2, 3)))
        assert one.mean["sensitivity_accuracy"] == pytest.approx(0.5)
        assert one.spread("sensitivity_accuracy") == pytest.approx(0.1)
        assert one.spread("invariance_accuracy") == 0

    def test_fronts_are_named_with_their_hypervolume(self, finalists: list[Finalist]) -> None:
        found = outcome_of(finalists)
        assert front_line(found, OBJECTIVES, stage=0) == "front 000, 001, hypervolume 0.2300"
        # Audited, 000 is better in one objective and equal in the other.
        assert front_line(found, OBJECTIVES, stage=-1) == "front 000, hypervolume 0.1550"

    def test_pictures_show_every_finalist_twice_and_every_curve(
        self, plan: SweepPlan, finalists: list[Finalist]
    ) -> None:
        audit = audit_of(plan, [one.record for one in finalists], seeds=2)
        [axes] = audit_figure(audit, outcome_of(finalists)).axes
        drawn = {name: collection for collection in axes.collections if (name := collection.get_label())}
        assert np.allclose(drawn["selected"].get_offsets(), [[60, 30], [50, 40]])
        assert [text.get_text() for text in axes.texts if text.get_gid() == "label"]
        [axes] = curves_figure(audit, finalists).axes
        lines = [line for line in axes.lines if str(line.get_label()).startswith("00")]
        assert [np.asarray(line.get_ydata()).tolist() for line in lines] == [[90, 60, 30]] * 2

    def test_what_is_found_stands_beside_the_front(self, plan: SweepPlan, finalists: list[Finalist]) -> None:
        write_plan(plan)
        audit, found = audit_of(plan, [one.record for one in finalists], seeds=2), outcome_of(finalists)
        (rows_before, columns) = front_rows(plan, audit.results), {"sensitivity_invalid"}
        assert not any(columns & row.keys() for row in rows_before)
        assert "Audited" not in verdict(plan, audit.results)
        audit.folder.mkdir()
        (audit.folder / AUDIT_JSON).write_text(json.dumps(_audit_json(audit, found)))
        assert [row["sensitivity_invalid"] for row in front_rows(plan, audit.results)] == [0.2, 0.2]
        assert "Audited: 0 of 2 finalists held; in the images that broke them 20.0%" in verdict(plan, audit.results)
        assert "class lost in attack" in front_page(plan, audit.results)
        numbers = audited_numbers(plan, 0)
        assert numbers["audit/change_sensitivity_accuracy"] == pytest.approx(-0.1)
        assert numbers["audit/change_sensitivity_accuracy/fresh_seeds"] == pytest.approx(-0.1)
        (audit.folder / AUDIT_JSON).write_text("{")
        assert "Audited" not in verdict(plan, audit.results)

    def test_the_command_goes_on_with_the_same_options(self, plan: SweepPlan) -> None:
        audit = audit_of(plan, [trial(0, 0.5, 0.5)], seeds=2, test_size=0)
        assert command(audit) == f"otsweep audit hand-made --seeds 2 --test-size 0 --storage {plan.storage}"

    def test_agreement_with_people_is_shown_set_by_set(self, plan: SweepPlan, finalists: list[Finalist]) -> None:
        asked = [
            dataclasses.replace(
                one,
                runs=tuple(
                    dataclasses.replace(run, people=dataclasses.asdict(people("first", hits=10 + 2 * run.seed)))
                    for run in one.runs
                ),
            )
            for one in finalists
        ]
        audit = audit_of(plan, [one.record for one in finalists], seeds=2)
        said = shown_people(audit, asked)
        assert max(map(len, said.splitlines())) <= 80
        assert "linf/some: people see 40 of 100 images changed" in said
        assert re.search(r"the original +0\.0% of 40 +\d+ to \d+% +100\.0% +100\.0% of 60 +- +100\.0%", said)
        assert re.search(r"the judge +75\.0% of 20 .* 60\.0%\n", said)
        # 12 and 14 of 40 on the two seeds.
        assert len(re.findall(r"trial 00[01] +32\.5% of 40 ", said)) == 2
        other = dataclasses.replace(audit, examples=ExamplesFolder("elsewhere", "second"))
        assert "linf/some" not in shown_people(other, asked)

    def test_without_examples_it_says_that_nothing_is_known_of_people(
        self, plan: SweepPlan, finalists: list[Finalist]
    ) -> None:
        said = shown_people(audit_of(plan, [one.record for one in finalists], seeds=2), finalists)
        assert "How far the judge agrees with people on perturbed images of digits is not known." in " ".join(
            said.split()
        )

    def test_the_command_names_the_examples(self, plan: SweepPlan) -> None:
        audit = dataclasses.replace(
            audit_of(plan, [trial(0, 0.5, 0.5)]), examples=ExamplesFolder("/with a space", "first")
        )
        assert "--invariance-examples '/with a space'" in command(audit)


class TestEffective:
    """Settings that are left out of a configuration change nothing."""

    BASE: ClassVar[dict[str, Any]] = {"architecture": "mlp", "batch_size": 50, "epochs": 1, "sensitivity_steps": 2}
    CASES: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {},
        "regulariser without a weight": {"regularizer": "triplet"},
        "weight without a regulariser": {"sensitivity_weight": 1.0, "invariance_weight": 1.0},
        "adversarial": {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0},
        "invariance": {"clean_ce_weight": 0.0, "invariance_ce_weight": 1.0},
        "trades": {"trades_weight": 2.0, "sensitivity_objective": "kl"},
        "triplet": {"regularizer": "triplet", "sensitivity_weight": 0.5},
        "sinkhorn": {"regularizer": "sinkhorn", "sensitivity_weight": 0.5, "invariance_weight": 0.5},
        "certified": {"certified_ce_weight": 0.5},
        "ot_triplet": {"regularizer": "ot_triplet", "invariance_weight": 0.5},
    }
    OTHER: ClassVar[dict[str, Any]] = {
        "regularizer_on": "logits",
        "ground_metric": "euclidean",
        "margin": 0.7,
        "mining": "semihard",
        "entropy": 0.4,
        "label_cost": 3.0,
        "sensitivity_norm": "l2",
        "sensitivity_epsilon": 0.3,
        "sensitivity_steps": 3,
        "sensitivity_objective": "kl",
        "invariance_epsilon": 0.45,
        "certified_epsilon": 0.2,
        "certified_ramp": 0.1,
        "certified_method": "crown-ibp",
    }

    @pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
    def test_what_is_left_out_changes_not_a_bit(self, settings: dict[str, Any], prepared: Prepared) -> None:
        config = TrialConfig.from_mapping({**self.BASE, **settings})
        unused = {name: value for name, value in self.OTHER.items() if name not in effective(config.to_dict())}
        assert unused
        other = config.replace(**unused)
        assert effective(other.to_dict()) == effective(config.to_dict())
        first, second = (
            [report.to_dict() for report in run_trial(each, prepared.evaluation, prepared)] for each in (config, other)
        )
        for one, another in zip(first, second, strict=True):
            assert {k: v for k, v in one.items() if "seconds" not in k} == {
                k: v for k, v in another.items() if "seconds" not in k
            }

    def test_what_decides_the_training_is_kept(self) -> None:
        config = {
            "regularizer": "ot_triplet",
            "sensitivity_weight": 0.5,
            "clean_ce_weight": 0.0,
            "invariance_ce_weight": 1.0,
        }
        for change in ({"margin": 0.3}, {"entropy": 0.3}, {"sensitivity_epsilon": 0.3}, {"invariance_epsilon": 0.5}):
            assert effective({**config, **change}) != effective(config), change
        assert effective({**config, "seed": 5}) == effective(config)
        certified = {"certified_ce_weight": 0.5}
        assert effective({**certified, "certified_ramp": 0.1}) != effective(certified)

    def test_a_regulariser_takes_a_name_and_a_weight(self) -> None:
        neither, named, weighted = {}, {"regularizer": "triplet"}, {"sensitivity_weight": 1.0}
        assert effective(neither) == effective(named) == effective(weighted) != effective({**named, **weighted})


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("seeds", "0", "--seeds = 0: must be at least 1"),
            ("seeds", "two", "--seeds = 'two': must be a whole number"),
            ("test_size", "-5", "--test-size = -5: must be at least 0"),
            ("finalists", "1.5", "--finalists = 1.5: must be a whole number"),
            ("steps", "0", "--steps = 0: must be at least 1"),
        ],
    )
    def test_options(self, name: str, value: str, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            AuditOptions.of({name: value})

    def test_options_left_out_keep_their_defaults(self) -> None:
        assert AuditOptions.of({"seeds": "2", "steps": None, "name": "x"}) == AuditOptions(seeds=2)

    def test_an_unknown_sweep(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit", "nowhere", "--storage", str(tmp_path)]) == 2
        assert "no sweep 'nowhere'" in capsys.readouterr().err

    def test_a_sweep_without_a_finished_trial(self, plan: SweepPlan, capsys: pytest.CaptureFixture[str]) -> None:
        write_plan(plan)
        LedgerWriter(plan.folder).close()
        assert main(["audit", plan.name, "--storage", plan.storage]) == 2
        assert "no trial of 'hand-made' has finished" in capsys.readouterr().err

    def test_examples_for_a_data_set_of_another_shape(
        self, plan: SweepPlan, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_plan(plan)
        assert main(["audit", plan.name, "--storage", plan.storage, "--invariance-examples", plan.storage]) == 2
        assert "the data set here is 'digits'" in capsys.readouterr().err

    def test_a_plan_that_judges_at_no_budget(self, plan: SweepPlan) -> None:
        space = dataclasses.replace(plan.space, evaluation=plan.space.evaluation.replace(eval_sensitivity_epsilon=0.0))
        with pytest.raises(InputError, match="needs an attack"):
            audit_of(dataclasses.replace(plan, space=space), [trial(0, 0.5, 0.5)])

    def test_an_objective_that_is_not_measured(self, plan: SweepPlan) -> None:
        objectives = dataclasses.replace(OBJECTIVES, names=("sensitivity_accuracy", "invariance_stuck"))
        with pytest.raises(InputError, match="objective 'invariance_stuck' can't be audited"):
            audit_of(dataclasses.replace(plan, objectives=objectives), [trial(0, 0.5, 0.5)])


# ------------------------------------------------------------------------------------------------------ a whole audit

TINY = SPACE.replace("validation_size: 100", "validation_size: 100, eval_invariance_size: 60").replace(
    "epochs: 4", "epochs: 2"
)
OPTIONS = ("--finalists", "2", "--test-size", "40", "--steps", "2", "--queries", "5")


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    """Make a storage folder with a small sweep in it."""
    folder = new_storage("audits")
    (folder / "tiny.yaml").write_text(TINY)
    done = otsweep(folder, *run_words(folder, "swept"), "--trials", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def first(storage: Path) -> subprocess.CompletedProcess[str]:
    done = otsweep(storage, "audit", "swept", "--seeds", "2", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def results(storage: Path, first: subprocess.CompletedProcess[str]) -> Iterator[dict[Path, bytes]]:
    """Yield the files of the audit's results, and restore them afterwards."""
    kept = {path: path.read_bytes() for path in sorted((storage / "swept" / "audit").glob("0*.json"))}
    yield kept
    for path, content in kept.items():
        path.write_bytes(content)


def audit_in(storage: Path, seeds: int) -> Audit:
    plan = read_plan("swept", storage=str(storage))
    swept = SweepState(plan.objectives, read_ledger(plan.folder).trials, total=plan.trials)
    swept.data_summary = read_data_summary(plan.folder)
    options = {
        word.removeprefix("--").replace("-", "_"): n for word, n in zip(OPTIONS[::2], OPTIONS[1::2], strict=True)
    }
    return Audit(plan, swept, AuditOptions.of({**options, "seeds": seeds}))


@pytest.mark.slow
def test_an_audit_ends_with_what_held(
    storage: Path, first: subprocess.CompletedProcess[str], results: dict[Path, bytes]
) -> None:
    finalists = audit_in(storage, 2).finalists()
    assert len(results) == 3 * len(finalists)
    assert re.search(r"\d of \d finalists held, \d fell, \d not decided", first.stdout)
    found = json.loads((storage / "swept" / "audit" / "audit.json").read_text())
    assert len(found["finalists"]) == len(finalists)
    for one in finalists:
        assert [run.images for run in one.runs] == [40, 40]
        assert one.mean["sensitivity_accuracy"] <= one.mean["clean_accuracy"]
        for run in one.runs:
            assert 0 <= run.numbers["certified_accuracy"] <= run.numbers["sensitivity_accuracy"]
        assert re.search(rf" certified +{one.mean['certified_accuracy']:.1%} ±", first.stdout)
        # Whatever the fixed set changed, the per-model attack may show as well.
        assert 0 < one.mean["sensitivity_doubted"] < one.mean["sensitivity_invalid"] < 1
        assert one.mean["adversary_size"] >= one.mean["invariance_effective_size"] > 0
        assert f"{one.mean['sensitivity_accuracy']:.1%} ±" in first.stdout
        assert all(run.evidence["transfer_accuracy"] is not None for run in one.own)
        for run in (*one.own, *one.runs):
            assert Answers.decode(run.answers).robust.mean() == pytest.approx(run.numbers["sensitivity_accuracy"])
        for warning in (warning for run in one.own for warning in run.warnings):
            assert warning in first.stdout
    for name in ("audit.png", "curves.png"):
        assert str(storage / "swept" / "audit" / name) in first.stdout
        assert (storage / "swept" / "audit" / name).stat().st_size > 1000


@pytest.mark.slow
def test_from_python_it_is_the_same_audit(
    storage: Path, results: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "ray_session", lambda: pytest.fail("Ray was started"))
    words: dict[str, Any] = {
        word.removeprefix("--").replace("-", "_"): n for word, n in zip(OPTIONS[::2], OPTIONS[1::2], strict=True)
    }
    done = sweep.audit("swept", storage=storage, seeds=2, **words)
    assert capfd.readouterr() == ("", "")
    assert done.to_dict() == json.loads((storage / "swept" / "audit" / "audit.json").read_text())
    assert done.table["trial"].tolist() == [each["trial"] for each in done.to_dict()["finalists"]]
    assert done.table["sensitivity_accuracy"].between(0, 1).all()
    assert done.figure().axes


@pytest.mark.slow
def test_a_model_is_judged_as_its_audit_judged_it(storage: Path, results: dict[Path, bytes]) -> None:
    audit = audit_in(storage, 2)
    [own, *_] = audit.finalists()[0].own
    kept = storage / "swept" / "trials" / f"{own.number:04d}" / "model.pt"
    evaluation = audit.plan.space.evaluation.written()
    same = [word for name, value in evaluation.items() if name != "dataset" for word in ("--set", f"{name}={value}")]
    done = otsweep(storage, "judge", str(kept), *OPTIONS[2:], *same, "--format", "json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["models"]
    assert found["numbers"] == own.numbers
    assert (found["broken_by"], found["curve"], found["warnings"]) == (own.broken_by, own.curve, own.warnings)
    # No undefended baseline is trained for a model that is only given.
    assert found["evidence"] == {**own.evidence, "transfer_accuracy": None}


@pytest.mark.slow
def test_it_says_nothing_of_ray(first: subprocess.CompletedProcess[str]) -> None:
    said = first.stdout + first.stderr
    for spam in ("Warning", "WARNING", "(pid=", "ray::", "INFO", "Traceback"):
        assert spam not in said, said


@pytest.mark.slow
def test_a_finished_audit_starts_nothing(
    storage: Path, results: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ray_session", lambda: pytest.fail("Ray was started"))
    assert run_audit(audit_in(storage, 2), module.Console(quiet=True))


@pytest.mark.slow
def test_what_is_lost_is_made_again_bit_for_bit_and_the_rest_is_left_alone(
    storage: Path, results: dict[Path, bytes]
) -> None:
    lost, damaged, own, *kept = results
    lost.unlink()
    shutil.rmtree(storage / "swept" / "audit" / "models" / lost.stem)
    assert own.stem.endswith("-own")
    own.unlink()
    (storage / "swept" / "trials" / own.stem[:4] / "model.pt").unlink()  # so the selected model is trained again
    damaged.write_bytes(results[damaged][:100])
    times = {path: path.stat().st_mtime_ns for path in kept}
    again = otsweep(storage, "audit", "swept", "--seeds", "2", *OPTIONS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.read_bytes() for path in results} == results
    assert {path: path.stat().st_mtime_ns for path in kept} == times


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_audit_goes_on(storage: Path, results: dict[Path, bytes]) -> None:
    words = shell_words(storage, "audit", "swept", "--seeds", "8", *OPTIONS)
    process = start(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    folder = storage / "swept" / "audit"
    wait_for(lambda: len(list(folder.glob("0*.json"))) > len(results), process)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "otsweep audit swept --seeds 8" in said
    before = {path: path.read_bytes() for path in folder.glob("0*.json")}
    assert len(results) < len(before) < 3 * len(results)
    assert otsweep(storage, "audit", "swept", "--seeds", "8", *OPTIONS).returncode == 0
    assert len(list(folder.glob("0*.json"))) == 3 * len(results)
    assert {path: path.read_bytes() for path in before} == before

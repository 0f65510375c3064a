"""The front's picture: what is in it, that it hides nothing, and that it comes out the same every time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import norm

from sweep.front.objectives import Objectives
from sweep.front.pareto import front_mask, hypervolume
from sweep.ledger.records import TrialRecord
from sweep.report.front_figure import front_figure
from sweep.report.style import save_figure
from tests.support import events
from trainer.config import REGULARIZERS, EvaluationConfig
from trainer.errors import InputError

OBJECTIVES = Objectives(("sensitivity_accuracy", "invariance_accuracy"), (True, True), (0.0, 0.0))
BENT = [(0.1, 0.6), (0.5, 0.55), (0.6, 0.1), (0.3, 0.3), (0.05, 0.2)]


def trial(
    number: int, sensitivity: float, invariance: float, *, regularizer: str = "none", size: int = 92
) -> TrialRecord:
    record = TrialRecord(number).apply(events.started(number, {"regularizer": regularizer}))
    record = record.apply(
        events.reported(
            number,
            {
                "epoch": 3,
                "final": True,
                "clean_accuracy": 0.9,
                "sensitivity_accuracy": sensitivity,
                "invariance_accuracy": invariance,
                "invariance_effective_size": size,
            },
        )
    )
    return record.apply(events.ended(number, "finished", time=1.0))


def sweep(places: list[tuple[float, float]]) -> list[TrialRecord]:
    return [trial(i, x, y, regularizer=REGULARIZERS[i % 4]) for i, (x, y) in enumerate(places)]


def crowd(n: int) -> list[tuple[float, float]]:
    generator = np.random.default_rng(n)
    t, depth = generator.uniform(0, 1, n), generator.exponential(0.06, n)
    points = np.column_stack([0.05 + 0.6 * t, 0.2 + 0.4 * (1 - t**2)]) - depth[:, None]
    return [tuple(point) for point in (points.clip(0, 1) * 300).round() / 300]


def draw(trials: list[TrialRecord], **options) -> Figure:
    defaults = {"name": "digits-1", "objectives": OBJECTIVES, "evaluation": EvaluationConfig()}
    return front_figure(trials, **(defaults | options))


def artists(figure: Figure, gid: str) -> list:
    axes: Axes = figure.axes[0]
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def offsets(figure: Figure, gid: str) -> np.ndarray:
    """Return all points (n, 2) of the scatters of this name, in the order of the picture's axes."""
    collections: list[PathCollection] = artists(figure, gid)
    points = np.vstack([np.empty((0, 2)), *[np.asarray(c.get_offsets()) for c in collections]])
    return points[np.lexsort(points.T[::-1])]


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def all_text(figure: Figure) -> str:
    return " ".join(text.get_text() for text in texts(figure))


class TestContent:
    def test_every_finished_trial_is_drawn_once_on_the_front_or_off_it(self):
        places = crowd(300)
        figure = draw(sweep(places))
        mask = front_mask(places, OBJECTIVES)
        for gid, chosen in (("front", mask), ("dominated", ~mask)):
            points = 100 * np.array(places)[chosen]
            np.testing.assert_allclose(offsets(figure, gid), points[np.lexsort(points.T[::-1])])

    def test_trials_without_a_final_report_are_left_out(self):
        report = {"epoch": 1, "final": False, "sensitivity_accuracy": 0.99, "invariance_accuracy": 0.99}
        unfinished = TrialRecord(9).apply(events.reported(9, report))
        assert "3 finished trials" in all_text(draw([*sweep(BENT[:3]), unfinished]))

    def test_the_staircase_has_the_corners_of_the_dominated_area(self):
        figure = draw(sweep(BENT))
        (line,) = artists(figure, "staircase")
        expected = [(0, 60), (10, 60), (10, 55), (50, 55), (50, 10), (60, 10), (60, 0)]
        np.testing.assert_allclose(line.get_xydata(), expected)
        (area,) = artists(figure, "area")
        x, y = area.get_xy().T
        shoelace = abs(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:])) / 2
        assert shoelace / 100**2 == pytest.approx(hypervolume(BENT, OBJECTIVES))

    def test_a_minimised_objective_turns_the_staircase(self):
        objectives = Objectives(("sensitivity_accuracy", "invariance_stuck"), (True, False), (0.0, 1.0))
        trials = sweep([(0.2, 0.0), (0.6, 0.0)])
        for record, stuck in zip(trials, (0.1, 0.5), strict=True):
            assert record.result is not None
            record.result["invariance_stuck"] = stuck
        (line,) = artists(draw(trials, objectives=objectives), "staircase")
        np.testing.assert_allclose(line.get_xydata(), [(0, 10), (20, 10), (20, 50), (60, 50), (60, 100)])

    def test_words_name_sweep_data_budgets_hypervolume_and_proxy(self):
        evaluation = EvaluationConfig(
            dataset="mnist", eval_sensitivity_epsilon=0.25, eval_sensitivity_restarts=3, eval_invariance_norm="l0"
        )
        figure = draw(sweep(BENT), name="first-light", evaluation=evaluation)
        words = all_text(figure)
        for part in (
            "first-light",
            "mnist; sensitivity: L∞ 0.25, PGD-20, 3 restarts, APGD-70, targeted PGD-30; invariance: L0 0.3",
            f"hypervolume {hypervolume(BENT, OBJECTIVES):.4f}; 5 finished trials, 3 on the front",
        ):
            assert part in words
        axes = figure.axes[0]
        assert axes.get_xlabel() == "Sensitivity accuracy (%)"
        assert axes.get_ylabel() == "Invariance accuracy (%), a proxy: read by the judge"

    def test_the_knee_is_ringed_and_named(self):
        figure = draw(sweep(BENT))
        np.testing.assert_allclose(offsets(figure, "knee"), [[50, 55]])
        assert {label.get_text() for label in artists(figure, "label")} == {"000", "001 (knee)", "002"}

    def test_a_front_without_knee_has_no_ring(self):
        figure = draw(sweep([(0.1, 0.6), (0.6, 0.1)]))
        assert artists(figure, "knee") == []
        assert "knee" not in all_text(figure)

    def test_equal_trials_share_a_label(self):
        figure = draw(sweep([(0.5, 0.5)] * 3))
        assert [label.get_text() for label in artists(figure, "label")] == ["000, 001, 002"]
        figure = draw(sweep([(0.5, 0.5)] * 5))
        assert [label.get_text() for label in artists(figure, "label")] == ["000, 001, 002, +2"]
        assert len(offsets(figure, "front")) == 5

    def test_shape_and_colour_both_tell_the_regularizer(self):
        trials = sweep([(0.1 * i, 0.9 - 0.1 * i) for i in range(4)]) + [trial(4, 0.6, 0.2, regularizer="later")]
        scatters = artists(draw(trials), "front")
        assert [scatter.get_label() for scatter in scatters] == [*REGULARIZERS, "unknown"]
        colours = {tuple(scatter.get_facecolor()[0]) for scatter in scatters}
        shapes = {scatter.get_paths()[0].vertices.tobytes() for scatter in scatters}
        assert len(colours) == len(shapes) == 5

    def test_error_bars_are_wilson_intervals_of_the_front_and_come_only_with_a_number(self):
        assert artists(draw(sweep(BENT)), "intervals") == []
        figure = draw([trial(0, 0.3, 0.25, size=40), trial(1, 0.2, 0.2)], validation_images=200)
        (bars,) = artists(figure, "intervals")
        assert isinstance(bars, LineCollection)
        across, up = bars.get_segments()
        z = norm.ppf(0.975)
        for p, n, ends in ((0.3, 200, across[:, 0]), (0.25, 40, up[:, 1])):
            centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
            half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
            np.testing.assert_allclose(ends / 100, [centre - half, centre + half])

    def test_an_invariance_set_without_a_changed_image_has_no_bar(self):
        (bars,) = artists(draw([trial(0, 0.3, 0.0, size=0)], validation_images=200), "intervals")
        assert len(bars.get_segments()) == 1

    def test_no_trial_is_said(self):
        assert "no finished trial yet" in all_text(draw([]))


class TestLayout:
    @pytest.mark.parametrize(
        "places",
        [
            [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.9, 0.9), (0.9, 0.9)],
            [(0.0, 0.0)],
            [(1.0, 1.0)],
            crowd(3),
            crowd(24),
            crowd(300),
            [(0.9 + 0.002 * i, 0.6 - 0.001 * i**1.5) for i in range(40)],
        ],
        ids=["edges", "zero", "one", "3", "24", "300", "crowded front"],
    )
    def test_no_label_hides_a_trial_or_another_label_and_all_is_inside(self, places):
        figure = draw(sweep(places), validation_images=300)
        figure.draw_without_rendering()
        axes = figure.axes[0]
        # An annotation's own extent has its leader line in it.
        labels = [Text.get_window_extent(label) for label in artists(figure, "label")]
        assert labels
        assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))
        marks = axes.transData.transform(100 * np.array(places))
        assert all(axes.bbox.contains(*mark) for mark in marks)
        assert not any(box.contains(*mark) for box in labels for mark in marks)
        (legend,) = figure.legends
        drawn = figure.get_tightbbox()
        assert 0 <= drawn.x0 < drawn.x1 <= figure.get_figwidth()
        assert 0 <= drawn.y0 < drawn.y1 <= figure.get_figheight()
        assert legend.get_window_extent().y1 <= axes.xaxis.label.get_window_extent().y0

    def test_knee_and_ends_are_labelled_before_others_and_a_front_of_hundreds_only_here_and_there(self):
        curve = [(np.sin(a), np.cos(a)) for a in np.linspace(0, np.pi / 2, 400)]
        figure = draw(sweep(curve))
        said = {label.get_text() for label in artists(figure, "label")}
        assert len(said) <= 33
        assert {"000", "399"} <= said
        assert any("knee" in text for text in said)


class TestSaving:
    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
    def test_the_same_picture_has_the_same_bytes(self, tmp_path, suffix):
        for name in ("a", "b"):
            save_figure(draw(sweep(BENT), validation_images=100), tmp_path / f"{name}{suffix}")
        one, other = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
        assert one == other
        start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
        assert one.startswith(start)
        # The two were written within a second, so a date would not tell them apart.
        assert b"CreationDate" not in one

    def test_other_suffixes_are_refused_by_name(self, tmp_path):
        with pytest.raises(InputError, match=r"front\.jpg'.*must end in \.png, \.svg, \.pdf"):
            save_figure(draw([]), tmp_path / "front.jpg")

    def test_a_folder_that_is_not_there_is_told(self, tmp_path):
        with pytest.raises(InputError, match=r"can't write the picture .*front\.png': No such file"):
            save_figure(draw([]), tmp_path / "nowhere" / "front.png")

    def test_a_users_settings_neither_change_the_picture_nor_are_changed(self, tmp_path):
        save_figure(draw(sweep(BENT)), tmp_path / "a.png")
        with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30}):
            save_figure(draw(sweep(BENT)), tmp_path / "b.png")
            assert matplotlib.rcParams["font.size"] == 20
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_neither_pyplot_nor_torch_is_imported(self):
        code = (
            "import sys, sweep.report.front_figure; "
            "print([m for m in ('matplotlib.pyplot', 'torch', 'ray') if m in sys.modules])"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def test_the_line_that_no_classifier_can_cross_is_drawn_where_there_is_one() -> None:
    places = [(0.4, 0.5), (0.5, 0.3)]
    figure = draw(sweep(places), ceiling=[(0.0, 0.9), (1.0, 0.0)])
    (line,) = artists(figure, "ceiling")
    np.testing.assert_allclose(line.get_xydata(), [[0, 90], [100, 0]])
    assert "dashed: no classifier lies beyond" in all_text(figure)
    without = draw(sweep(places))
    assert artists(without, "ceiling") == []
    assert figure.axes[0].get_xlim() == without.axes[0].get_xlim(), "the line does not decide what is shown"

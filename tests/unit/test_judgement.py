"""Models that were judged: their names, their front, how sure it is, and every form in which it is shown."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sweep.audit import Measured
from sweep.audit.measures import MEASURED
from sweep.cli.commands import main
from sweep.judge.files import ModelFile, find_models
from sweep.judge.judgement import Judgement
from sweep.judge.report import judgement_metrics, judgement_note, show_judgement
from sweep.judge.result import JudgedModel
from sweep.judge.setting import judging_options, judging_plan
from sweep.state import JudgedImages
from trainer.answers import Answers
from trainer.errors import InputError

FACTORY = "python:mine:network"
IMAGES, CHANGED, SPLIT = 60, 60, 200


def judged_images(seed: int = 0) -> JudgedImages:
    """Return a judge's reading of images of class 0 in which some see a 1."""
    share = np.random.default_rng(seed).uniform(0, 1, CHANGED)
    return JudgedImages(
        np.arange(CHANGED), np.zeros(CHANGED, dtype=np.int64), {"uncalibrated": np.stack([1 - share, share], 1)}
    )


def model(name: str, sensitivity: float, invariance: float, *, rows: bool = True, **more: float) -> JudgedModel:
    generator = np.random.default_rng(len(name))
    robust = np.arange(IMAGES) < sensitivity * IMAGES
    perturbed = (generator.permutation(CHANGED) < invariance * CHANGED).astype(np.uint8)
    answers = Answers(np.ones(IMAGES, dtype=bool), robust, perturbed, np.ones(CHANGED, dtype=bool))
    numbers = {name: float(np.mean([MEASURED[name](answers, each).value for each in JUDGED])) for name in MEASURED}
    measured = Measured(
        images=IMAGES,
        rows=(100 + np.arange(IMAGES)).tolist() if rows else [],
        numbers={**numbers, "invariance_stuck": 0.5, "curve_area": 0.4, **more},
        answers=answers.encode(),
        broken_by={"apgd-ce": 7, "square": 1},
        curve={"epsilons": [0.0, 0.1, 0.2], "accuracies": [0.9, 0.6, 0.3], "alone": [0.9, 0.6, 0.3]},
        evidence=dict.fromkeys(
            ("white_box_accuracy", "doubled_accuracy", "square_accuracy", "noise_accuracy", "large_epsilon_accuracy"),
            0.25,
        ),
        warnings=["gradient masking suspected: <b>no</b>"] if "<" in name else [],
    )
    file = ModelFile(name, Path("models") / name, "ab" * 32, "")
    return JudgedModel(file, "state dict", measured, "" if "certified_accuracy" in more else "its layers differ", None)


JUDGED = [judged_images(0), judged_images(1)]


@pytest.fixture
def judgement(tmp_path: Path) -> Judgement:
    plan = judging_plan("digits", settings=["eval_sensitivity_epsilon=0.35"], storage=str(tmp_path))
    given = (model("<script>", 0.1, 0.9), model("behind", 0.05, 0.1))
    models = (model("robust", 0.8, 0.3, certified_accuracy=0.1), *given)
    ceiling = [(0.0, 1.0), (0.6, 0.9), (1.0, 0.0)]
    return Judgement(plan, judging_options({"judges": 2}), models, JUDGED, SPLIT, ceiling, "f00d")


def test_the_front_and_its_chances(judgement: Judgement) -> None:
    standing = judgement.standing
    assert standing.on_front.tolist() == [True, True, False]
    assert standing.chances[0] == standing.chances[1] == 1
    assert standing.chances[2] < 0.05
    for (x, y), ((left, right), (low, high)) in zip(judgement.points, standing.intervals, strict=True):
        assert left < x < right
        assert low < y < high


def test_an_interval_is_that_of_drawing_images_anew(judgement: Judgement) -> None:
    """Of a plain share of N images it is the binomial's, about."""
    deviation = np.sqrt(0.8 * 0.2 / IMAGES)
    low, high = judgement.standing.intervals[0, 0]
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_models_with_the_same_answers_tie_in_every_draw(judgement: Judgement, tmp_path: Path) -> None:
    """Images are drawn for all models at once: what is equal stays so, and both are on the front."""
    twins = (model("same", 0.5, 0.5), model("like", 0.5, 0.5))
    both = Judgement(judgement.plan, judgement.options, twins, JUDGED, SPLIT, [], "f00d")
    assert both.standing.chances.tolist() == [1, 1]
    assert np.array_equal(both.standing.intervals[0], both.standing.intervals[1])


def test_all_images_of_the_split_need_no_rows(judgement: Judgement) -> None:
    whole = Judgement(
        judgement.plan, judgement.options, (model("all", 0.5, 0.5, rows=False),), JUDGED, IMAGES, [], "f00d"
    )
    assert whole.standing.chances.tolist() == [1]


def test_the_json_holds_what_the_readme_says(judgement: Judgement) -> None:
    content = json.loads(json.dumps(judgement.to_dict()))
    readme = (Path(__file__).parents[2] / "sweep" / "README.md").read_text()
    section = readme.partition("### Judging any model\n")[2].partition("\n### ")[0]
    for key in (*content, *content["models"][0]):
        assert f"`{key}`" in section, key
    first, second, _ = content["models"]
    assert first["numbers"]["certified_accuracy"] == 0.1
    assert first["not_certified"] is None
    assert second["not_certified"] == "its layers differ"
    assert first["intervals"].keys() == {
        *("sensitivity_accuracy", "invariance_accuracy", "clean_accuracy", "certified_accuracy")
    }


def test_the_table_is_pandas_and_arrow(judgement: Judgement) -> None:
    assert judgement.table["model"].tolist() == ["robust", "<script>", "behind"]
    assert judgement.table["certified_accuracy"].isna().tolist() == [False, True, True]
    assert judgement.arrow().column_names[:3] == ["model", "front", "p_front"]
    assert "robust" in judgement._repr_html_()


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_needs_nothing_else_and_runs_nothing(judgement: Judgement) -> None:
    page = _Page(judgement.html())
    assert "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert page.tags.count("svg") == 2
    assert "gradient masking suspected: &lt;b&gt;no&lt;/b&gt;" in judgement.html()
    assert judgement.html() == judgement.html()


def test_what_is_shown_names_every_number(judgement: Judgement) -> None:
    stream = io.StringIO()
    show_judgement(judgement, Console(file=stream, width=200))
    shown = stream.getvalue()
    assert re.search(r"robust +yes +100\.0% +80\.0%", shown)
    assert re.search(r"certified +not computable +its layers differ", shown)
    assert "no classifier can have both in full" in shown
    assert "gradient masking suspected: <b>no</b>" in shown


def test_files_and_what_mlflow_gets(judgement: Judgement, tmp_path: Path) -> None:
    judgement.write(tmp_path / "found")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        *("judge.json", "judge.html", "judge.png", "curves.png")
    }
    metrics = judgement_metrics(judgement)
    assert metrics["robust/sensitivity_accuracy"] == 0.8
    assert all(re.fullmatch(r"[\w\-. /]+", name) for name in metrics)
    assert "| robust | yes | 80.0% |" in judgement_note(judgement, "0")


class TestFiles:
    def test_names_are_short_and_differ(self, tmp_path: Path) -> None:
        paths = [tmp_path / name for name in ("a/0001/model.pt", "b/0002/model.pt", "net.pt")]
        for number, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d" % number)
        assert [file.name for file in find_models(paths, [])] == ["0001", "0002", "net"]
        (tmp_path / "b/0001").mkdir()
        (tmp_path / "b/0001/model.pt").write_bytes(b"3")
        files = find_models([paths[0], tmp_path / "b/0001/model.pt"], [])
        assert [file.name for file in files] == ["a/0001", "b/0001"]

    def test_a_factory_for_all_or_for_each(self, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / name).write_bytes(name.encode())
        paths = [tmp_path / "a", tmp_path / "b"]
        assert [each.architecture for each in find_models(paths, [FACTORY])] == [FACTORY, FACTORY]
        assert [each.architecture for each in find_models(paths, [FACTORY, "python:m:f"])] == [FACTORY, "python:m:f"]
        assert [each.architecture for each in find_models(paths, [])] == ["", ""]

    @pytest.mark.parametrize(
        ("paths", "architectures", "message"),
        [
            ([], [], "no model is named"),
            (["gone.pt"], [], r"'.*gone.pt' can't be read: No such file"),
            (["."], [], r"can't be read: Is a directory"),
            (["a", "a"], [], "is named twice"),
            (["a"], ["cnn"], "--architecture 'cnn': must be python:MODULE:FACTORY"),
            (["a"], [FACTORY, FACTORY], "given 2 times for 1 models"),
        ],
    )
    def test_wrong_ones_are_refused(
        self, tmp_path: Path, paths: list[str], architectures: list[str], message: str
    ) -> None:
        (tmp_path / "a").write_bytes(b"a")
        with pytest.raises(InputError, match=message):
            find_models([tmp_path / path for path in paths], architectures)


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ("digit", [], "did you mean 'digits'"),
        ("digits", ["margin=1"], "--set margin: says how a model trains"),
        ("digits", ["eval_sensitivity_epsilon=0"], "judging needs an attack"),
        ("digits", ["crowd=nobody"], "crowd = 'nobody'"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, dataset: str, settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judging_plan(dataset, settings=settings, storage=str(tmp_path))


def test_a_plan_has_what_is_usual_for_its_data(tmp_path: Path) -> None:
    plan = judging_plan("mnist", crowd="lenient", settings=["eval_invariance_size=7"], storage=str(tmp_path))
    evaluation = plan.space.evaluation
    assert (evaluation.eval_sensitivity_epsilon, evaluation.crowd, evaluation.eval_invariance_size) == (
        0.3,
        "lenient",
        7,
    )
    assert not plan.folder.exists()


def test_the_command_refuses_in_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"no model")
    assert main(["judge", str(tmp_path / "m.pt"), "--storage", str(tmp_path), "--steps", "0"]) == 2
    assert main(["judge", str(tmp_path / "m.pt"), "--storage", str(tmp_path)]) == 2
    _, said = capfd.readouterr()
    assert "--steps" in said
    assert "m.pt': is no model that can be read" in said
    assert "Traceback" not in said

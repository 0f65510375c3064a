"""Examples that people labelled: every layout that is read, every damage that is refused, who agrees how far."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.config import EvaluationConfig
from trainer.data.datasets import Split, load_data
from trainer.errors import InputError
from trainer.human_agreement import ExamplesFolder, HumanAgreement
from trainer.invariance.labelled_sets import LabelledSet, agreement, answers_of, ask_people, compare, read_examples
from trainer.models import Prediction

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])


@pytest.fixture
def test_split() -> Split:
    return Split(torch.rand(8, 1, 6, 5, generator=torch.Generator().manual_seed(0)), LABELS)


@pytest.fixture
def folder(tmp_path: Path, test_split: Split) -> Path:
    """Write two sets: one by the folder's own indices, one of a family that has indices of its own."""
    levels = (test_split.images[:, 0] * 255).numpy()
    (tmp_path / "linf").mkdir()
    np.save(tmp_path / "indexs.npy", np.array([5, 2, 7]))
    np.save(tmp_path / "linf" / "automated_eps03.npy", levels[[5, 2, 7]].astype(np.float32))
    np.save(tmp_path / "linf" / "automated_eps03_labels.npy", np.array([5, 9, -1]))
    np.save(tmp_path / "linf" / "manual_indexs.npy", np.array([1, 0]))
    np.save(tmp_path / "linf" / "manual_eps04.npy", levels[[1, 0]].astype(np.uint8))
    np.save(tmp_path / "linf" / "manual_eps04_labels.npy", np.array([1.0, 3.0]))
    return tmp_path


def test_sets_are_read_with_their_sources(folder: Path, test_split: Split) -> None:
    automated, manual = read_examples(folder, test_split, classes=10)
    assert (automated.name, manual.name) == ("linf/automated_eps03", "linf/manual_eps04")
    torch.testing.assert_close(automated.images, test_split.images[[5, 2, 7]])
    assert automated.sources.labels.tolist() == [5, 2, 7]
    assert manual.sources.labels.tolist() == [1, 0]
    assert (manual.images - test_split.images[[1, 0]]).abs().max() <= 1 / 255
    assert automated.changed.tolist() == [False, True, False]
    assert automated.unchanged.tolist() == [True, False, False]


class TestLayouts:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
    def test_any_type_of_pixels_is_read_alike(self, folder: Path, test_split: Split, dtype: type) -> None:
        path = folder / "linf" / "manual_eps04.npy"
        np.save(path, np.load(path).astype(dtype))
        manual = read_examples(folder, test_split, classes=10)[1]
        assert (manual.images - test_split.images[[1, 0]]).abs().max() <= 1 / 255
        assert (manual.images.dtype, manual.white) == (torch.float32, 255)

    @pytest.mark.parametrize("shape", [(2, 6, 5), (2, 30), (2, 6, 5, 1)])
    def test_shapes(self, folder: Path, test_split: Split, shape: tuple[int, ...]) -> None:
        path = folder / "linf" / "manual_eps04.npy"
        np.save(path, np.load(path).reshape(shape))
        manual = read_examples(folder, test_split, classes=10)[1]
        assert manual.images.shape == (2, 1, 6, 5)
        assert (manual.images - test_split.images[[1, 0]]).abs().max() <= 1 / 255

    def test_pixels_from_zero_to_one_are_seen_as_such_and_it_is_said(self, folder: Path, test_split: Split) -> None:
        np.save(folder / "linf" / "manual_eps04.npy", test_split.images[[1, 0], 0].double().numpy())
        sets = read_examples(folder, test_split, classes=10)
        torch.testing.assert_close(sets[1].images, test_split.images[[1, 0]])
        assert [each.white for each in sets] == [255, 1]
        found = ask_people(ExamplesFolder(str(folder), "0"), sets, {})
        assert ["0 to 1" in each.title for each in found.sets] == [False, True]

    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
    def test_labels_are_whole_numbers_of_any_type(self, folder: Path, test_split: Split, dtype: type) -> None:
        np.save(folder / "linf" / "manual_eps04_labels.npy", np.array([1, 3], dtype=dtype))
        manual = read_examples(folder, test_split, classes=10)[1]
        assert (manual.labels.tolist(), manual.labels.dtype) == ([1, 3], torch.int64)

    @pytest.mark.parametrize(
        "name", ["linf/manual_eps04_indexs.npy", "linf/manual_indexs.npy", "linf/indexs.npy", "indexs.npy"]
    )
    def test_indices_are_found_beside_the_set_or_above_it(self, tmp_path: Path, test_split: Split, name: str) -> None:
        (tmp_path / "linf").mkdir()
        np.save(tmp_path / "linf" / "manual_eps04.npy", test_split.images[[6, 3], 0].numpy() * 255)
        np.save(tmp_path / "linf" / "manual_eps04_labels.npy", np.array([6, 3]))
        np.save(tmp_path / name, np.array([6, 3]))
        [found] = read_examples(tmp_path, test_split, classes=10)
        assert found.sources.labels.tolist() == [6, 3]

    def test_a_folder_above_the_published_one_will_do(
        self, folder: Path, tmp_path_factory: pytest.TempPathFactory, test_split: Split
    ) -> None:
        above = tmp_path_factory.mktemp("above")
        shutil.copytree(folder, above / "sets")
        (above / "__MACOSX" / "linf").mkdir(parents=True)
        (above / "__MACOSX" / "linf" / "._manual_eps04_labels.npy").write_bytes(b"\0\5\x16\7Mac OS X")
        names = [each.name for each in read_examples(above, test_split, classes=10)]
        assert names == ["sets/linf/automated_eps03", "sets/linf/manual_eps04"]


class Harmful:
    """Would leave a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(folder: Path, test_split: Split, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", folder / "linf" / "automated_eps03.npy"
    holder = np.empty(3, dtype=object)
    holder[:] = [Harmful(trap)] * 3
    np.save(path, holder, allow_pickle=True)
    contents = [path.read_bytes(), pickle.dumps(Harmful(trap))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable array"):
            read_examples(folder, test_split, classes=10)
    assert not trap.exists()


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.npy", "no array")
    return content.getvalue()


def claiming(shape: str) -> bytes:
    """Return the start of a file that says it holds numbers of this shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("linf/automated_eps03_labels.npy", np.array([5, 10, 1]), "must hold .* whole numbers from 0 to 9, or -1"),
        ("linf/automated_eps03_labels.npy", np.array([5, 1.5, 1]), "must hold .* whole numbers from 0 to 9"),
        ("linf/automated_eps03_labels.npy", np.array([5, 1]), r"images \(3, 6, 5\): must be \(2, 6, 5\)"),
        ("linf/automated_eps03_labels.npy", np.array([5, np.nan, 1]), "must hold .* whole numbers from 0 to 9"),
        ("linf/automated_eps03_labels.npy", np.array([[5, 9, 1]]), r"must hold \(N,\) whole numbers"),
        ("linf/automated_eps03.npy", np.full((3, 6, 5), -1.0), r"pixels from -1 to -1: must lie in \[0, 255\]"),
        ("linf/automated_eps03.npy", np.full((3, 6, 5), np.inf), r"must lie in \[0, 255\]"),
        (
            "linf/automated_eps03.npy",
            np.zeros((2, 6, 5)),
            r"must be \(3, 6, 5\), \(3, 30\), \(3, 6, 5, 1\) for 3 labels",
        ),
        ("linf/automated_eps03.npy", np.zeros((3, 6, 5), complex), "must hold an array of numbers"),
        ("linf/automated_eps03.npy", np.zeros((0, 6, 5)), "must hold an array of numbers"),
        ("linf/automated_eps03.npy", archive(), "not a readable array"),
        ("linf/automated_eps03.npy", claiming("(3, 6, 5)"), "not a readable array"),
        ("linf/automated_eps03.npy", claiming("(10**9, 10**9)"), "not a readable array"),
        ("linf/automated_eps03.npy", claiming("(1000000000000, 6, 5)"), "not a readable array"),
        ("indexs.npy", np.array([3, 4, 6]), r"only \d of 3 images look like the test image that .*indexs.npy names"),
        ("linf/automated_eps03.npy", np.full((3, 6, 5), 256.0), r"pixels from 256 to 256: must lie in \[0, 255\]"),
        ("linf/automated_eps03.npy", np.full((3, 6, 5), np.nan), r"must lie in \[0, 255\]"),
        ("linf/automated_eps03.npy", np.zeros((3, 5, 6)), r"must be \(3, 6, 5\)"),
        ("linf/automated_eps03.npy", None, "no such file"),
        ("linf/automated_eps03.npy", b"\x93NUMPY\x01\x00", "not a readable array"),
        ("linf/automated_eps03.npy", b"", "not a readable array"),
        ("linf/automated_eps03.npy", np.array(["a", "b", "c"]), "must hold an array of numbers"),
        ("linf/automated_eps03.npy", np.array([{}, {}, {}], dtype=object), "not a readable array"),
        ("indexs.npy", np.array([5, 2, 8]), r"from 2 to 8; .* must hold \(3,\) whole numbers from 0 to 7"),
        ("indexs.npy", np.array([5, 2]), r"holds \(2,\) indices .* must hold \(3,\) whole numbers from 0 to 7"),
        ("indexs.npy", None, "indexs.npy: no such file"),
    ],
)
def test_damaged_sets_are_refused_by_name(
    folder: Path, test_split: Split, file: str, content: np.ndarray | bytes | None, message: str
) -> None:
    path = folder / file
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=message) as error:
        read_examples(folder, test_split, classes=10)
    assert re.search("automated_eps03|indexs", str(error.value))


def test_a_folder_without_sets_is_refused(tmp_path: Path, test_split: Split) -> None:
    with pytest.raises(InputError, match=r"holds no file whose name ends in _labels\.npy"):
        read_examples(tmp_path, test_split, classes=10)


def labelled() -> LabelledSet:
    """Build a set of which people see 0 and 1 unchanged, 2 to 5 changed, and are undecided on 6."""
    sources = Split(torch.zeros(7, 1, 2, 2), torch.tensor([0, 1, 2, 3, 4, 5, 6]))
    return LabelledSet("set", torch.ones(7, 1, 2, 2), torch.tensor([0, 1, 8, 8, 8, 8, -1]), sources, torch.arange(7))


def test_agreement_counts_each_part() -> None:
    answers, clean = torch.tensor([0, 7, 8, 3, 9, -1, 2]), torch.tensor([0, 1, 2, 3, 0, 5, 6])
    found = agreement("someone", labelled(), answers, clean)
    assert found.covered == (6, 7)
    assert found.changed == (1, 3)
    assert found.stuck == (1, 2)
    assert found.unchanged == (1, 2)
    assert found.called_changed == (1, 3)


def test_who_never_changes_an_answer_is_stuck_everywhere() -> None:
    ours = labelled()
    always, people = compare(ours, {"people": lambda images: ours.labels if images.any() else ours.sources.labels})
    assert (always.answerer, always.changed, always.stuck) == ("the original", (0, 4), (4, 4))
    assert (always.unchanged, always.called_changed.size) == ((2, 2), 0)
    assert (people.changed, people.stuck, people.unchanged) == ((4, 4), (0, 4), (2, 2))
    assert people.called_changed == (4, 4)


class Brightest(nn.Module):
    """Answers with the column of the brightest pixel; its batch normalisation would give a changed mode away."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, images: Tensor) -> Prediction:
        columns = self.norm(images).amax((1, 2))
        return Prediction(columns, columns)


def test_a_model_answers_and_is_left_as_it_was_found(test_split: Split) -> None:
    model = Brightest().train()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(answers_of(model)(test_split.images), test_split.images.amax((1, 2)).argmax(1))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_comparison_says_what_people_see_and_survives_json(folder: Path, test_split: Split) -> None:
    sets = read_examples(folder, test_split, classes=10)
    found = ask_people(ExamplesFolder("there", "abc"), sets, {"the model": answers_of(Brightest())})
    assert [(each.name, each.images, each.changed, each.unchanged) for each in found.sets] == [
        ("linf/automated_eps03", 3, 1, 1),
        ("linf/manual_eps04", 2, 1, 1),
    ]
    assert [each.answerer for each in found.sets[0].agreements] == ["the original", "the model"]
    assert "did not agree on 1" in found.sets[0].title
    assert HumanAgreement.from_plain(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_published_sets_have_the_known_sizes(data_dir: Path, cache_dir: Path) -> None:
    data = load_data(EvaluationConfig(dataset="mnist"), data_dir=data_dir, cache_dir=cache_dir)
    sets = {s.name: s for s in read_examples(data_dir / "invariance_examples", data.test, classes=10)}
    linf, l0 = sets["linf/automated_eps03"], sets["l0/automated"]
    assert (len(linf.labels), int(linf.changed.sum())) == (100, 21)
    assert (len(l0.labels), int(l0.changed.sum())) == (100, 55)
    assert (linf.images - linf.sources.images).abs().max() <= 0.3 + 1e-6
    assert compare(linf, {})[0].unchanged.value == 1

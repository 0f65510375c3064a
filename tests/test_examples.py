from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import EvaluationConfig, InputError
from trainer.data import Split, load_data
from trainer.evidence import wilson_interval
from trainer.examples import LabelledSet, Share, agreement, compare, read_examples

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])


@pytest.fixture
def test_split() -> Split:
    return Split(torch.rand(8, 1, 6, 5, generator=torch.Generator().manual_seed(0)), LABELS)


@pytest.fixture
def folder(tmp_path: Path, test_split: Split) -> Path:
    """Two sets: one by the folder's own indices, one of a family that has indices of its own."""
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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("linf/automated_eps03_labels.npy", np.array([5, 10, 1]), "must hold whole numbers from 0 to 9, or -1"),
        ("linf/automated_eps03_labels.npy", np.array([5, 1.5, 1]), "must hold whole numbers from 0 to 9"),
        ("linf/automated_eps03_labels.npy", np.array([5, 1]), r"images \(3, 6, 5\), labels \(2,\): must be"),
        ("linf/automated_eps03.npy", np.full((3, 6, 5), 256.0), r"pixels from 256 to 256: must lie in \[0, 255\]"),
        ("linf/automated_eps03.npy", np.full((3, 6, 5), np.nan), r"must lie in \[0, 255\]"),
        ("linf/automated_eps03.npy", np.zeros((3, 5, 6)), r"must be \(N, 6, 5\)"),
        ("linf/automated_eps03.npy", None, "no such file"),
        ("linf/automated_eps03.npy", b"\x93NUMPY\x01\x00", "not a readable array"),
        ("linf/automated_eps03.npy", b"", "not a readable array"),
        ("linf/automated_eps03.npy", np.array(["a", "b", "c"]), "must hold an array of numbers"),
        ("linf/automated_eps03.npy", np.array([{}, {}, {}], dtype=object), "not a readable array"),
        ("indexs.npy", np.array([5, 2, 8]), "must hold 3 whole numbers from 0 to 7"),
        ("indexs.npy", np.array([5, 2]), "must hold 3 whole numbers from 0 to 7"),
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
    """People see: 0 and 1 unchanged, 2 to 5 changed, 6 undecided."""
    sources = Split(torch.zeros(7, 1, 2, 2), torch.tensor([0, 1, 2, 3, 4, 5, 6]))
    return LabelledSet("set", torch.ones(7, 1, 2, 2), torch.tensor([0, 1, 8, 8, 8, 8, -1]), sources)


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
    assert (always.answerer, always.changed, always.stuck) == ("the original label", (0, 4), (4, 4))
    assert (always.unchanged, always.called_changed.size) == ((2, 2), 0)
    assert (people.changed, people.stuck, people.unchanged) == ((4, 4), (0, 4), (2, 2))
    assert people.called_changed == (4, 4)


def test_share_has_a_value_and_an_interval() -> None:
    assert Share(3, 4).value == 0.75
    assert Share(3, 4).interval == wilson_interval(3, 4)
    assert Share(0, 0).value == 0


def test_published_sets_have_the_known_sizes(data_dir: Path, cache_dir: Path) -> None:
    data = load_data(EvaluationConfig(dataset="mnist"), data_dir=data_dir, cache_dir=cache_dir)
    sets = {s.name: s for s in read_examples(data_dir / "invariance_examples", data.test, classes=10)}
    linf, l0 = sets["linf/automated_eps03"], sets["l0/automated"]
    assert (len(linf.labels), int(linf.changed.sum())) == (100, 21)
    assert (len(l0.labels), int(l0.changed.sum())) == (100, 55)
    assert (linf.images - linf.sources.images).abs().max() <= 0.3 + 1e-6
    assert compare(linf, {})[0].unchanged.value == 1

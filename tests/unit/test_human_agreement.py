"""What people say, in plain numbers: which folder is taken, and the lines of the table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer.attacks.evidence import wilson_interval
from trainer.errors import InputError
from trainer.human_agreement import HEADINGS, Agreement, Share, cells, find_examples, unknown_agreement


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data with examples beside it."""
    examples = tmp_path / "data" / "invariance_examples" / "linf"
    examples.mkdir(parents=True)
    (examples / "set.npy").write_bytes(b"images")
    (examples / "set_labels.npy").write_bytes(b"labels")
    return examples.parent


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTSWEEP_DATA_DIR", raising=False)


def test_the_named_folder_counts_before_the_one_beside_the_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    for given, data_dir, expected in [
        (None, None, None),
        (None, tmp_path, None),
        (None, folder.parent, folder),
        (other, folder.parent, other),
        (str(other), None, other),
    ]:
        found = find_examples(given, dataset="mnist", data_dir=data_dir)
        assert (found and found.path) == (expected and str(expected))
    monkeypatch.setenv("OTSWEEP_DATA_DIR", str(folder.parent))
    found = find_examples(None, dataset="mnist", data_dir=None)
    assert found is not None
    assert found.path == str(folder)
    # Those beside the data are of MNIST: other data of its shape has none unless they are named.
    assert find_examples(None, dataset="fashion_mnist", data_dir=None) is None
    assert find_examples(None, dataset="digits", data_dir=None) is None


def test_the_digest_is_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        found = find_examples(path, dataset="fashion_mnist", data_dir=None)
        assert found is not None
        return found.digest

    first = digest(folder)
    assert digest(shutil.copytree(folder, tmp_path / "copy")) == first
    (folder / "README.md").write_text("no array")
    assert digest(folder) == first
    (folder / "linf" / "set.npy").write_bytes(b"other images")
    second = digest(folder)
    (folder / "linf" / "set.npy").rename(folder / "linf" / "renamed.npy")
    assert len({first, second, digest(folder)}) == 3


@pytest.mark.parametrize(
    ("given", "dataset", "message"),
    [
        ("data", "digits", r"28x28 grey images in 10 classes \(mnist, fashion_mnist\); the data set here is 'digits'"),
        ("data", "cifar10", "the data set here is 'cifar10'"),
        ("nowhere", "mnist", "nowhere': no such folder"),
        ("file", "mnist", "file': is not a folder"),
        ("file/in/a/file", "mnist", "(no such folder|can't be read)"),
        ("empty", "mnist", r"empty': holds no file whose name ends in _labels\.npy"),
        ("a\0b", "mnist", "no such folder"),
        ("~nobody-of-that-name", "mnist", "can't be read"),
    ],
)
def test_wrong_folders(folder: Path, tmp_path: Path, given: str, dataset: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    path = given if given.startswith("~") else str(tmp_path / given)
    with pytest.raises(InputError, match=f"--invariance-examples.*{message}"):
        find_examples(path, dataset=dataset, data_dir=None)


def agreement(changed: Share, stuck: Share) -> Agreement:
    return Agreement("someone", Share(9, 10), changed, stuck, Share(70, 79), Share(0, 0))


def test_a_line_has_a_cell_for_every_heading() -> None:
    line = cells([agreement(Share(10, 21), Share(3, 4))])
    low, high = wilson_interval(10, 21)
    assert line == [
        "someone",
        "47.6% of 21",
        f"{100 * low:.0f} to {100 * high:.0f}%",
        "75.0%",
        "88.6% of 79",
        "-",
        "90.0%",
    ]
    assert len(line) == len(HEADINGS)


def test_of_several_seeds_shares_are_averaged_and_images_counted_once() -> None:
    line = cells([agreement(Share(6, 20), Share(1, 1)), agreement(Share(10, 20), Share(1, 2))])
    low, high = wilson_interval(8, 20)
    assert line[1:4] == ["40.0% of 20", f"{100 * low:.0f} to {100 * high:.0f}%", "75.0%"]


def test_of_no_images_nothing_is_claimed() -> None:
    assert cells([agreement(Share(0, 0), Share(0, 0))])[1:4] == ["-", "-", "-"]
    assert Share(0, 0).value == 0


def test_what_is_unknown_is_said_with_the_way_to_know_it() -> None:
    assert "--invariance-examples" in unknown_agreement("mnist")
    assert "OTSWEEP_DATA_DIR" in unknown_agreement("mnist")
    assert "digits is not known" in unknown_agreement("digits")

"""Data of one's own: folders, npz files and functions; what they become, and what is said of wrong ones."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import plugins
from trainer.config import EvaluationConfig
from trainer.data import catalogue
from trainer.data.datasets import Data, load_data
from trainer.errors import InputError
from trainer.invariance import prepare
from trainer.invariance.judge_training import train_ensemble
from trainer.invariance.published import alignments_for
from trainer.plugins import allow_plugins, load_plugin, plugin_digest, plugin_sources, receive_plugins, send_plugins


def shapes(images: int = 72, *, classes: int = 3, side: int = 8) -> dict[str, Any]:
    """Squares of different sizes at random places, one size a class."""
    random = np.random.default_rng(0)
    labels = np.arange(images) % classes
    pixels = np.zeros((images, side, side), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        row, column = random.integers(0, side - 5, 2)
        image[row : row + 2 + label, column : column + 2 + label] = random.integers(150, 256)
    return {"images": pixels, "labels": labels}


def load(dataset: str, cache: Path, **settings: Any) -> Data:
    return load_data(EvaluationConfig(dataset=dataset, **settings), cache_dir=cache)


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "own.npz", **arrays)
    return f"npz:{folder / 'own.npz'}"


def everything(data: Data) -> list[bytes]:
    """All labelled images of a data set, whatever their order."""
    splits = (data.train, data.validation, data.test)
    return sorted(
        bytes([int(label)]) + image.numpy().tobytes()
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray, ending: str = "png") -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / f"class {label}" / f"{number:03}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = "own_plugin") -> Path:
    """Write a module that can be imported until the test ends."""
    file = folder / f"{name}.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return file


# What data of one's own becomes


def test_an_npz_file_a_folder_and_a_function_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = shapes()
    write_folder(tmp_path / "by class", **given)
    source = "import numpy as np\ndef load():\n    return dict(np.load({!r}))\n"
    module(tmp_path, monkeypatch, source.format(str(tmp_path / "own.npz")))
    names = (npz(tmp_path, **given), f"folder:{tmp_path / 'by class'}", "python:own_plugin:load")
    first, *others = [load(name, tmp_path / "cache") for name in names]
    assert first.shape == (1, 8, 8)
    assert first.classes == 3
    assert [len(split.labels) for split in (first.train, first.validation, first.test)] == [48, 12, 12]
    for other in others:
        assert everything(other) == everything(first)


def test_every_split_holds_every_class_and_the_seed_decides(tmp_path: Path) -> None:
    name = npz(tmp_path, **shapes())
    first, again, other = (load(name, tmp_path / str(n), split_seed=seed) for n, seed in enumerate((0, 0, 1)))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert all((split.labels.bincount() == len(split.labels) // 3).all() for split in (first.validation, first.test))


def test_a_given_test_set_stays_as_it_is_and_validation_joins_training(tmp_path: Path) -> None:
    parts = {
        f"{part}_{name}": array[rows]
        for name, array in shapes().items()
        for part, rows in {"train": slice(0, 48), "val": slice(48, 60), "test": slice(60, 72)}.items()
    }
    data = load(npz(tmp_path, **parts), tmp_path / "cache")
    assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [50, 10, 12]
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(parts["test_images"]) / 255)
    assert data.test.labels.tolist() == parts["test_labels"].tolist()


def test_a_folder_may_hold_train_and_test(tmp_path: Path) -> None:
    given = shapes()
    write_folder(tmp_path / "own/train", given["images"][:60], given["labels"][:60])
    write_folder(tmp_path / "own/test", given["images"][60:], given["labels"][60:])
    data = load(f"folder:{tmp_path / 'own'}", tmp_path / "cache")
    assert len(data.test.labels) == 12
    assert len(data.train.labels) + len(data.validation.labels) == 60


def test_what_desktops_leave_in_folders_is_no_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "own", **shapes())
    before = everything(load(f"folder:{tmp_path / 'own'}", tmp_path / "cache"))
    for name in ("__MACOSX/class 0/._000.png", ".DS_Store", "desktop.ini", "class 0/Thumbs.db", "class 1/Icon\r"):
        put(tmp_path / "own", name, b"")
    assert everything(load(f"folder:{tmp_path / 'own'}", tmp_path / "again")) == before


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    for folder, turned in (("upright", False), ("turned", True)):
        write_folder(tmp_path / folder, **shapes(), ending="png")
        for file in sorted((tmp_path / folder).rglob("*.png")) if turned else []:
            with Image.open(file) as image:
                exif = image.getexif()
                exif[0x0112] = 6  # to be turned by a quarter, clockwise
                image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    upright, turned = (load(f"folder:{tmp_path / name}", tmp_path / f"{name} c") for name in ("upright", "turned"))
    assert everything(upright) == everything(turned)


@pytest.mark.parametrize("layout", ["channels last", "channels first", "floats", "labels in a column", "tensors"])
def test_layouts_mean_the_same(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.repeat(shapes()["images"][:, None], 3, axis=1)
    images[:, 1] //= 2  # so that a mixed-up channel shows
    labels = shapes()["labels"]
    plain = load(npz(tmp_path, images=images, labels=labels), tmp_path / "cache")
    changed: dict[str, Any] = {
        "channels last": {"images": images.transpose(0, 2, 3, 1), "labels": labels},
        "channels first": {"images": images, "labels": labels.astype(np.uint8)},
        "floats": {"images": (images / 255).astype(np.float64), "labels": labels},
        "labels in a column": {"images": images, "labels": labels[:, None]},
        "tensors": {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)},
    }[layout]
    holder = module(tmp_path, monkeypatch, "given = {}\ndef load():\n    return given\n")
    load_plugin("dataset", "python:own_plugin:load").__globals__["given"].update(changed)
    data = load("python:own_plugin:load", tmp_path / layout)
    assert holder.exists()
    assert data.shape == (3, 8, 8)
    torch.testing.assert_close(data.train.images, plain.train.images, atol=1e-7, rtol=0)
    assert torch.equal(data.train.labels, plain.train.labels)


def test_jpeg_files_are_read_in_colour_if_any_is(tmp_path: Path) -> None:
    given = shapes()
    write_folder(tmp_path / "own", **given, ending="jpg")
    assert load(f"folder:{tmp_path / 'own'}", tmp_path / "grey").shape == (1, 8, 8)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "own/class 0/red.JPEG")
    assert load(f"folder:{tmp_path / 'own'}", tmp_path / "colour").shape == (3, 8, 8)


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    given = shapes(180, classes=12, side=20)
    for image, label, number in zip(given["images"], given["labels"], range(180), strict=True):
        (tmp_path / f"own/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"own/{label}/{number}.png")
    data = load(f"folder:{tmp_path / 'own'}", tmp_path / "cache")
    sums = [
        float((data.train.images[data.train.labels == label] > 0).sum((1, 2, 3)).float().max()) for label in (2, 10)
    ]
    assert sums[0] == 16  # squares of 4 pixels a side, not those of class 10, which would come before in words
    assert sums[1] > 16


def test_a_changed_file_or_module_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = shapes()
    name = npz(tmp_path, **given)
    before = load(name, tmp_path / "cache")
    npz(tmp_path, images=255 - given["images"], labels=given["labels"])
    assert load(name, tmp_path / "cache").fingerprint != before.fingerprint
    file = module(tmp_path, monkeypatch, "def load(): ...\n")
    digest = plugin_digest("dataset", "python:own_plugin:load")
    file.write_text("def load(): ...  # changed\n")
    assert plugin_digest("dataset", "python:own_plugin:load") != digest


def test_once_decoded_a_function_is_not_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "own.npz", **shapes())
    text = "import numpy as np\ncalls = []\ndef load():\n    calls.append(1)\n    return dict(np.load({!r}))\n"
    module(tmp_path, monkeypatch, text.format(str(tmp_path / "own.npz")))
    for _ in range(3):
        load("python:own_plugin:load", tmp_path / "cache")
    assert sys.modules["own_plugin"].calls == [1]


def test_a_relative_path_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = EvaluationConfig(dataset="folder:shapes/by class")
    assert given.dataset == f"folder:{tmp_path}/shapes/by class"
    monkeypatch.chdir("/")
    assert EvaluationConfig.from_mapping(given.to_dict()) == given


# What is said of wrong data


def arrays(**changes: Any) -> Callable[[Path], str]:
    return lambda folder: npz(
        folder, **{name: array for name, array in (shapes() | changes).items() if array is not None}
    )


RANDOM = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            arrays(images=np.zeros((72, 8), np.uint8)), "images has the shape (72, 8), must be (N, H, W)", id="flat"
        ),
        pytest.param(
            arrays(images=RANDOM.random((72, 8, 8, 4))), "must be (N, H, W), (N, C, H, W)", id="four channels"
        ),
        pytest.param(arrays(images=np.ones((72, 3, 8, 3), np.uint8)), "with C = 1 or 3", id="channels unclear"),
        pytest.param(
            arrays(images=RANDOM.random((72, 8, 8)) * 255), "must lie in [0, 1], or be uint8", id="floats to 255"
        ),
        pytest.param(arrays(images=RANDOM.random((72, 8, 8)) - 0.5), "must lie in [0, 1]", id="below 0"),
        pytest.param(arrays(images=np.full((72, 8, 8), np.nan)), "its images reach from nan", id="nan"),
        pytest.param(arrays(images=np.zeros((72, 8, 8), np.int64)), "images holds int64, must hold uint8", id="int64"),
        pytest.param(arrays(images=np.zeros((72, 8, 8), np.uint8)), "all its pixels are 0", id="black"),
        pytest.param(arrays(images=np.ones((72, 7, 8), np.uint8)), "7x8 pixels, must have 8 to 256 a side", id="small"),
        pytest.param(arrays(images=np.ones((0, 8, 8), np.uint8), labels=np.ones(0, int)), "holds no images", id="none"),
        pytest.param(arrays(labels=np.zeros(72, int)), "all its images are of one class", id="one class"),
        pytest.param(
            arrays(images=shapes()["images"] // 16), "brightest pixel is 15, and 255 is white", id="16 shades"
        ),
        pytest.param(arrays(images=shapes()["images"] / 255**2), "pixel is 0.00", id="divided twice"),
        pytest.param(arrays(labels=np.arange(72) % 3 + 1), "class 0 has 0 images", id="labels from 1"),
        pytest.param(
            arrays(labels=np.arange(72) % 3 - 1), "it has the label -1, must have labels from 0", id="negative"
        ),
        pytest.param(arrays(labels=np.arange(72) % 9), "has 8 images beside the test set, must have 12", id="too few"),
        pytest.param(arrays(labels=np.arange(72) * 9), "at most 100 classes", id="too many classes"),
        pytest.param(arrays(labels=np.arange(72) % 3 * 10**15), "at most 100 classes", id="identifiers"),
        pytest.param(arrays(labels=np.arange(71) % 3), "must be one label for each of 72 images", id="label missing"),
        pytest.param(
            arrays(labels=np.eye(3)[np.arange(72) % 3]), "has the shape (72, 3), must be one label", id="one hot"
        ),
        pytest.param(
            arrays(labels=(np.arange(72) % 3).astype(str)), "labels holds <U21, must hold numbers", id="words"
        ),
        pytest.param(arrays(labels=(np.arange(72) % 3) / 1), "must hold whole numbers from 0", id="float labels"),
        pytest.param(arrays(labels=None), "holds images without labels", id="no labels"),
        pytest.param(arrays(images=None), "holds labels, must hold images and labels", id="no images"),
        pytest.param(
            arrays(test_images=np.ones((9, 9, 9), np.uint8), test_labels=np.ones(9, int)), "of one size", id="mixed"
        ),
        pytest.param(lambda folder: f"npz:{folder / 'away.npz'}", "there is no such file", id="no file"),
        pytest.param(lambda folder: f"folder:{folder / 'away'}", "there is no such folder", id="no folder"),
        pytest.param(lambda folder: f"folder:{folder}", "holds nothing, must hold a folder for each class", id="empty"),
    ],
)
def test_wrong_data_is_refused_in_one_line(make: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    name = make(tmp_path)
    with pytest.raises(InputError) as raised:
        load(name, tmp_path.parent / f"{tmp_path.name}-cache")
    assert message in str(raised.value)
    assert f"dataset = {name!r}: " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all"], ids=["empty", "cut off", "text"])
def test_a_broken_npz_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"own\.npz': can't be read as \.npz"):
        load(f"npz:{tmp_path / 'own.npz'}", tmp_path / "cache")


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        load(f"npz:{tmp_path / 'own.npz'}", tmp_path / "cache")


def put(folder: Path, name: str, content: bytes | Image.Image) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content.save(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("class 0/a.png", b"no image", "is broken: cannot identify image file", id="no image"),
        pytest.param("class 0/a.jpg", b"", "is broken: cannot identify image file", id="empty file"),
        pytest.param("class 0/a.png", Image.new("L", (9, 8)), "has 9x8 pixels", id="mixed sizes"),
        pytest.param(
            "class 0/a.png", Image.new("RGBA", (8, 8)), "of mode RGBA: save it as 8-bit grey or RGB", id="alpha"
        ),
        pytest.param("class 0/a.png", Image.new("I;16", (8, 8)), "of mode I;16", id="16 bits"),
        pytest.param("class 0/a.gif", Image.new("L", (8, 8)), "is neither PNG nor JPEG", id="gif"),
        pytest.param("class 0/a.txt", b"", "is neither PNG nor JPEG", id="text"),
        pytest.param("class 0/more/a.png", Image.new("L", (8, 8)), "is neither PNG nor JPEG", id="folder in a class"),
        pytest.param("list.csv", b"", "lies beside the classes' folders", id="file beside classes"),
    ],
)
def test_a_wrong_file_in_a_folder_is_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "own", **shapes())
    put(tmp_path / "own", name, content)
    with pytest.raises(InputError) as raised:
        load(f"folder:{tmp_path / 'own'}", tmp_path / "cache")
    named = tmp_path / "own" / (Path(name).parent if "more" in name else name)
    assert str(raised.value).startswith(repr(str(named)))
    assert message in str(raised.value)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (72, 8, 8)).astype(np.uint8)
    write_folder(tmp_path / "own", random, shapes()["labels"])
    file = tmp_path / "own/class 1/001.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=re.escape(f"{str(file)!r} is broken")):
        load(f"folder:{tmp_path / 'own'}", tmp_path / "cache")


def test_a_test_set_with_a_class_of_its_own_is_refused(tmp_path: Path) -> None:
    given = shapes()
    write_folder(tmp_path / "own/train", **given)
    write_folder(tmp_path / "own/test", given["images"][:3], given["labels"][:3] + 5)
    with pytest.raises(InputError, match=r"there is no class 'class 5' in"):
        load(f"folder:{tmp_path / 'own'}", tmp_path / "cache")


@pytest.mark.parametrize(
    ("value", "text", "message"),
    [
        ("python:own_plugin", "", "dataset = 'python:own_plugin': must be python:MODULE:FUNCTION"),
        ("python:own plugin:load", "", "must be python:MODULE:FUNCTION"),
        ("python:own_plugin:load:more", "", "must be python:MODULE:FUNCTION"),
        (
            "python:not_there_at_all:load",
            "",
            "dataset = 'python:not_there_at_all:load': there is no module 'not_there_at_all' on",
        ),
        ("python:own_plugin.part:load", "", "there is no module 'own_plugin.part'"),
        (
            "python:own_plugin:load",
            "import not_there_either\n",
            "can't be imported: No module named 'not_there_either'",
        ),
        ("python:own_plugin:load", "1 / 0\n", "can't be imported: ZeroDivisionError: division by zero"),
        ("python:own_plugin:load", "def load(:\n", "can't be imported: SyntaxError"),
        ("python:own_plugin:load", "", "own_plugin has no such function"),
        ("python:own_plugin:load", "load = 3\n", "own_plugin has load = 3, must have a function"),
        ("python:own_plugin:load", "def load(): return {}['x']\n", "raised KeyError: 'x'"),
        ("python:own_plugin:load", "def load(a): ...\n", "raised TypeError"),
        ("python:own_plugin:load", "def load(): raise ValueError('one\\ntwo')\n", "raised ValueError: one"),
        ("python:own_plugin:load", "def load(): raise SystemExit(3)\n", "raised SystemExit: 3"),
        ("python:own_plugin:load", "import sys; sys.exit('gone')\n", "can't be imported: SystemExit: gone"),
        (
            "python:own_plugin:load",
            "def load(): return {'images': [[1], [1, 2]], 'labels': []}",
            "images is no array: ",
        ),
        ("python:own_plugin:load", "def load(): return 5\n", "returned int, must be a dict with images and labels"),
    ],
)
def test_a_wrong_function_is_refused_in_one_line(
    value: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, text)
    with pytest.raises(InputError) as raised:
        load(value, tmp_path / "cache")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ["folder:", "npz:", "folder:s3://bucket/images"])
def test_a_path_must_be_one_of_this_machine(value: str) -> None:
    with pytest.raises(InputError, match=r"with a path on this machine"):
        EvaluationConfig(dataset=value)


def test_an_unknown_kind_is_answered_with_the_right_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'folder:PATH'"):
        EvaluationConfig(dataset="folders:x")


# Code is named by whoever runs it


def test_naming_a_module_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = module(tmp_path, monkeypatch, "raise SystemExit('imported')\n")
    assert EvaluationConfig(dataset="python:own_plugin:load").dataset == "python:own_plugin:load"
    assert plugin_sources(["python:own_plugin:load"]) == {"own_plugin": file}
    assert plugin_sources(["python:numpy:load"]) == {}
    assert "own_plugin" not in sys.modules


def test_a_process_imports_no_function_that_its_plan_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_allowed", None)
    module(tmp_path, monkeypatch, "def load(): ...\ndef other(): ...\n")
    allow_plugins(["python:own_plugin:load"])
    assert callable(load_plugin("dataset", "python:own_plugin:load"))
    with pytest.raises(InputError, match=r"isn't imported, as the plan of what runs here does not name it"):
        load_plugin("dataset", "python:own_plugin:other")


def test_a_sent_module_can_be_imported_where_its_file_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "here/own_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from own_package.part import load\n")
    (package / "part.py").write_text("def load(): return 'sent'\n")
    value = "python:own_package:load"
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path / "here")
        sent = send_plugins([value, "python:numpy:load"])
    assert [each.name for each in sent] == ["own_package"]
    (tmp_path / "here").rename(tmp_path / "away")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match="there is no module 'own_package'"):
        load_plugin("dataset", value)
    receive_plugins(sent)
    assert load_plugin("dataset", value)() == "sent"
    for name in ("own_package", "own_package.part"):
        sys.modules.pop(name)


def test_a_module_is_found_in_its_own_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside it can be read there."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = module(tmp_path, monkeypatch, "def load(): return __file__\n", name="own_beside")
    sent = send_plugins(["python:own_beside:load"])
    receive_plugins(sent)
    assert load_plugin("dataset", "python:own_beside:load")() == str(file)


def test_too_large_a_module_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "#" * 2**21)
    with pytest.raises(InputError, match=r"holds 2\.0 MiB of Python, too much to be sent"):
        send_plugins(["python:own_plugin:load"])


# Judged by symmetries


def test_declared_symmetries_decide_the_alignments() -> None:
    def sizes(symmetries: str, norm: str = "linf") -> int:
        return alignments_for("npz:/x", norm, symmetries=symmetries, shape=(1, 8, 12)).size

    names = ("none", "shifts", "turns", "shifts_and_turns", "usual")
    assert [sizes(name) for name in names] == [1, 25, 31, 775, 25]
    assert [sizes(name, "l0") for name in names] == [1, 775, 775, 775, 775]
    assert alignments_for("mnist", "linf") == alignments_for("mnist", "linf", shape=(1, 28, 28))
    with pytest.raises(InputError, match="images of 64x64 pixels are too large to be turned"):
        alignments_for("npz:/x", "linf", symmetries="turns", shape=(3, 64, 64))


def test_data_of_ones_own_gets_a_judge_that_nobody_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[train_ensemble.__module__], "_LEAST_STEPS", 5)
    given = shapes(180, classes=2)
    images = np.pad(given["images"], ((0, 0), (0, 0), (0, 4)))  # not square
    evaluation = EvaluationConfig(
        dataset=npz(tmp_path, images=images, labels=given["labels"]),
        eval_invariance_epsilon=1.0,
        symmetries="none",
    )
    prepared = prepare(evaluation, invariance_norms=("linf", "l0"), cache_dir=tmp_path)
    assert prepared.crowd.name == "uncalibrated"
    assert prepared.judging.images.shape == (30, 1, 8, 12)
    assert prepared.judging.crowd.shape == (30, 2)


# Data sets that torchvision knows, in small


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with USPS, SVHN and EMNIST of a few images each, in their published formats."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN, USPS

    folder = tmp_path / "published"
    (folder / "EMNIST/raw").mkdir(parents=True)
    digest = lambda name: hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: E731
    labels = np.arange(20) % 10
    for name in ("usps.bz2", "usps.t.bz2"):
        lines = [f"{label + 1} " + " ".join(f"{p + 1}:{-1 + label / 9:.4f}" for p in range(256)) for label in labels]
        (folder / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    split_of_usps = {"train": ["", "", digest("usps.bz2")], "test": ["", "", digest("usps.t.bz2")]}
    monkeypatch.setattr(USPS, "split_list", split_of_usps)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        images = np.broadcast_to(10 * labels.astype(np.uint8), (32, 32, 3, 20)).copy()
        images[:, :, 1] += 5
        savemat(folder / name, {"X": images, "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})
    split_of_svhn = {part: ["", "", digest(f"{part}_32x32.mat")] for part in ("train", "test")}
    monkeypatch.setattr(SVHN, "split_list", split_of_svhn)
    with zipfile.ZipFile(folder / "EMNIST/raw/gzip.zip", "w") as archive:
        for name, shape in catalogue.EMNIST_FILES.items():
            small = (94, *shape[1:])
            monkeypatch.setitem(catalogue.EMNIST_FILES, name, small)
            values = np.arange(94, dtype=np.uint8) % 47
            if len(shape) == 3:
                values = np.zeros(small, np.uint8)
                values[:, 3, 9] = 255
            head = bytes([0, 0, 8, len(small)]) + struct.pack(f">{len(small)}I", *small)
            archive.writestr(f"gzip/{name}.gz", gzip.compress(head + values.tobytes()))
    sizes = {"usps": (10, 10, 20), "svhn": (10, 10, 20), "emnist": (47, 47, 94)}
    for name, each in sizes.items():
        monkeypatch.setitem(catalogue.SIZES, name, catalogue.Sizes(*each))
    return folder


def test_published_formats_are_read(published: Path, tmp_path: Path) -> None:
    usps, svhn, emnist = (
        load_data(EvaluationConfig(dataset=name), data_dir=published, cache_dir=tmp_path)
        for name in ("usps", "svhn", "emnist")
    )
    assert (usps.shape, svhn.shape, emnist.shape) == ((1, 16, 16), (3, 32, 32), (1, 28, 28))
    assert (usps.classes, svhn.classes, emnist.classes) == (10, 10, 47)
    assert usps.test.labels.tolist() == svhn.test.labels.tolist() == [*range(10), *range(10)]
    expected = (usps.test.labels / 9 / 2 * 255).floor() / 255
    torch.testing.assert_close(usps.test.images.mean((1, 2, 3)), expected, atol=1 / 255, rtol=0)
    torch.testing.assert_close(svhn.test.images[:, 0].mean((1, 2)), svhn.test.labels * 10 / 255)
    torch.testing.assert_close(svhn.test.images[:, 1].mean((1, 2)), (svhn.test.labels * 10 + 5) / 255)
    assert (emnist.test.images[:, 0, 9, 3] == 1).all()  # upright: its files hold columns as rows


@pytest.mark.parametrize("name", ["usps.t.bz2", "train_32x32.mat", "EMNIST/raw/gzip.zip"])
def test_a_published_file_that_is_not_the_official_one_is_named(name: str, published: Path, tmp_path: Path) -> None:
    file = published / name
    file.write_bytes(file.read_bytes()[:-30])
    dataset = {"usps.t.bz2": "usps", "train_32x32.mat": "svhn"}.get(name, "emnist")
    with pytest.raises(InputError, match=re.escape(f"{str(file)!r} is damaged or not the official file")):
        load_data(EvaluationConfig(dataset=dataset), data_dir=published, cache_dir=tmp_path)

"""Loading, splitting, caching, downloading, and what is said when a file is missing or wrong."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import pickle
import re
import shutil
import struct
import tarfile
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import progress
from trainer.config import EvaluationConfig
from trainer.data import catalogue, downloads, formats, splits, store
from trainer.data.catalogue import Sizes
from trainer.data.datasets import Data, Split, load_data
from trainer.errors import InputError

RAW = "FashionMNIST/raw"
SMALL_IDX = {
    "train-images-idx3-ubyte": (40, 28, 28),
    "train-labels-idx1-ubyte": (40,),
    "t10k-images-idx3-ubyte": (20, 28, 28),
    "t10k-labels-idx1-ubyte": (20,),
}
FASHION = EvaluationConfig(dataset="fashion_mnist")
CIFAR = EvaluationConfig(dataset="cifar10")


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def idx_contents() -> dict[str, bytes]:
    """Four IDX files that are right but small: labels 0, 1, ... 9, 0, ..., images random."""
    random = np.random.default_rng(0)
    values = {
        name: (np.arange(shape[0]) % 10 if len(shape) == 1 else random.integers(0, 256, shape)).astype(np.uint8)
        for name, shape in SMALL_IDX.items()
    }
    return {name: idx(array) for name, array in values.items()}


@pytest.fixture(autouse=True)
def _no_named_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTSWEEP_DATA_DIR", raising=False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Fashion-MNIST of 60 images, so that a test writes and reads little."""
    monkeypatch.setitem(catalogue.SIZES, "fashion_mnist", Sizes(30, 10, 20))
    monkeypatch.delitem(catalogue.IDX_MD5, "fashion_mnist")
    for name, shape in SMALL_IDX.items():
        monkeypatch.setitem(catalogue.IDX_FILES, name, shape)


@pytest.fixture
def fashion(small: None, tmp_path: Path) -> Path:
    """A data folder that holds the small Fashion-MNIST."""
    folder = tmp_path / "data"
    (folder / RAW).mkdir(parents=True)
    for name, content in idx_contents().items():
        (folder / RAW / name).write_bytes(content)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(downloads, "connect", unreachable)


def whole(loaded: Data) -> Split:
    """The three splits one after the other."""
    splits = (loaded.train, loaded.validation, loaded.test)
    return Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))


def multiset(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """Labelled images, whatever their order."""
    return sorted(
        hashlib.sha256(image.tobytes()).digest() + bytes([label]) for image, label in zip(images, labels, strict=True)
    )


def same(a: Data, b: Data) -> bool:
    pairs = zip((a.train, a.validation, a.test), (b.train, b.validation, b.test), strict=True)
    return a.fingerprint == b.fingerprint and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs
    )


# Digits and the split


def test_digits_are_images_in_0_1_with_labels(digits: Data) -> None:
    assert [len(s.labels) for s in (digits.train, digits.validation, digits.test)] == [1200, 300, 297]
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.shape == (len(split.labels), 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1
    assert digits.classes == 10
    assert digits.name == "digits"
    assert digits.shape == (1, 8, 8)


def test_splits_hold_each_digit_once(digits: Data) -> None:
    published: Any = sklearn.datasets.load_digits()
    images, labels = whole(digits)
    # Sixteenths are exact in float32.
    assert multiset(images.numpy(), labels.numpy()) == multiset(
        published.images.astype(np.float32) / 16, published.target
    )


def test_every_split_is_stratified(digits: Data) -> None:
    overall = torch.bincount(whole(digits).labels) / 1797
    for split in (digits.train, digits.validation, digits.test):
        assert (torch.bincount(split.labels) - overall * len(split.labels)).abs().max() < 2


def test_split_seed_decides_the_split(cache_dir: Path, digits: Data) -> None:
    again = load_data(EvaluationConfig(split_seed=0), cache_dir=cache_dir)
    other = load_data(EvaluationConfig(split_seed=1), cache_dir=cache_dir)
    assert same(digits, again)
    assert other.fingerprint != digits.fingerprint
    assert multiset(other.test.images.numpy(), other.test.labels.numpy()) != multiset(
        digits.test.images.numpy(), digits.test.labels.numpy()
    )


@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=200), seed=st.integers(0, 2**31 - 1))
def test_every_prefix_of_the_order_holds_each_class_in_proportion(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    order = splits.stratified_order(array, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(array)))
    sizes = np.bincount(array, minlength=10)
    seen = np.cumsum(array[order][:, None] == np.arange(10), axis=0)[:, sizes > 0]
    sizes = sizes[sizes > 0]
    share = seen / sizes
    apart = np.abs(share[:, :, None] - share[:, None, :])
    assert (apart <= 1 / sizes[:, None] + 1 / sizes[None, :]).all()


def test_order_is_random_within_a_class() -> None:
    labels = np.zeros(50, dtype=np.int64)
    orders = {tuple(splits.stratified_order(labels, np.random.default_rng(seed))) for seed in range(10)}
    assert len(orders) == 10
    assert tuple(range(50)) not in orders


def test_a_subset_is_the_head_of_the_split(cache_dir: Path, digits: Data) -> None:
    part = load_data(EvaluationConfig(train_size=100, validation_size=50), cache_dir=cache_dir)
    assert torch.equal(part.train.images, digits.train.images[:100])
    assert torch.equal(part.train.labels, digits.train.labels[:100])
    assert torch.equal(part.validation.images, digits.validation.images[:50])
    assert torch.equal(part.test.images, digits.test.images)
    assert torch.bincount(part.train.labels).min() >= 8


def test_fingerprint_tells_subsets_apart(cache_dir: Path, digits: Data) -> None:
    configs: list[dict[str, Any]] = [
        {"train_size": 100},
        {"validation_size": 100},
        {"train_size": 200},
        {"split_seed": 1},
    ]
    prints = {load_data(EvaluationConfig(**c), cache_dir=cache_dir).fingerprint for c in configs}
    assert len(prints | {digits.fingerprint}) == 5
    assert re.fullmatch("[0-9a-f]{16}", digits.fingerprint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 1201}, "train_size = 1201: digits takes 10 (its classes) to 1200, or 0 for all"),
        ({"train_size": 9}, "train_size = 9: digits takes 10 (its classes) to 1200, or 0 for all"),
        ({"validation_size": 301}, "validation_size = 301: digits takes 10 (its classes) to 300, or 0 for all"),
        (
            {"dataset": "cifar10", "train_size": 50_000},
            "train_size = 50000: cifar10 takes 10 (its classes) to 45000, or 0 for all",
        ),
    ],
)
def test_a_subset_must_exist(settings: dict, message: str, cache_dir: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_data(EvaluationConfig(**settings), cache_dir=cache_dir)
    assert str(raised.value) == message


# The cache


def test_a_cached_data_set_opens_at_once(cache_dir: Path, digits: Data) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        load_data(EvaluationConfig(), cache_dir=cache_dir)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.05


def test_splits_are_slices_of_one_map(digits: Data) -> None:
    assert digits.validation.images.data_ptr() == digits.train.images.data_ptr() + 1200 * 64 * 4
    assert digits.test.images.data_ptr() == digits.validation.images.data_ptr() + 300 * 64 * 4


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list a process's maps")
def test_tensors_are_pages_of_the_cached_file(tmp_path: Path) -> None:
    loaded = load_data(EvaluationConfig(), cache_dir=tmp_path)
    address = loaded.train.images.data_ptr()
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    (mapped,) = (path for span, *_, path in ranges if in_span(address, span))
    assert mapped.startswith(str(tmp_path))
    assert mapped.endswith("images.npy")


def in_span(address: int, span: str) -> bool:
    low, high = (int(end, 16) for end in span.split("-"))
    return low <= address < high


def test_writing_to_a_tensor_reaches_no_one_else(tmp_path: Path) -> None:
    first = load_data(EvaluationConfig(), cache_dir=tmp_path)
    pixels = first.train.images.clone()
    files = sorted((tmp_path / "tensors").rglob("*.npy"))
    contents = [file.read_bytes() for file in files]
    first.train.images.fill_(7)
    first.train.labels.fill_(7)
    assert [file.read_bytes() for file in files] == contents
    second = load_data(EvaluationConfig(), cache_dir=tmp_path)
    assert torch.equal(second.train.images, pixels)
    assert len(second.train.labels.unique()) == 10


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def zero_the_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    file.write_bytes(content)


def spoil_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"descr", b"eval("))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "images cut short": ("images.npy", cut_short),
    "images zeroed": ("images.npy", zero_the_middle),
    "images' header": ("images.npy", spoil_the_header),
    "images empty": ("images.npy", lambda file: file.write_bytes(b"")),
    "images gone": ("images.npy", Path.unlink),
    "labels zeroed": ("labels.npy", zero_the_middle),
    "labels gone": ("labels.npy", Path.unlink),
    "record gone": ("record.json", Path.unlink),
    "record empty": ("record.json", lambda file: file.write_text("")),
    "record not JSON": ("record.json", lambda file: file.write_bytes(b"\xff\xfe{")),
    "record a list": ("record.json", lambda file: file.write_text("[]")),
    "record without checks": ("record.json", lambda file: file.write_text('{"digest": "0"}')),
    "all gone": (".", shutil.rmtree),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(damage: str, tmp_path: Path) -> None:
    before = load_data(EvaluationConfig(), cache_dir=tmp_path)
    images, labels = (tensor.clone() for tensor in whole(before))
    (folder,) = (path for path in (tmp_path / "tensors").iterdir() if path.is_dir())
    name, inflict = DAMAGE[damage]
    # On a copy put in place, as the damage of a file that is mapped would reach the tensors in memory.
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    inflict(copy / name)
    shutil.rmtree(folder)
    if copy.exists():
        copy.rename(folder)

    after = load_data(EvaluationConfig(), cache_dir=tmp_path)
    assert after.fingerprint == before.fingerprint
    assert torch.equal(whole(after).images, images)
    assert torch.equal(whole(after).labels, labels)
    assert store.open_stored(folder) is not None


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    before = load_data(EvaluationConfig(), cache_dir=tmp_path)
    (folder,) = (path for path in (tmp_path / "tensors").iterdir() if path.is_dir())
    left = folder.rename(folder.with_name(f".{folder.name}.0123abcd.unfinished"))
    assert same(load_data(EvaluationConfig(), cache_dir=tmp_path), before)
    assert not left.exists()


def test_many_at_once_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = formats.decode

    def counted(name: str, files: list[Path]) -> formats.Pixels:
        decoded.append(name)
        time.sleep(0.2)
        return decode(name, files)

    monkeypatch.setattr(store, "decode", counted)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: load_data(EvaluationConfig(), cache_dir=tmp_path), range(8)))
    assert decoded == ["digits"]
    assert all(same(loaded[0], other) for other in loaded)


def test_large_files_are_sampled_all_over(tmp_path: Path) -> None:
    """A change as long as the gap between two samples is seen wherever it lies."""
    (tmp_path / "labels.npy").write_bytes(b"")
    content = np.random.default_rng(0).bytes(4 << 20)
    (tmp_path / "images.npy").write_bytes(content)
    before = store.measure(tmp_path)
    gap = len(content) // 63
    for start in range(0, len(content) - gap, 50_000):
        changed = bytearray(content)
        changed[start : start + gap] = bytes(gap)
        (tmp_path / "images.npy").write_bytes(changed)
        assert store.measure(tmp_path) != before, start


def test_a_cache_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"cannot use the cache in '.*/cache': .*; choose another with --storage"):
        load_data(EvaluationConfig(), cache_dir=tmp_path / "cache")


# Published files


def test_official_test_images_keep_their_order(fashion: Path, tmp_path: Path) -> None:
    loaded = load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)
    content = idx_contents()
    published = np.frombuffer(content["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(20, 1, 28, 28)
    assert np.array_equal(loaded.test.images.numpy(), published.astype(np.float32) / np.float32(255))
    assert loaded.test.labels.tolist() == [*range(10), *range(10)]
    assert len(loaded.train.labels) == 30
    assert torch.bincount(loaded.validation.labels).tolist() == [1] * 10


def test_pixels_and_labels_stay_together(fashion: Path, tmp_path: Path) -> None:
    images, labels = whole(load_data(FASHION, data_dir=fashion, cache_dir=tmp_path))
    content = idx_contents()
    published = [
        np.concatenate([np.frombuffer(content[f"{part}-{kind}"], np.uint8, offset=skip) for part in ("train", "t10k")])
        for kind, skip in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
    ]
    pixels = (images * 255).round().to(torch.uint8).numpy()
    assert multiset(pixels, labels.numpy()) == multiset(published[0].reshape(60, 1, 28, 28), published[1])


def test_gzipped_files_are_read_as_they_are(fashion: Path, tmp_path: Path) -> None:
    plain = load_data(FASHION, data_dir=fashion, cache_dir=tmp_path / "a")
    for file in list((fashion / RAW).iterdir()):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes(), compresslevel=1))
        file.unlink()
    assert same(load_data(FASHION, data_dir=fashion, cache_dir=tmp_path / "b"), plain)


def test_files_may_have_a_dot_in_their_names(fashion: Path, tmp_path: Path) -> None:
    plain = load_data(FASHION, data_dir=fashion, cache_dir=tmp_path / "a")
    for file in list((fashion / RAW).iterdir()):
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert same(load_data(FASHION, data_dir=fashion, cache_dir=tmp_path / "b"), plain)


def test_variable_names_the_folder(fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTSWEEP_DATA_DIR", str(fashion))
    load_data(FASHION, cache_dir=tmp_path)


def test_argument_comes_before_variable(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    monkeypatch.setenv("OTSWEEP_DATA_DIR", str(fashion))
    with pytest.raises(InputError, match="not on this machine"):
        load_data(FASHION, data_dir=tmp_path / "elsewhere", cache_dir=tmp_path)


def test_data_folder_is_only_read(fashion: Path, tmp_path: Path) -> None:
    before = sorted(fashion.rglob("*"))
    load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)
    assert sorted(fashion.rglob("*")) == before


def test_a_changed_file_is_read_again(fashion: Path, tmp_path: Path) -> None:
    before = load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)
    file = fashion / RAW / "t10k-labels-idx1-ubyte"
    file.write_bytes(idx((np.arange(20, dtype=np.uint8) + 1) % 10))
    after = load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)
    assert after.test.labels[0] == 1
    assert after.fingerprint != before.fingerprint


# What is said of wrong files

ADVICE = "Put the official file in its place, or remove it to have it downloaded"
TRAIN_IMAGES, TEST_IMAGES = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
TRAIN_LABELS, TEST_LABELS = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        pytest.param(
            TRAIN_IMAGES,
            lambda c: c[:-1],
            "it holds 31,359 of the 31,360 values that its header promises",
            id="truncated",
        ),
        pytest.param(
            TRAIN_IMAGES,
            lambda c: c + b"\0\0",
            "it holds more than the 31,360 values that its header promises",
            id="too long",
        ),
        pytest.param(TEST_LABELS, lambda c: c[:6], "it ends inside its header, after 6 bytes", id="cut in the header"),
        pytest.param(
            TEST_LABELS,
            lambda c: b"",
            "it begins with nothing, not with 00000801 as an IDX file of its kind",
            id="empty",
        ),
        pytest.param(
            TRAIN_LABELS,
            lambda c: b"<html>" + c[6:],
            "it begins with 3c68746d, not with 00000801 as an IDX file of its kind",
            id="a web page",
        ),
        pytest.param(
            TRAIN_IMAGES,
            lambda c: idx_contents()[TRAIN_LABELS],
            "it begins with 00000801, not with 00000803 as an IDX file of its kind",
            id="labels for images",
        ),
        pytest.param(
            TRAIN_IMAGES,
            lambda c: idx_contents()[TEST_IMAGES],
            "its header promises 20x28x28 values, the official file has 40x28x28",
            id="test for training",
        ),
        pytest.param(
            TRAIN_LABELS,
            lambda c: c[:-1] + b"\x0b",
            "it holds the label 11, and there are 10 classes, from 0",
            id="label out of range",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(
    name: str, change: Callable[[bytes], bytes], reason: str, fashion: Path, tmp_path: Path
) -> None:
    file = fashion / RAW / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError) as raised:
        load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)
    assert str(raised.value) == f"{str(file)!r} is damaged or not the official file: {reason}. {ADVICE}"


def test_a_wrong_file_is_found_behind_a_good_cache(fashion: Path, tmp_path: Path) -> None:
    load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)
    cut_short(fashion / RAW / TRAIN_IMAGES)
    with pytest.raises(InputError, match="30,360 of the 31,360 values"):
        load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 500])
def test_a_truncated_gzip_file_is_refused(keep: int, fashion: Path, tmp_path: Path) -> None:
    plain = fashion / RAW / TRAIN_IMAGES
    file = plain.with_name(plain.name + ".gz")
    file.write_bytes(gzip.compress(plain.read_bytes())[:keep])
    plain.unlink()
    with pytest.raises(InputError, match=re.escape(f"{str(file)!r} is damaged or not the official file: it ")):
        load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)


def test_a_class_without_images_is_refused(fashion: Path, tmp_path: Path) -> None:
    for name in (TRAIN_LABELS, TEST_LABELS):
        (fashion / RAW / name).write_bytes(idx(np.zeros(SMALL_IDX[name], dtype=np.uint8)))
    with pytest.raises(InputError, match=r"fashion_mnist: the labels are \[0\], not all of 0 to 9"):
        load_data(FASHION, data_dir=fashion, cache_dir=tmp_path)


@given(content=st.binary(max_size=64))
def test_no_bytes_raise_anything_else(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_as_labels(tmp_path_factory, content)


@given(position=st.integers(0, 27), value=st.integers(0, 255), length=st.integers(0, 28))
def test_no_change_to_a_good_file_raises_anything_else(
    position: int, value: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(idx((np.arange(20) % 10).astype(np.uint8)))
    content[position] = value
    read_as_labels(tmp_path_factory, bytes(content[:length]))


def read_as_labels(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Either 20 labels below 10, or an `InputError`; packed or not."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalogue.IDX_FILES, TEST_LABELS, (20,))
        for name, packed in ((TEST_LABELS, content), (TEST_LABELS + ".gz", gzip.compress(content))):
            (folder / name).write_bytes(packed)
            with contextlib.suppress(InputError):
                labels = formats.read_idx(folder / name, "fashion_mnist")
                assert labels.shape == (20,)
                assert labels.max() < 10
        (folder / f"{TEST_LABELS}.gz").write_bytes(content)
        with pytest.raises(InputError, match=TEST_LABELS):
            formats.read_idx(folder / f"{TEST_LABELS}.gz", "fashion_mnist")


# Missing files and downloads


def test_missing_files_are_told_with_folders_and_remedy(tmp_path: Path, offline: None, capsys) -> None:
    (tmp_path / "given" / RAW).mkdir(parents=True)
    for name in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES):
        (tmp_path / "given" / RAW / name).write_bytes(b"")
    with pytest.raises(InputError) as raised:
        load_data(FASHION, data_dir=tmp_path / "given", cache_dir=tmp_path)
    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz"
    assert str(raised.value) == (
        "FashionMNIST is not on this machine and could not be downloaded.\n"
        f"  Looked in: '{tmp_path}/given' (lacks FashionMNIST/raw/t10k-labels-idx1-ubyte); "
        f"'{tmp_path}/datasets' (no such folder).\n"
        f"  Download:  {url}: Name or service not known.\n"
        "  To go on:  put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte into <folder>/FashionMNIST/raw and give --data-dir <folder> or set OTSWEEP_DATA_DIR; "
        "or connect this machine to the internet; or choose the dataset 'digits', which needs no download."
    )
    assert capsys.readouterr().err == f"downloading {url}\n"


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        pytest.param(lambda folder: None, "(no such folder)", id="no folder"),
        pytest.param(lambda folder: folder.mkdir(), "(holds no MNIST/raw)", id="empty folder"),
        pytest.param(lambda folder: folder.write_text(""), "(no such folder)", id="a file"),
        pytest.param(
            lambda folder: (folder / "MNIST" / "raw" / TRAIN_IMAGES).mkdir(parents=True),
            "(holds no MNIST/raw)",
            id="folders for files",
        ),
    ],
)
def test_where_was_looked_is_told(prepare: Callable[[Path], object], told: str, tmp_path: Path, offline: None) -> None:
    prepare(tmp_path / "given")
    with pytest.raises(InputError, match=re.escape(f"Looked in: '{tmp_path}/given' {told};")):
        load_data(EvaluationConfig(dataset="mnist"), data_dir=tmp_path / "given", cache_dir=tmp_path / "cache")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given_up = threading.Event()
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: given_up.wait(100))
    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.1)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz: no connection within 0 s"):
        load_data(CIFAR, cache_dir=tmp_path)
    assert time.perf_counter() - start < 60
    given_up.set()


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path on this machine; counts what is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.missing_bytes = 0
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.contents.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.missing_bytes))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(small: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror of the small Fashion-MNIST, as the only one that is known."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        packed = {name: gzip.compress(content, mtime=0) for name, content in idx_contents().items()}
        server.contents = {f"/{name}.gz": content for name, content in packed.items()}
        listed = [
            downloads.Archive(f"{RAW}/{name}.gz", hashlib.md5(content).hexdigest(), [f"{server.url}/{name}.gz"])
            for name, content in packed.items()
        ]
        monkeypatch.setattr(downloads, "archives", lambda name: listed)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_is_missing_is_downloaded_once(server: Server, fashion: Path, tmp_path: Path) -> None:
    first = load_data(FASHION, cache_dir=tmp_path)
    assert server.asked == [f"/{name}.gz" for name in SMALL_IDX]
    again = load_data(FASHION, cache_dir=tmp_path)
    assert len(server.asked) == 4
    assert same(first, again)
    assert same(first, load_data(FASHION, data_dir=fashion, cache_dir=tmp_path))
    kept = {path.name for path in (tmp_path / "datasets" / RAW).iterdir()}
    assert kept == {f"{name}.gz" for name in SMALL_IDX}


def test_many_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: load_data(FASHION, cache_dir=tmp_path), range(4)))
    assert len(server.asked) == 4


def test_the_next_mirror_is_tried(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = [
        archive._replace(urls=[f"{server.url}/gone/{index}", *archive.urls])
        for index, archive in enumerate(downloads.archives("fashion_mnist"))
    ]
    monkeypatch.setattr(downloads, "archives", lambda name: archives)
    load_data(FASHION, cache_dir=tmp_path)
    assert len(server.asked) == 8


def refuse_page(server: Server) -> None:
    server.contents[f"/{TRAIN_IMAGES}.gz"] = b"<html>Log in to this network</html>"


def refuse_short(server: Server) -> None:
    server.missing_bytes = 10


def refuse_absent(server: Server) -> None:
    server.contents.clear()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(refuse_page, r"sent something else \(md5 [0-9a-f]{32}, not [0-9a-f]{32}\)", id="a login page"),
        pytest.param(refuse_short, r"sent [\d,]+ of [\d,]+ bytes", id="a connection cut"),
        pytest.param(refuse_absent, "Not Found", id="not there"),
    ],
)
def test_a_failed_download_leaves_nothing(
    spoil: Callable[[Server], None], reason: str, server: Server, tmp_path: Path
) -> None:
    spoil(server)
    with pytest.raises(InputError, match=rf"Download:  {re.escape(server.url)}/{TRAIN_IMAGES}.gz: {reason}\."):
        load_data(FASHION, cache_dir=tmp_path)
    assert [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()] == []


def test_a_download_says_how_far_it_is(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    load_data(FASHION, cache_dir=tmp_path)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(rf"downloading {server.url}/{TRAIN_IMAGES}\.gz: 0 MB of 0\n", said.err)


def test_a_download_that_never_ends_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "DOWNLOAD_SECONDS", -1.0)
    with pytest.raises(InputError, match="not done after"):
        load_data(FASHION, cache_dir=tmp_path)


def test_archives_are_those_of_torchvision() -> None:
    for name in catalogue.PUBLISHED_FILES:
        for archive in downloads.archives(name):
            assert re.fullmatch("[0-9a-f]{32}", archive.md5)
            assert all(url.startswith("http") and url.endswith(archive.path.split("/")[-1]) for url in archive.urls)
    assert [archive.path for archive in downloads.archives("mnist")] == [
        f"MNIST/raw/{name}.gz" for name in catalogue.IDX_FILES
    ]
    assert [archive.path for archive in downloads.archives("cifar10")] == [catalogue.CIFAR_ARCHIVE]


# CIFAR-10: pickles


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with six batches of ten images; pixel values tell batch and image."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    checksums = []
    for batch, name in enumerate(catalogue.CIFAR_FILES):
        pixels = np.full((10, 3072), 10 * batch, dtype=np.uint8) + np.arange(10, dtype=np.uint8)[:, None]
        pixels[:, :1024] += 100  # the red plane comes first
        content = pickle.dumps({"data": pixels, "labels": list(range(10))}, protocol=2)
        (folder / name).write_bytes(content)
        checksums.append([name, hashlib.md5(content).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", checksums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", checksums[5:])
    monkeypatch.setitem(catalogue.SIZES, "cifar10", Sizes(40, 10, 10))
    return folder.parent


def test_cifar_is_read_plane_by_plane(cifar: Path, tmp_path: Path) -> None:
    loaded = load_data(CIFAR, data_dir=cifar, cache_dir=tmp_path)
    assert loaded.train.images.shape == (40, 3, 32, 32)
    expected = torch.arange(50, 60) / 255
    torch.testing.assert_close(loaded.test.images[:, 1:].mean(dim=(1, 2, 3)), expected)
    torch.testing.assert_close(loaded.test.images[:, 0].mean(dim=(1, 2)), expected + 100 / 255)
    assert loaded.test.labels.tolist() == list(range(10))
    images, labels = whole(loaded)
    assert torch.equal((images[:, 1, 0, 0] * 255).round().to(torch.int64) % 10, labels)


def test_cifar_is_read_out_of_its_archive(cifar: Path, tmp_path: Path) -> None:
    plain = load_data(CIFAR, data_dir=cifar, cache_dir=tmp_path / "a")
    with tarfile.open(cifar / catalogue.CIFAR_ARCHIVE, "w:gz") as archive:
        archive.add(cifar / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(cifar / "cifar-10-batches-py")
    assert same(load_data(CIFAR, data_dir=cifar, cache_dir=tmp_path / "b"), plain)


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "archive"])
def test_a_pickle_of_a_stranger_is_never_opened(packed: bool, cifar: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    batch = cifar / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Trap(sprung), "labels": []}))
    if packed:
        with tarfile.open(cifar / catalogue.CIFAR_ARCHIVE, "w:gz") as archive:
            archive.add(cifar / "cifar-10-batches-py", "cifar-10-batches-py")
        shutil.rmtree(cifar / "cifar-10-batches-py")
    with pytest.raises(InputError, match=r"damaged or not the official file: its md5 is [0-9a-f]{32}, the official"):
        load_data(CIFAR, data_dir=cifar, cache_dir=tmp_path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", tar_of(other=b""), tar_of(other=bytes(5000))[:60]], ids=range(4)
)
def test_a_broken_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / catalogue.CIFAR_ARCHIVE).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{catalogue.CIFAR_ARCHIVE}' is damaged or not the official file: it cannot be"
    ):
        load_data(CIFAR, data_dir=tmp_path, cache_dir=tmp_path / "cache")


# The real MNIST


@pytest.fixture(scope="session")
def mnist(data_dir: Path, cache_dir: Path) -> Data:
    return load_data(EvaluationConfig(dataset="mnist"), data_dir=data_dir, cache_dir=cache_dir)


@pytest.mark.mnist
def test_mnist_equals_torchvisions(mnist: Data, data_dir: Path) -> None:
    from torchvision.datasets import MNIST

    official = [MNIST(str(data_dir), train=train) for train in (True, False)]
    assert torch.equal(mnist.test.images[:, 0], official[1].data / 255)
    assert torch.equal(mnist.test.labels, official[1].targets)
    images = (torch.cat([mnist.train.images, mnist.validation.images]) * 255).round().to(torch.uint8)
    labels = torch.cat([mnist.train.labels, mnist.validation.labels])
    assert multiset(images[:, 0].numpy(), labels.numpy()) == multiset(
        official[0].data.numpy(), official[0].targets.numpy()
    )


@pytest.mark.mnist
def test_mnist_opens_at_once(mnist: Data, data_dir: Path, cache_dir: Path) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        load_data(EvaluationConfig(dataset="mnist"), data_dir=data_dir, cache_dir=cache_dir)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.05


@pytest.mark.mnist
def test_a_flipped_pixel_of_mnist_is_found(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "MNIST", tmp_path / "MNIST")
    file = tmp_path / "MNIST" / "raw" / TEST_IMAGES
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[123_456] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"its md5 is [0-9a-f]{32}, the official file's 2646ac647ad5339dbf082846283269ea"
    ):
        load_data(EvaluationConfig(dataset="mnist"), data_dir=tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.mnist
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("there", ["FashionMNIST", "KMNIST"])
def test_mnists_files_in_anothers_folder_are_refused_by_name(
    there: str, packed: bool, data_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / there / "raw"
    dataset = {"FashionMNIST": "fashion_mnist", "KMNIST": "kmnist"}[there]
    shutil.copytree(data_dir / "MNIST" / "raw", folder)
    if packed:
        (folder / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress((folder / TRAIN_IMAGES).read_bytes(), 1))
        (folder / TRAIN_IMAGES).unlink()
    with pytest.raises(InputError, match=f"{TRAIN_IMAGES}.* is damaged or not .*; it is {TRAIN_IMAGES} of mnist"):
        load_data(EvaluationConfig(dataset=dataset), data_dir=tmp_path, cache_dir=tmp_path / "cache")

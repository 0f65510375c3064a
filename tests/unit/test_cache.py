from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from trainer.errors import InputError
from trainer.files.cache import Cache, digest


def made(value: float, calls: list[float]) -> dict[str, torch.Tensor]:
    calls.append(value)
    return {"x": torch.full((4,), value)}


@pytest.mark.parametrize("damage", ["flipped", "cut", "no_checksum", "junk"])
def test_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, calls = Cache(tmp_path), []
    cache.get("stage", {"a": 1}, lambda: made(1.0, calls))
    path = tmp_path / f"stage-{digest('stage', {'a': 1})}.pt"
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "cut":
        path.write_bytes(content[:50])
    elif damage == "junk":
        path.write_bytes(b"\x80\x04.")
    else:
        path.with_suffix(".sha256").unlink()
    assert cache.get("stage", {"a": 1}, lambda: made(1.0, calls))["x"].tolist() == [1.0] * 4
    assert calls == [1.0, 1.0]


def test_other_parameters_are_kept_apart(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []
    assert cache.get("stage", {"a": 1}, lambda: made(1.0, calls))["x"][0] == 1
    assert cache.get("stage", {"a": 2}, lambda: made(2.0, calls))["x"][0] == 2
    assert cache.get("other", {"a": 1}, lambda: made(3.0, calls))["x"][0] == 3
    assert calls == [1.0, 2.0, 3.0]


def test_two_at_once_compute_once(tmp_path: Path) -> None:
    calls: list[float] = []
    entered, leave = threading.Event(), threading.Event()

    def slow() -> dict[str, torch.Tensor]:
        entered.set()
        assert leave.wait(20)
        return made(1.0, calls)

    first = threading.Thread(target=lambda: Cache(tmp_path).get("stage", {}, slow))
    second = threading.Thread(target=lambda: Cache(tmp_path).get("stage", {}, lambda: made(2.0, calls)))
    first.start()
    assert entered.wait(20)
    second.start()
    leave.set()
    first.join(20)
    second.join(20)
    assert calls == [1.0]


def test_a_failed_computation_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> dict[str, torch.Tensor]:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        Cache(tmp_path).get("stage", {}, fail)
    assert Cache(tmp_path).get("stage", {}, lambda: {"x": torch.ones(1)})["x"].tolist() == [1.0]


def test_unwritable_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot keep prepared data in"):
        Cache(tmp_path / "file").get("stage", {}, lambda: {"x": torch.ones(1)})

"""Checkpoints: what is read back is what was written, or the one before it."""

from __future__ import annotations

import os

import pytest
import torch

from trainer.files.checkpoints import KEPT, FolderStore, load_checkpoint, save_checkpoint
from trainer.files.sealed import seal, unseal


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "trial")


def test_an_empty_store_has_none(store):
    assert load_checkpoint(store) == (None, [])


def test_round_trip_keeps_the_newest(store):
    for epoch in range(1, 5):
        save_checkpoint(store, epoch, {"weights": torch.full((3,), epoch / 3), "epoch": epoch})
    state, warnings = load_checkpoint(store)
    assert state is not None
    assert state["epoch"] == 4
    assert torch.equal(state["weights"], torch.full((3,), 4 / 3))
    assert warnings == []
    assert len(store.names()) == KEPT


def damage_by_truncation(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_by_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_by_emptying(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_one_bit, damage_by_emptying])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(store, damage):
    save_checkpoint(store, 1, {"epoch": 1})
    save_checkpoint(store, 2, {"epoch": 2})
    damage(store.folder / "checkpoint-000002.pt")
    state, warnings = load_checkpoint(store)
    assert state == {"epoch": 1}
    assert len(warnings) == 1
    assert "checkpoint-000002.pt is damaged" in warnings[0]


def test_a_write_that_dies_half_way_is_never_seen(store):
    save_checkpoint(store, 1, {"epoch": 1})
    (store.folder / f".checkpoint-000002.pt.{os.getpid()}.unfinished").write_bytes(b"half")
    assert load_checkpoint(store) == ({"epoch": 1}, [])


def test_code_in_a_checkpoint_is_not_run(store, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"epoch": Evil()}, tmp_path / "evil.pt")
    store.write("checkpoint-000001.pt", seal((tmp_path / "evil.pt").read_bytes()))
    state, warnings = load_checkpoint(store)
    assert state is None
    assert "damaged" in warnings[0]
    assert not (tmp_path / "owned").exists()


def test_a_seal_that_does_not_fit_is_refused():
    assert unseal(seal(b"abc")) == b"abc"
    with pytest.raises(ValueError, match="checksum"):
        unseal(seal(b"abc")[:-1] + b"d")

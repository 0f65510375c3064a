"""Files that appear whole, locks that die with their process, sealed content."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer.errors import InputError
from trainer.files.atomic import make_whole_folder, open_anew, open_whole, write_whole
from trainer.files.locks import locked, take_lock
from trainer.files.sealed import SEAL, fits_checksum, seal_json, unseal_json, write_with_checksum


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------------- atomic writes


def test_a_file_has_its_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_whole(path, b"old")
    with open_whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with open_whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_file_opened_anew_is_empty_and_its_reader_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader, open_anew(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"new"
        assert reader.read() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        (tmp_path / f".folder.{content}.unfinished").mkdir()  # of a process that was killed
        with make_whole_folder(tmp_path / "folder", replace=True) as unfinished:
            (unfinished / content).touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


def test_a_folder_that_must_not_give_way_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError, match="not empty"), make_whole_folder(tmp_path / "folder", replace=False) as unfinished:
        (unfinished / "new").touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


# ------------------------------------------------------------------------------------------------------------- locks

HOLDER = """
import sys, time
from pathlib import Path
from trainer.files import take_lock
lock = take_lock(Path(sys.argv[1]), "it is taken")
print("taken", flush=True)
time.sleep(600)
"""


def test_a_lock_names_its_holder_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            for _ in range(2):  # asking leaves the holder's name where it is
                with pytest.raises(InputError, match=rf"^it is taken by pid {holder.pid} on host \S+$"):
                    take_lock(path, "it is taken")
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    lock = take_lock(path, "it is taken")
    assert re.match(rf"pid {os.getpid()} on host \S+$", path.read_text())
    lock.release()
    lock.release()
    take_lock(path, "it is taken").release()


def test_a_lock_may_be_released_by_another_thread(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "lock", "it is taken")
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    take_lock(tmp_path / "lock", "it is taken").release()


def test_one_thread_at_a_time_is_inside_a_lock(tmp_path: Path) -> None:
    inside, most = 0, []

    def work() -> None:
        nonlocal inside
        with locked(tmp_path / "folder" / "lock"):
            inside += 1
            most.append(inside)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


# ---------------------------------------------------------------------------------------------------- sealed content


def test_sealed_json_is_read_back_and_damage_is_refused() -> None:
    sealed = seal_json({"accuracy": 0.9, "name": "a"})
    assert unseal_json(sealed) == {"accuracy": 0.9, "name": "a"}
    for damaged in (sealed.replace(b"0.9", b"0.8"), sealed.replace(SEAL.encode(), b"sha255"), sealed[:-3], b"[1]"):
        with pytest.raises(ValueError, match=r"."):
            unseal_json(damaged)


def test_sealed_json_of_earlier_versions_is_read() -> None:
    assert unseal_json(EARLIER) == {"epoch": 3, "judged_by": {"steps": 20}}


EARLIER = b"""{
 "epoch": 3,
 "judged_by": {
  "steps": 20
 },
 "sha256": "d4d07c2122d43b7957629de8021bcb2b95f6982a501ac147363d7d6dc00d7170"
}"""


def test_a_checksum_beside_shows_damage_and_absence(tmp_path: Path) -> None:
    path = tmp_path / "tensors.pt"
    assert not fits_checksum(path)
    write_with_checksum(path, b"content")
    assert names(tmp_path) == ["tensors.pt", "tensors.sha256"]
    assert fits_checksum(path)
    path.write_bytes(b"Content")
    assert not fits_checksum(path)

"""The nodes that a sweep runs on: whether each of them sees its storage, and whether one of them was lost."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.plan import UrlStore, is_url
from trainer.errors import InputError

_PROBE = ".probe-"
_LOOK_SECONDS = 60.0
"""A network file system that answers slower than this is as good as none."""

NODE_DIED = "its node has died"
"""In Ray's message about an actor that was lost together with its node."""


@ray.remote(num_cpus=0, max_retries=0)
def _look(folder: str, secret: str, node: str) -> str:
    """On a node: read what the driver wrote, and write something back; what went wrong, or nothing."""
    try:
        store = _store_at(folder)
        if store.read(f"{_PROBE}{secret}").decode() != secret:
            return "holds another file than the driver wrote"
        store.write(f"{_PROBE}{secret}-{node}", node.encode())
    except InputError as error:
        return f"can't be used there: {error}"
    except FileNotFoundError:
        return "is not the same folder there"
    except OSError as error:
        return f"can't be used there: {error.strerror}"
    return ""


def check_storage(storage: str, progress: Callable[[str, int, int], None]) -> None:
    """Every node reads from the sweeps' folder what this process wrote, and writes what this process reads.

    Args:
        progress: told the stage, how many nodes have answered, and how many there are.

    Raises:
        InputError: naming the first node on which it fails.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    secret, store = secrets.token_hex(8), _store_at(storage)
    try:
        store.write(f"{_PROBE}{secret}", secret.encode())
        asked = {node["NodeID"]: _look_from(node["NodeID"], storage, secret) for node in nodes}
        for done, node in enumerate(nodes):
            progress("storage, seen from every node", done, len(nodes))
            trouble = _answer(asked[node["NodeID"]])
            if not trouble and f"{_PROBE}{secret}-{node['NodeID']}" not in store.names():
                trouble = "takes files there that this machine does not see"
            if trouble:
                raise InputError(
                    f"--storage {storage}: {trouble} (node {_name_of(node)}); give a folder that every node mounts"
                )
    finally:
        for name in store.names():
            if name.startswith(f"{_PROBE}{secret}"):
                store.delete(name)


def _store_at(storage: str) -> UrlStore | _PlainFolder:
    return UrlStore(storage) if is_url(storage) else _PlainFolder(storage)


class _PlainFolder:
    """As `trainer.checkpoint.FolderStore`, of which the driver would pay with the time to load torch."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


def _look_from(node_id: str, storage: str, secret: str) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _look.options(scheduling_strategy=there).remote(storage, secret, node_id)


def _answer(asked: ray.ObjectRef) -> str:
    """What a node said; one that left meanwhile needs no storage."""
    try:
        return ray.get(asked, timeout=_LOOK_SECONDS)
    except GetTimeoutError:
        return f"does not answer within {_LOOK_SECONDS:.0f} s"
    except RayError as error:
        return f"can't be asked for there: {str(error).splitlines()[0]}"


def _name_of(node: dict[str, object]) -> str:
    """As people know it: its address, and of several on one machine the beginning of its id."""
    return f"{node['NodeManagerAddress']}, {str(node['NodeID'])[:8]}"


def lost_with_its_node(error_file: str | None) -> bool:
    """Whether the last failure that Ray Tune wrote into a trial's file was that of a node: killed or taken back."""
    return NODE_DIED in last_failure(error_file)


def last_failure(error_file: str | None) -> str:
    """The last failure that Ray Tune wrote into a trial's file; empty where there is none."""
    if not error_file or not Path(error_file).exists():
        return ""
    return Path(error_file).read_text(errors="replace").rpartition("Failure #")[2]

"""The check that every node of the cluster sees the storage of the sweeps."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.plan import UrlStore, is_url
from sweep.ray_internals import first_line
from trainer.errors import InputError

_PROBE = ".probe-"
_ANSWER_SECONDS = 60.0
"""Longest time for a node's answer; a network file system that is slower is as good as none."""


def check_storage(storage: str, progress: Callable[[str, int, int], None]) -> None:
    """Check that every node reads from the storage what this process wrote, and writes what this process reads.

    Args:
        progress: called with the stage, how many nodes have answered, and how many there are.

    Raises:
        InputError: naming the first node on which it fails.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    secret, store = secrets.token_hex(8), _store_at(storage)
    try:
        store.write(f"{_PROBE}{secret}", secret.encode())
        answers = {node["NodeID"]: _probe_from(node["NodeID"], storage, secret) for node in nodes}
        for done, node in enumerate(nodes):
            progress("storage, seen from every node", done, len(nodes))
            problem = _problem_in(answers[node["NodeID"]])
            if not problem and f"{_PROBE}{secret}-{node['NodeID']}" not in store.names():
                problem = "takes files there that this machine does not see"
            if problem:
                raise InputError(
                    f"--storage {storage}: {problem} (node {_name_of(node)}); give a folder that every node mounts"
                )
    finally:
        for name in store.names():
            if name.startswith(f"{_PROBE}{secret}"):
                store.delete(name)


@ray.remote(num_cpus=0, max_retries=0)
def _probe(storage: str, secret: str, node: str) -> str:
    """Read on a node what the driver wrote, and write something back; return what went wrong, or nothing."""
    try:
        store = _store_at(storage)
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


def _probe_from(node_id: str, storage: str, secret: str) -> ray.ObjectRef:
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _probe.options(scheduling_strategy=on_node).remote(storage, secret, node_id)


def _problem_in(answer: ray.ObjectRef) -> str:
    """Wait for a node's answer and return it."""
    try:
        return ray.get(answer, timeout=_ANSWER_SECONDS)
    except GetTimeoutError:
        return f"does not answer within {_ANSWER_SECONDS:.0f} s"
    except RayError as error:
        return f"can't be checked there: {first_line(error)}"


def _name_of(node: dict[str, object]) -> str:
    """Return a node's address and the begin of its id, since several nodes may share a machine."""
    return f"{node['NodeManagerAddress']}, {str(node['NodeID'])[:8]}"


def _store_at(storage: str) -> UrlStore | _PlainFolder:
    return UrlStore(storage) if is_url(storage) else _PlainFolder(storage)


class _PlainFolder:
    """A folder with the methods of `UrlStore`. Unlike `FolderStore` it never waits for storage that refuses."""

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

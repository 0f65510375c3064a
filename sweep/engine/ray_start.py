"""Ray for the length of a sweep: the cluster that this machine belongs to, or one of this process's own.

Whatever keeps Ray from starting, connecting or going on is told in one line: the user's input (exit status 2) as
`InputError`, the machine (exit status 1) as `RayFailed`.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from sweep.engine.cpus import usable_cpus
from sweep.engine.leftovers import PREFIX, end_stray_processes, remove_leftovers, write_owner
from sweep.engine.ray_watch import RayLost, RayWatch
from sweep.environment import inherited_imports
from sweep.ray_internals import (
    LOG_FILES,
    QUIET,
    answers,
    end_processes,
    first_line,
    is_slow_start,
    keep_keys_at_home,
    keep_signals,
    other_versions,
    processes,
    release_nothing_more,
    silence_ray,
    silent_stderr,
    start_only_what_is_needed,
    use_token,
)
from trainer.errors import InputError, OtsweepError

_STARTS = 4
"""Attempts to start Ray on a busy machine."""

_LONGEST_FOLDER = 41
"""Bytes of the path of Ray's folder: below it, sockets have 64 more, and the kernel takes 107."""

_ADDRESSES, _SMALL_STORE = 8 * 2**30, 200 * 2**20
"""Bytes of addresses that a worker reserves beside Ray's object store, and a store that is enough for a sweep: every
process maps all of it, and by default it is a third of the memory."""

_TOKEN_PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token"

_DATA_DIR = "OTSWEEP_DATA_DIR"


class RayFailed(OtsweepError):
    """Ray could not be started on this machine; the message says why."""


def cluster_address() -> str:
    """Return the address of the Ray cluster that a sweep joins, from `RAY_ADDRESS`; empty for a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


@contextlib.contextmanager
def ray_session(log: Callable[[str], None] = lambda message: None) -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS`, or start a Ray of this process's own that ends with the context.

    Inside another session nothing is started or ended: that one goes on.

    Args:
        log: called with a message for people where this process may not use the whole machine.

    Raises:
        InputError: if no cluster that fits answers at `RAY_ADDRESS`.
        RayFailed: if Ray can't start on this machine.
        RayLost: if Ray ended while the context was open.
    """
    if ray.is_initialized():
        with _telling_losses(_watches[-1] if _watches else None):
            yield
        return
    silence_ray()
    keep_signals()
    with contextlib.ExitStack() as ending:
        if address := cluster_address():
            _connect(address)
        else:
            ending.enter_context(_own_ray(log))
        keep_keys_at_home()
        watch = RayWatch(processes(), patient=bool(address))
        ending.callback(_end_ray, watch)
        _watches.append(watch)
        ending.callback(_watches.pop)
        with _telling_losses(watch), watch:
            yield


_watches: list[RayWatch] = []
"""The watch over the Ray of this process, while there is one."""


@contextlib.contextmanager
def _telling_losses(watch: RayWatch | None) -> Iterator[None]:
    """Raise `RayLost` for whatever comes of a Ray that has ended."""
    try:
        yield
    except KeyboardInterrupt:
        if watch and watch.lost:
            raise RayLost(watch.lost) from None
        raise
    except OtsweepError:
        raise
    except Exception:
        if watch and watch.look_now():
            raise RayLost(watch.lost) from None
        raise
    if watch and watch.lost:
        raise RayLost(watch.lost)


def _end_ray(watch: RayWatch) -> None:
    release_nothing_more()
    if watch.lost:
        end_processes()
    else:
        ray.shutdown(wait_for_processes=True)


# --------------------------------------------------------------------------------------------------- another's cluster


def _connect(address: str) -> None:
    """Connect to a cluster.

    Raises:
        InputError: quoting the address.
    """
    said = f"RAY_ADDRESS={address}"
    _check_form(address, said)
    # Ray would ask for two minutes.
    if ":" in address and not answers(address):
        raise InputError(f"{said}: no Ray cluster answers there")
    for with_token in (False, True):
        # Only where a token is asked for: with one, this process would refuse what nodes without send back.
        if with_token:
            use_token()
        try:
            with silent_stderr(), inherited_imports():
                ray.init(address=address, **QUIET)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about this address
            told = _explain_refusal(error)
            if with_token or "asks for a token" not in told:
                raise InputError(f"{said}: {told}") from None
            ray.shutdown()


def _check_form(address: str, said: str) -> None:
    """Refuse what is no address of a cluster's head."""
    right = "RAY_ADDRESS=HOST:6379 of its head, or RAY_ADDRESS=auto, on one of its nodes"
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"{said}: is the address of a dashboard; send the sweep there by `otsweep submit SPACE --address "
            f"{address}`, or give {right}"
        )
    if "://" in address:
        raise InputError(
            f"{said}: a sweep can't be run through a Ray client; give {right}, or send the sweep by "
            "`otsweep submit SPACE --address http://HOST:8265`"
        )
    if address != "auto" and not re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/]+):[1-9]\d{0,4}", address):
        raise InputError(f"{said}: must be {right}")


def _explain_refusal(error: Exception) -> str:
    """Return what keeps this process from a cluster, in one line."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    told = " ".join(map(str, causes))
    if versions := other_versions(told):
        there, here = versions
        return f"the cluster runs {there}, and here is {here}; install the same on both sides"
    if "InvalidAuthToken" in told or "authentication token" in told:
        return f"the cluster asks for a token, and refuses what was found, or nothing was; looked in {_TOKEN_PLACES}"
    return f"no Ray cluster answers there ({first_line(error)})"


# ------------------------------------------------------------------------------------------------------------ our own


@contextlib.contextmanager
def _own_ray(log: Callable[[str], None]) -> Iterator[None]:
    """Start a Ray of this process's own, in a folder and with a token that nobody else has; remove the folder at last.

    Raises:
        RayFailed: if no attempt succeeded.
    """
    cpus, options = usable_cpus(), _within_limits()
    if cpus.limit:
        log(cpus.describe())
    with _private_folder() as folder, _own_environment():
        start_only_what_is_needed()
        _start(folder, cpus.usable, **options)
        yield


def _start(folder: Path, cpus: int, **options: Any) -> None:
    """Start Ray. It gives itself 30 s; on a machine that needs more it is started again."""
    options |= {"num_cpus": cpus, "_temp_dir": str(folder), "include_dashboard": False, **QUIET}
    for attempt in range(_STARTS):
        try:
            with silent_stderr(), inherited_imports():
                ray.init(address="local", **options)
            return
        except Exception as error:  # noqa: BLE001 - Ray raises plain ones for whatever its processes died of
            slow = is_slow_start(error)
            if not slow or attempt + 1 == _STARTS:
                reason = _last_words(folder) or first_line(error)
                busy = f"this machine may be too busy; after {_STARTS} attempts " if slow else ""
                raise RayFailed(f"Ray did not start: {busy}{reason}") from None


def _within_limits() -> dict[str, Any]:
    """Set this shell's limit of addresses as high as it may be; return the options of a Ray that stays within it.

    Raises:
        RayFailed: if it is too low for any: Ray's processes would end one after the other, and this one wait for ever.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if limit == resource.RLIM_INFINITY:
        return {}
    if limit < _ADDRESSES:
        raise RayFailed(
            f"`ulimit -v` is {limit // 1024} kB, and Ray's processes reserve {_ADDRESSES // 1024} kB of addresses, "
            "far more than the memory that they take; lift it, as by `ulimit -v unlimited`"
        )
    return {"object_store_memory": _SMALL_STORE}


def _last_words(folder: Path) -> str:
    """Return what Ray's processes said last, of an error; empty if they said nothing."""
    for name in LOG_FILES:
        for path in sorted(folder.glob(f"session_2*/logs/{name}"), reverse=True):
            lines = path.read_text(errors="replace").splitlines()
            if told := [line.strip() for line in lines if re.search(r" [CF] \d+ \d+\]|rror|what\(\)", line)]:
                # Before this, Ray asks for a report of what it takes for a mistake of its own.
                return f"{path.stem}: {told[-1].rpartition('Check failed: ')[2][:200]}"
    return ""


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder that only this user can enter, with a path short enough for Ray's sockets; remove it at last.

    Raises:
        RayFailed: if no folder for temporary files can be used.
    """
    given = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    for place in dict.fromkeys([*filter(None, given), "/tmp", "/var/tmp", "/dev/shm"]):
        if len(os.fsencode(place)) + len(f"/{PREFIX}12345678/r") > _LONGEST_FOLDER:
            continue
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.path.abspath(place)))
            break
    else:
        tried = ", ".join(filter(None, [f"TMPDIR={given[0]}" if given[0] else "", "/tmp", "/var/tmp", "/dev/shm"]))
        raise RayFailed(f"Ray needs a folder for temporary files with a short path that can be written; tried {tried}")
    try:
        write_owner(folder)
        remove_leftovers(folder.parent)
        (inner := folder / "r").mkdir()  # Ray opens the folder that it is given to everybody
        yield inner
    finally:
        end_stray_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Set what Ray's processes inherit: a token that nobody else has, and absolute paths, since they run elsewhere."""
    before = dict(os.environ)
    if named := os.environ.get(_DATA_DIR):
        os.environ[_DATA_DIR] = str(Path(named).expanduser().absolute())
    use_token(secrets.token_hex(32))
    try:
        yield
    finally:
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", _DATA_DIR):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        use_token(None)

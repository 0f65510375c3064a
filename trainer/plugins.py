"""Functions of one's own that a knob names, `python:MODULE:FUNCTION`: found, loaded, and their source.

Such code runs because whoever started the command named it, there or in a plan or space that they run. Nothing else
imports it: not a model's file, not a ledger, not a finished sweep that is only looked at.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import InputError

_allowed: frozenset[str] | None = None
"""The values whose functions this process may import; None for whatever its own command names."""

_MOST_BYTES = 2**20
"""Limit of a module's source that is sent to other machines: more is rather data, or should be installed there."""

_KIND = "python"
"""Begin of a knob's value that names a function, before its first colon."""


def is_plugin(value: object) -> bool:
    """Return whether a knob's value names a function of one's own."""
    return isinstance(value, str) and value.startswith(f"{_KIND}:")


def load_plugin(knob: str, value: str) -> Callable[..., Any]:
    """Import the module that a knob's value names, and return the function in it.

    Args:
        knob: name of the knob, for errors.
        value: `python:MODULE:FUNCTION`. The module is installed, on PYTHONPATH or in the current folder.

    Raises:
        InputError: for a value of another form, a module that can't be imported, or one without such a function.
    """
    module, name = _names(knob, value)
    if _allowed is not None and value not in _allowed:
        raise InputError(f"{knob} = {value!r}: isn't imported, as the plan of what runs here does not name it")
    _look_in_current_folder()
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"{knob} = {value!r}: {module} can't be imported: {error}") from error
        raise InputError(f"{knob} = {value!r}: {_missing(error.name)}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{knob} = {value!r}: {module} can't be imported: {_in_one_line(error)}") from error
    if not callable(function):
        found = "has no such function" if function is None else f"has {name} = {function!r:.40}, must have a function"
        raise InputError(f"{knob} = {value!r}: {module} {found}")
    return function


def allow_plugins(values: Iterable[str]) -> None:
    """Let this process import these functions of one's own from now on, and no other that it may read of."""
    global _allowed
    _allowed = frozenset(values)


def call_plugin(knob: str, value: str, *arguments: Any, **options: Any) -> Any:
    """Return what the function that a knob's value names returns.

    Raises:
        InputError: as `load_plugin`, and in one line for whatever the function raises.
    """
    function = load_plugin(knob, value)
    try:
        return function(*arguments, **options)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{knob} = {value!r}: raised {_in_one_line(error)}") from error


def _in_one_line(error: BaseException) -> str:
    """Return an exception's class and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def plugin_sources(values: Iterable[str]) -> dict[str, Path]:
    """Return, by its name, the file or folder of each top module that values name and that is not installed.

    No module is imported. Installed ones are left to the machines that run them.

    Raises:
        InputError: for a module that is not there.
    """
    found = {}
    for value in values:
        top = _names("plug-in", value)[0].partition(".")[0]
        path = _find(repr(value), top)
        if path is not None and not {"site-packages", "dist-packages"} & set(path.parts):
            found[top] = path
    return found


class SentPlugin(NamedTuple):
    """The source of a top module, as it is sent to other processes and machines."""

    name: str
    place: str
    """The folder that holds it where it was sent from."""
    files: tuple[tuple[str, str], ...]
    """The paths of its files below that folder, each with its text."""


def send_plugins(values: Iterable[str]) -> tuple[SentPlugin, ...]:
    """Return the source of all modules that values name, but of those that are installed.

    Raises:
        InputError: for a module that is not there, is too large, or is no text.
    """
    return tuple(_sent(name, path) for name, path in sorted(plugin_sources(values).items()))


def _sent(name: str, path: Path) -> SentPlugin:
    try:
        files = tuple((str(file.relative_to(path.parent)), file.read_text("utf-8")) for file in _files(path))
    except (OSError, UnicodeError) as error:
        raise InputError(f"{str(path)!r} can't be sent to the workers: {error}") from None
    if (size := sum(len(text) for _, text in files)) > _MOST_BYTES:
        raise InputError(
            f"{str(path)!r} holds {size / 2**20:.1f} MiB of Python, too much to be sent to the workers: install it "
            "where they run"
        )
    return SentPlugin(name, str(path.parent), files)


def receive_plugins(sent: Iterable[SentPlugin]) -> None:
    """Let modules that another process sent be found here; nothing is imported yet.

    Where the sender's files can be read they are used in their place, so that a module finds what lies beside it.
    """
    for module in sent:
        place = Path(module.place)
        if not all(_holds(place / name, text) for name, text in module.files):
            place = Path(tempfile.mkdtemp(prefix=f"otsweep-{module.name}-"))
            atexit.register(shutil.rmtree, place, ignore_errors=True)
            for name, text in module.files:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text, "utf-8")
        if str(place) not in sys.path:
            sys.path.append(str(place))
    importlib.invalidate_caches()


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text("utf-8") == text
    except (OSError, UnicodeError):
        return False


def plugin_digest(knob: str, value: str) -> str:
    """Return a digest of the source of the top module that a knob's value names, which changes when the code does.

    Raises:
        InputError: as `plugin_sources`.
    """
    path = _find(f"{knob} = {value!r}", _names(knob, value)[0].partition(".")[0])
    digest = hashlib.sha256(value.encode())
    for file in _files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files(path: Path | None) -> Iterator[Path]:
    """Yield a module's file, or the files of a package but what editors and notebooks keep hidden in it."""
    if path is not None and path.is_dir():
        files = sorted(path.rglob("*.py"))
        yield from (file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts))
    elif path is not None:
        yield path


def _find(named: str, top: str) -> Path | None:
    """Return the file, or the folder, of a top module; None for one without (a built-in).

    Raises:
        InputError: if it is not there.
    """
    _look_in_current_folder()
    spec = None if top == "__main__" else importlib.util.find_spec(top)
    if spec is None:
        raise InputError(f"{named}: {_missing(top)}")
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.has_location and spec.origin else None


def _look_in_current_folder() -> None:
    """Let modules of the current folder be found, after all others."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def _missing(module: str) -> str:
    return (
        f"there is no module {module!r} on this machine: install it, put its folder on PYTHONPATH, or start the "
        "command in the folder that holds it"
    )


def _names(knob: str, value: str) -> tuple[str, str]:
    """Return the names of module and function.

    Raises:
        InputError: for a value of another form.
    """
    kind, *names = value.split(":")
    if kind != _KIND or len(names) != 2 or not all(part.isidentifier() for part in [*names[0].split("."), names[1]]):
        raise InputError(f"{knob} = {value!r}: must be {_KIND}:MODULE:FUNCTION, such as {_KIND}:my_module:load")
    return names[0], names[1]

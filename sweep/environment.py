"""The environment of a process of our own: what a calling program set for itself is kept out.

A notebook sets a backend for its pictures, a site its proxies, a shell the folders of other Python programs. Each such
setting is used where it is meant, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
"""The folder in which our packages lie."""
_KEPT_OUT = ("MPLBACKEND", "PYTHONWARNINGS")
"""Settings of the calling program's own pictures and warnings."""
_LOOPBACK = "127.0.0.1,localhost,::1"


def settle_environment() -> None:
    """Make this process, and those that it starts, independent of the calling program's settings."""
    if os.environ.get("PYTHONWARNINGS"):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
    for name in _KEPT_OUT:
        os.environ.pop(name, None)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # else it tells of a home where it can't keep its fonts
    _ask_loopback_directly()
    _put_theirs_last()


def _ask_loopback_directly() -> None:
    """Let no proxy stand between this machine and itself, whichever library asks."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if direct.strip() != "*" and any(name.lower().endswith("_proxy") for name in os.environ):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},{_LOOPBACK}".lstrip(",")


def _put_theirs_last() -> None:
    """Search the current folder and PYTHONPATH last, so that a file there takes no library's or package's place."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep) + ([] if sys.flags.safe_path else sys.path[:1])
    theirs = {os.path.abspath(folder) for folder in named} - {_ROOT}
    own = [folder for folder in sys.path if os.path.abspath(folder) not in theirs | {_ROOT}]
    library = [folder for folder in own if folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))]
    others = [folder for folder in own if folder not in library]
    sys.path[:] = [*library, _ROOT, *others, *(folder for folder in sys.path if os.path.abspath(folder) in theirs)]


def python_environment() -> dict[str, str]:
    """Return the variables with which another Python finds what this one finds, in this order, and nothing before."""
    folders = [folder for folder in sys.path if os.path.isabs(folder)]
    return {"PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def inherited_imports() -> Iterator[None]:
    """Have Ray's workers, if it is started or joined within this context, find our packages first.

    Ray has its workers search the folder that is current when a driver connects, before anything else.
    """
    settings = python_environment()
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with contextlib.chdir(_ROOT):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

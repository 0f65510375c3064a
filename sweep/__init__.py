"""Many trials: plan, search, schedule, record and show them.

From Python, or a notebook, the command's verbs are functions of the same names and options:

    import sweep

    done = sweep.run("digits", trials=8, epochs=3, progress=True)
    done.front                          # pandas; done.arrow("front") for Arrow, done.figure() for matplotlib
    sweep.open("digits-20261130-101500").trials

Nothing is imported before it is used, and nothing is printed unless `progress` asks for it.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.api import (
        Interrupted,
        Planned,
        Report,
        Running,
        Sweep,
        audit,
        compare,
        export,
        judge,
        plan,
        resume,
        run,
        start,
        study,
        trial,
    )
    from sweep.api import open_sweep as open
    from trainer.errors import InputError, OtsweepError, StorageFailed, TrialFailed


class _BesideThis:
    """Finds our other packages beside this one, whatever the current folder and PYTHONPATH hold."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        ours = name in ("search_spaces", "trainer")
        return PathFinder.find_spec(name, [str(Path(__file__).resolve().parents[1])]) if ours else None


sys.meta_path.insert(0, _BesideThis)

RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    # Ray's own snapshots are never read: the ledger is.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    # Seconds without its cluster's head after which Ray's library ends a process; `RayWatch` is there before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
}
"""Settings that Ray reads when it is imported, and so set before any module here can import it."""

if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    # Binds a Ray of this process's own to the loopback address; the name says something else.
    RAY_ENVIRONMENT["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
for _name, _value in RAY_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

_API = {
    **{name: name for name in ("Interrupted", "Planned", "Report", "Running", "Sweep")},
    **{name: name for name in ("audit", "compare", "export", "judge", "plan", "resume", "run")},
    **{name: name for name in ("start", "study", "trial")},
    "open": "open_sweep",
}
"""Names that `import sweep` offers, and their names in `sweep.api`."""
_ERRORS = ("InputError", "OtsweepError", "StorageFailed", "TrialFailed")


class _Package(ModuleType):
    """This package, on which a verb is a function also where a room has its name: `sweep.plan(...)` beside
    `from sweep.plan import SweepPlan`."""

    def __getattribute__(self, name: str) -> Any:
        if name in _API:
            from sweep import api

            return getattr(api, _API[name])
        if name in _ERRORS:
            from trainer import errors

            return getattr(errors, name)
        return super().__getattribute__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_API, *_ERRORS})


sys.modules[__name__].__class__ = _Package

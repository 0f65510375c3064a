"""Many trials: plan, search, schedule, record and show them."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


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

"""Many trials: plan, search, schedule, record and show them."""

import os

# Ray reads these when it is imported, so they are set before any module here can import it.
for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    # Ray's own snapshots are never read: the ledger is.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
}.items():
    os.environ.setdefault(_name, _value)
if not os.environ.get("RAY_ADDRESS"):
    # Binds a Ray of this process's own to the loopback address; its name tells of another use.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

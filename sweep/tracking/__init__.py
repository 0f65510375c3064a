"""Write sweeps to MLflow and show its page. The one place that touches MLflow's internals."""

from sweep.tracking.server import serve
from sweep.tracking.tracking import Tracker, sync, write_comparison

__all__ = [
    "serve",
    "sync",
    "Tracker",
    "write_comparison",
]

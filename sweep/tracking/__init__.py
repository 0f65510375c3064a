"""Write sweeps to MLflow and show its page. The one place that touches MLflow's internals."""

from sweep.tracking.server import serve
from sweep.tracking.summary_run import write_summary
from sweep.tracking.tracker import Tracker
from sweep.tracking.writer import sync

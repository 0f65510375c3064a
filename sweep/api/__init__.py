"""The command from Python: its verbs as functions with the same names and options. `import sweep` offers them."""

from sweep.api.auditing import audit, open_audit, run_recorded_study, study
from sweep.api.judging import judge
from sweep.api.opened import Sweep, open_sweep
from sweep.api.options import new_plan
from sweep.api.recorded import mlflow_progress, run_recorded
from sweep.api.running import Interrupted, Report, Running, drive, resume, resumed_plan, run, start
from sweep.api.verbs import Planned, compare, export, forecast_plan, plan, trial

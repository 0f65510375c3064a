"""Sweeps on a Ray cluster that someone else runs: submit, jobs, logs."""

from sweep.cluster.commands import resume_sweep, show_jobs, show_logs, stop_job, submit_sweep

__all__ = [
    "resume_sweep",
    "show_jobs",
    "show_logs",
    "stop_job",
    "submit_sweep",
]

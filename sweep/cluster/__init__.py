"""Sweeps on a Ray cluster that someone else runs: submit, jobs, logs."""

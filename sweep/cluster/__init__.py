"""Sweeps on a Ray cluster that someone else runs: submit, jobs, logs."""

from sweep.cluster.cluster import ENDED, RUNNING, Cluster, Job, exit_status
from sweep.cluster.info import ask_cluster, check_cluster, differences
from sweep.cluster.submission import Submission, refuse_duplicate, study_submission
from sweep.cluster.submit import Sent, send, send_resume, wait_for_start

"""The versions of this code and of the libraries that it runs with."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

VERSIONS_OF = ("torch", "ray", "optuna", "mlflow")
CODE_VERSION = "OTSWEEP_CODE_VERSION"
"""Environment variable that holds the version where the code was sent without its clone."""


def code_version() -> str:
    """Return `git describe` where the code runs from a clone, else the sender's version, else the installed one."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            described = ""
        if described:
            return described
    return os.environ.get(CODE_VERSION) or installed_version("otsweep")


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, or "not installed"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"

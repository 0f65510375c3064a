"""TODO one line."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

VERSIONS_OF = ("torch", "ray", "optuna", "mlflow")
CODE_VERSION = "OTSWEEP_CODE_VERSION"
"""Says it where the code was sent without its clone."""


def code_version() -> str:
    """`git describe` where the code runs from a clone, else as its sender said, else the installed version."""
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
    """The version of an installed distribution, or that there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"

"""The command `otsweep`."""

from sweep.cli.cli import main

__all__ = [
    "main",
]

"""The command `otsweep`."""

from sweep.cli.commands import main

__all__ = [
    "main",
]

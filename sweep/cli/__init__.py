"""The command `otsweep`."""

from sweep.cli.commands import main

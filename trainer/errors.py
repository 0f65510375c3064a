"""Exceptions that otsweep raises on purpose."""

from __future__ import annotations


class OtsweepError(Exception):
    """An error that otsweep raises on purpose.

    OtsweepError
    ├── InputError     the user's mistake: one message, exit status 2, no traceback
    ├── TrialFailed    this trial can't go on (a number is not finite); the sweep goes on without it
    └── StorageFailed  the storage takes no files (full, gone); what was recorded stays and can be resumed
    """


class InputError(OtsweepError, ValueError):
    """A value, name, file or address that the user gave is wrong; the message quotes it and names what is right."""


class TrialFailed(OtsweepError, RuntimeError):
    """A trial produced something that must not enter a front; the message is the reason shown to the user."""


class StorageFailed(OtsweepError):
    """The storage refused a file, and kept refusing it for a while; the message names the file and the reason."""

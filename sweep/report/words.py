"""TODO one line."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`0:42`, `12:05` or `3:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

"""Numbers as short texts for people."""

from __future__ import annotations

from typing import Any

from trainer.config import EvaluationConfig


def duration(seconds: float) -> str:
    """Return `0:42`, `12:05` or `3:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def percent(share: float) -> str:
    """Return a share as `40.7%`."""
    return f"{share:.1%}"


def attack_words(evaluation: EvaluationConfig) -> str:
    """Return the sensitivity attacks of a sweep, such as `PGD-20, 3 restarts, APGD-70, targeted PGD-30`."""
    restarts, steps = evaluation.eval_sensitivity_restarts, evaluation.eval_final_steps
    pgd = f"PGD-{evaluation.eval_sensitivity_steps}{f', {restarts} restarts' if restarts > 1 else ''}"
    targeted = f", targeted PGD-{evaluation.eval_targeted_steps}" if evaluation.eval_targeted_steps else ""
    return f"{pgd}, APGD-{steps}{targeted}" if steps else pgd


def brief(value: Any) -> str:
    """Return a setting's value, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def size(count: float) -> str:
    """Return a number of bytes as `640 KB`, `12 MB` or `2.3 GB`."""
    unit, count = "KB", count / 1000
    for larger in ("MB", "GB"):
        if count >= 999.5:
            unit, count = larger, count / 1000
    return f"{count:.2g} {unit}" if count < 9.95 else f"{count:.0f} {unit}"

"""A damaged ledger never breaks a report, and never changes a front without a word."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.benchmarks.ledger_damage import trial_by_fire


@pytest.mark.slow
def test_no_damage_breaks_a_report_or_changes_a_front_unseen() -> None:
    total = sum(trial_by_fire(100).values(), Counter[str]())
    assert total["traceback"] == total["another front, not told"] == 0
    assert total["another front, told"] > 30

"""How long an audit takes over the sweep that it audits, on the digits, both as commands on all cores.

The sweep has 24 trials, the audit 8 finalists on 3 fresh seeds by 3 judges, with their defaults. With fewer trials a
third of them are audited, so that the ratio is nearly the same; starting Ray then weighs more on both sides.

    python -m tests.benchmarks.audit_share [trials]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from tests.benchmarks.common import print_machine, print_result


def main(trials: str = "24") -> None:
    print_machine("ray")
    with tempfile.TemporaryDirectory() as storage:
        common = ("--storage", storage)
        swept = _seconds("run", "digits", "--name", "swept", "--trials", trials, *common)
        audited = _seconds("audit", "swept", "--finalists", str(max(1, int(trials) // 3)), *common)
    print(f"\n{'sweep':8}{swept:8.0f} s, {trials} trials\n{'audit':8}{audited:8.0f} s")
    print_result("audit_share", audited / swept)


def _seconds(*words: str) -> float:
    """Return the seconds that a command takes, preparation and start of Ray included."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweep", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(*sys.argv[1:2])

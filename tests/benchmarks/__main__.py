"""Run every benchmark of this folder, or those named on the command line: python -m tests.benchmarks [NAME ...]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HELPERS = {"__init__", "__main__", "common"}


def main(names: list[str]) -> int:
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in HELPERS)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    # A process for each: none inherits the arguments, the threads or the memory of another.
    ended = [subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"]).returncode for name in names or known]
    return int(any(ended))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

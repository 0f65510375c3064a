"""The Makefile, as a newcomer meets it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_half_made_environment_is_made_anew(tmp_path: Path) -> None:
    """Interrupt the making of `.venv` before it has pip; nothing is installed, but pip is asked for its version."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True)
    words = ["make", "install", f"PYTHON={sys.executable}", "PIP=-m pip --version #"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / ".venv") in done.stdout, "the pip that answers is the environment's own"

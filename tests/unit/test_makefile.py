"""The Makefile, as a newcomer meets it."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize(
    ("said", "status", "shown", "ended"),
    [
        pytest.param("No known vulnerabilities found", 0, "No known vulnerabilities found", 0, id="none"),
        pytest.param("Found 1 known vulnerability in 1 package", 1, "Found 1 known vulnerability", 2, id="one"),
        pytest.param("ERROR:pip_audit._cli:ray: could not be audited", 1, "nothing was audited", 2, id="unanswered"),
    ],
)
def test_an_audit_passes_if_it_found_nothing_and_not_if_it_found_no_answer(
    tmp_path: Path, said: str, status: int, shown: str, ended: int
) -> None:
    """In pip-audit's own words, since its advisories are on the network."""
    (tmp_path / "audit/bin").mkdir(parents=True)
    program = tmp_path / "audit/bin/pip-audit"
    program.write_text(f"#!/bin/sh\n[ $1 = --version ] || {{ echo WARNING:pip; echo '{said}' >&2; exit {status}; }}\n")
    program.chmod(0o755)
    words = ["make", "-C", str(ROOT), "audit-packages", f"AUDIT={tmp_path}/audit"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == ended
    assert shown in done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.slow
def test_an_audit_without_a_network_says_so_in_one_line(tmp_path: Path) -> None:
    words = ["make", "--no-print-directory", "-C", str(ROOT), "audit-packages", f"AUDIT={tmp_path}/audit"]
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    nowhere |= {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    done = subprocess.run(
        [*words, f"PYTHON={sys.executable}"], env=os.environ | nowhere, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert "nothing was audited" in done.stdout

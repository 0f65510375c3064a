"""The rules of tests/conftest.py: what may not be skipped where."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import broken_rule

SKIPPING = """
import pytest

def test_on_real_data(data_dir):
    pass

@pytest.mark.mnist
def test_skipped_for_another_reason():
    pytest.skip("no such thing")

@pytest.mark.gpu
@pytest.mark.mnist
def test_on_a_gpu():
    pytest.skip("no CUDA device")

@pytest.mark.skipif(True, reason="root: it may write anywhere")
def test_refused_writing():
    pass

@pytest.mark.skipif(True, reason="no Chromium on this machine")
def test_page():
    pass

@pytest.mark.mnist
@pytest.mark.xfail(strict=True)
def test_known_to_fail():
    assert False
"""


class Item:
    """A test with one marker."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def get_closest_marker(self, name: str) -> bool:
        return name == self.marker


@pytest.mark.parametrize(
    ("given", "marker", "reason", "rule"),
    [
        ({}, "mnist", "OTSWEEP_DATA_DIR is not set", ""),
        ({"OTSWEEP_DATA_DIR": "/data"}, "mnist", "there is no MNIST/raw in it", "OTSWEEP_DATA_DIR is set"),
        ({"OTSWEEP_DATA_DIR": "/data"}, "mnist", "no CUDA device", ""),
        ({"OTSWEEP_DATA_DIR": "/data"}, "slow", "no Chromium on this machine", ""),
        ({"CI": "true"}, "slow", "no Chromium on this machine", "this is CI"),
        ({"CI": "true"}, "gpu", "no CUDA device", ""),
        ({"CI": "true"}, "slow", "root: it may write anywhere", ""),
        ({"CI": "1"}, "cluster", "not root: only it may", ""),
        ({"CI": "false"}, "slow", "no Chromium on this machine", ""),
    ],
)
def test_what_may_not_be_skipped(
    given: dict[str, str], marker: str, reason: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "OTSWEEP_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = broken_rule(Item(marker), reason)  # type: ignore[arg-type]
    assert found.startswith(rule)
    assert bool(found) == bool(rule)


def test_a_skip_that_hides_something_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker, where its report passes through two processes."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.delenv("OTSWEEP_DATA_DIR", raising=False)
    root = Path(__file__).parents[2]
    shutil.copy(root / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    options = ["-c", str(root / "pyproject.toml"), "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-n", "1"]
    words = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=root)
    assert "1 failed, 2 skipped, 1 xfailed, 2 errors" in ran.stdout, ran.stdout
    assert "this is CI, and yet this test was skipped: Skipped: no such thing" in ran.stdout
    assert ran.returncode == 1

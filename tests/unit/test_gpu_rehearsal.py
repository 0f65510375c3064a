"""What `make gpu` runs on a machine with a GPU, tried at tiny sizes where Ray, Optuna, MLflow and POT are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "optuna", "mlflow", "ot", "pyarrow", "pydantic")))
runpy.run_module("tests.gpu", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_every_stage_works_without_ray_and_others(tmp_path: Path) -> None:
    words = ["--rehearse", "--out", str(tmp_path), "--minutes", "30"]
    done = subprocess.run([sys.executable, "-c", BARE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "gpu.json").read_text())
    assert all(stage["rows"] for stage in stages.values()), done.stdout
    for row in stages["a step against the CPU's in float64"]["rows"]:
        assert row["gradient off by, float32"] < 1e-4, row
    assert stages["a trial to its end"]["rows"][-1]["final"]
    assert (tmp_path / "gpu.md").read_text().count("## ") == len(stages)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device")
def test_a_machine_without_a_gpu_is_told_of_the_rehearsal() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.gpu"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA device here; --rehearse" in done.stderr

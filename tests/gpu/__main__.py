"""Run everything that is worth a few minutes of a GPU, the most valuable first; write `gpu.json` and `gpu.md`.

    python -m tests.gpu [--data-dir DIR] [--out FOLDER] [--minutes 6] [--rehearse]

It needs torch, torchvision, numpy, scipy and scikit-learn, and neither Ray nor MLflow. With --rehearse it runs on the
CPU, at tiny sizes.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from tests.gpu import stages
from tests.gpu.report import Report, Stage


def main(words: list[str] | None = None) -> int:
    """Run all stages; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Try this project on a GPU.")
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's published files; without it the digits")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of gpu.json and gpu.md (default: gpu)")
    parser.add_argument("--minutes", type=float, default=6.0, help="time of all stages together (default: 6)")
    parser.add_argument("--rehearse", action="store_true", help="try everything on the CPU, at tiny sizes")
    given = parser.parse_args(words)
    if not given.rehearse and not torch.cuda.is_available():
        parser.error("no CUDA device here; --rehearse tries everything on the CPU")
    device = torch.device("cpu" if given.rehearse else "cuda")
    setting = stages.Setting(device, given.rehearse, given.data_dir)
    report = Report(given.out, seconds=60 * given.minutes)
    for stage in (
        Stage("the machine", 2, partial(stages.machine, setting)),
        Stage("a step against the CPU's in float64", 30, partial(stages.correct_steps, setting)),
        Stage("judging against the CPU's", 20, partial(stages.correct_judging, setting)),
        Stage("ways to run a step", 40, partial(stages.executions, setting)),
        Stage("packs", 90, partial(stages.packs, setting)),
        Stage("parts of a step", 15, partial(stages.parts, setting)),
        Stage("neighbours", 40, partial(stages.neighbours, setting)),
        Stage("tests marked gpu", 60, partial(stages.marked_tests, setting)),
        Stage("a trial to its end", 90, partial(stages.trial, setting)),
        Stage("ResNet-18", 15, partial(stages.resnet18, setting)),
    ):
        report.run(stage)
    print(f"\nwritten: {given.out / 'gpu.json'} and {given.out / 'gpu.md'}")
    return int(any(stage["left out"] for stage in report.stages.values()))


if __name__ == "__main__":
    sys.exit(main())

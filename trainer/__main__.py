"""One trial, here, without Ray: `otsweep trial`, or `python -m trainer` where only torch is installed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from trainer.config import DATASET_DEFAULTS, EvaluationConfig, InputError, OtsweepError, TrialConfig, parse_settings
from trainer.presets import preset

if TYPE_CHECKING:
    from trainer.preparation import Prepared
    from trainer.report import EpochReport

REDRAW_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `otsweep trial`."""
    parser.add_argument("--preset", metavar="NAME", help="start from a named configuration, such as pgd-at")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="set a knob; may be repeated")
    parser.add_argument(
        "--dataset", metavar="NAME", help="short for --set dataset=NAME, with that data's usual budgets"
    )
    parser.add_argument("--epochs", metavar="N", help="short for --set epochs=N")
    parser.add_argument("--seed", metavar="N", help="short for --set seed=N")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets lie (or OTSWEEP_DATA_DIR)")
    parser.add_argument("--storage", type=Path, metavar="DIR", help="where results go (or OTSWEEP_STORAGE; ~/otsweep)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="this trial's folder; a trial stopped there goes on")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--cpus-per-trial", type=int, default=1, metavar="N", help="threads; the numbers depend on it")
    parser.add_argument("--json", action="store_true", help="print each report as one line of JSON, and nothing else")


def configs(arguments: argparse.Namespace) -> tuple[TrialConfig, EvaluationConfig]:
    """Data set's defaults, then the preset, then what was set; the last word counts."""
    shorthand = [f"{key}={getattr(arguments, key)}" for key in ("dataset", "epochs", "seed") if getattr(arguments, key)]
    given = parse_settings(shorthand + arguments.set, TrialConfig, EvaluationConfig)
    start = preset(arguments.preset) if arguments.preset else {}
    values = DATASET_DEFAULTS[given.get("dataset", "digits")] | start | given
    return (
        TrialConfig.from_mapping({k: v for k, v in values.items() if k in TrialConfig.fields()}),
        EvaluationConfig.from_mapping({k: v for k, v in values.items() if k in EvaluationConfig.fields()}),
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare, train, tell, and write `model.pt` and `report.json`; the exit status."""
    config, evaluation = configs(arguments)
    if arguments.cpus_per_trial < 1:
        raise InputError(f"--cpus-per-trial {arguments.cpus_per_trial}: must be at least 1")
    storage = (arguments.storage or Path(os.environ.get("OTSWEEP_STORAGE", "~/otsweep"))).expanduser().absolute()
    folder = (arguments.out or storage / "trials" / time.strftime("%Y%m%d-%H%M%S")).expanduser().absolute()
    make_folder(folder)
    line = StatusLine(sys.stderr, shown=not arguments.json)

    line.show("loading torch")
    import torch

    from trainer.checkpoint import FolderStore
    from trainer.preparation import prepare
    from trainer.trial import run_trial

    torch.set_num_threads(arguments.cpus_per_trial)
    prepared = prepare(
        evaluation,
        invariance_norms=(config.invariance_norm,) if config.uses_invariance else (),
        data_dir=arguments.data_dir,
        cache_dir=storage / "cache",
        progress=lambda stage, done, total: line.show(f"{stage} {bar(done, total)}"),
    )
    reports: list[EpochReport] = []
    trial = run_trial(
        config,
        evaluation,
        prepared,
        store=FolderStore(folder),
        device=pick_device(arguments.device),
        warn=lambda message: line.say(f"warning: {message}"),
        progress=lambda epoch, done, total: line.show(
            f"epoch {epoch:{len(str(config.epochs))}}/{config.epochs} {bar(done, total)} {brief(reports)}"
        ),
    )
    try:
        for report in trial:
            reports.append(report)
            if arguments.json:
                print(json.dumps(report.to_dict()), flush=True)
    except KeyboardInterrupt:
        line.say(f"Stopped after epoch {reports[-1].epoch if reports else 0}. To go on: add --out {folder}")
        return 130
    write_report(folder, config, evaluation, prepared, reports)
    line.clear()
    if not arguments.json:
        print(summary(reports[-1], evaluation, prepared, folder))
    return 0


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"can't write to {folder}: {error.strerror}; name another folder with --storage or --out"
        ) from None


def pick_device(name: str) -> str:
    """`auto`, or a device that exists.

    Raises:
        InputError: naming the devices that this machine has.
    """
    import torch

    count = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name == "auto":
        return "cuda" if count else "cpu"
    if name not in known:
        raise InputError(f"--device {name}: this machine has {', '.join(known)}")
    return name


def write_report(
    folder: Path, config: TrialConfig, evaluation: EvaluationConfig, prepared: Prepared, reports: list[EpochReport]
) -> None:
    """`report.json`: what was run, on what, and every report."""
    content = {
        "config": config.to_dict(),
        "evaluation": evaluation.to_dict(),
        "data_fingerprint": prepared.data.fingerprint,
        "reports": [report.to_dict() for report in reports],
    }
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")


def summary(report: EpochReport, evaluation: EvaluationConfig, prepared: Prepared, folder: Path) -> str:
    """What a person wants to know at the end."""
    rows = [
        ("clean accuracy", f"{report.clean_accuracy:7.1%}", "validation images as they are"),
        (
            "sensitivity accuracy",
            f"{report.sensitivity_accuracy:7.1%}",
            f"right under PGD-{evaluation.eval_sensitivity_steps}, "
            f"{evaluation.eval_sensitivity_norm} {evaluation.eval_sensitivity_epsilon:.3g}",
        ),
        (
            "invariance accuracy",
            f"{report.invariance_accuracy:7.1%}",
            f"the oracle's label on {report.invariance_changed_size} changed images, "
            f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g} (a proxy for people)",
        ),
        ("stuck", f"{report.invariance_stuck:7.1%}", "of those, still the source's label"),
    ]
    lines = [f"{evaluation.dataset}: epoch {report.epoch} chosen"]
    lines += [f"  {name:<21}{value}  {meaning}" for name, value, meaning in rows]
    return "\n".join([*lines, f"model and report: {folder}"])


def brief(reports: list[EpochReport]) -> str:
    """The last epoch's three accuracies, for the status line."""
    if not reports:
        return ""
    last = reports[-1]
    return (
        f" clean {last.clean_accuracy:.1%}  sensitivity {last.sensitivity_accuracy:.1%}"
        f"  invariance {last.invariance_accuracy:.1%}"
    )


def bar(done: int, total: int, *, width: int = 24) -> str:
    """A bar of text, and the count."""
    filled = width * done // max(total, 1)
    return f"{'━' * filled}{'╌' * (width - filled)} {done}/{total}"


class StatusLine:
    """One line that is written over again on a terminal; elsewhere each new stage or epoch is one plain line."""

    def __init__(self, stream: TextIO, *, shown: bool) -> None:
        self.stream, self.shown, self.living = stream, shown, shown and stream.isatty()
        self.drawn, self.stage = 0.0, ""

    def show(self, text: str) -> None:
        now = time.monotonic()
        stage = text.split("━")[0].split("╌")[0]
        if self.living and (now - self.drawn > REDRAW_SECONDS or stage != self.stage):
            columns = os.get_terminal_size(self.stream.fileno()).columns
            self.stream.write(f"\r\x1b[K{text[: columns - 1]}")
            self.stream.flush()
            self.drawn = now
        elif self.shown and not self.living and stage != self.stage:
            self.stream.write(f"{text}\n")
            self.stream.flush()
        self.stage = stage

    def say(self, text: str) -> None:
        self.clear()
        print(text, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.living:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OtsweepError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

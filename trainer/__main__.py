"""The command of one trial without Ray: `otsweep trial`, or `python -m trainer` where only torch is installed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.arguments import Parser
from trainer.config import EvaluationConfig, TrialConfig, usual_settings
from trainer.errors import InputError, OtsweepError
from trainer.fields import parse_settings
from trainer.human_agreement import EXAMPLES_OPTION, JUDGE, MODEL, ExamplesFolder, HumanAgreement, find_examples
from trainer.interrupts import SignalHandler, remembered_interrupts
from trainer.output import lasting_output
from trainer.own_crowds import find_crowd
from trainer.presets import PRESETS, preset
from trainer.progress import ProgressLine, bar, visible
from trainer.summary import agreement_lines, brief, summary
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from trainer.files import Store
    from trainer.invariance import LabelledSet, Prepared
    from trainer.report import EpochReport

_DONE, _FAILED, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130

REPORT_FILE = "report.json"
_FORMATS = ("table", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `otsweep trial`."""
    parser.add_argument("--preset", metavar="NAME", help="start from a named configuration (below)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="set a knob (below); may be repeated"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="short for --set dataset=NAME, with that data's usual budgets"
    )
    parser.add_argument(
        "--crowd",
        metavar="NAME",
        help="short for --set crowd=NAME: strict, lenient, or one of your own that is in the storage",
    )
    parser.add_argument("--epochs", metavar="N", help="short for --set epochs=N")
    parser.add_argument("--seed", metavar="N", help="short for --set seed=N")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with data sets (or OTSWEEP_DATA_DIR)")
    parser.add_argument("--storage", metavar="DIR", help="folder for results (or OTSWEEP_STORAGE; default ~/otsweep)")
    parser.add_argument("--out", metavar="DIR", help="folder of this trial; a trial that was stopped in it is resumed")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    parser.add_argument(
        "--cpus-per-trial", type=int, default=1, metavar="N", help="number of threads, on which the results depend (1)"
    )
    parser.add_argument(
        EXAMPLES_OPTION,
        metavar="DIR",
        help="images labelled by people, with which the model and the judge are compared",
    )
    parser.add_argument("--json", action="store_true", help="print each report as one line of JSON and nothing else")
    parser.add_argument(
        "--format", default=_FORMATS[0], help=f"{', '.join(_FORMATS)}: of what is printed at the end, as in report.json"
    )
    knobs = {**TrialConfig().to_dict(), **EvaluationConfig().to_dict()}
    parser.epilog = (
        f"Presets: {', '.join(PRESETS)}. "
        f"Knobs and their defaults: {', '.join(f'{name}={value}' for name, value in knobs.items())}."
    )


def configs(arguments: argparse.Namespace) -> tuple[TrialConfig, EvaluationConfig]:
    """Return the data set's defaults, overridden by the preset, overridden by the options; the last option counts."""
    short = {key: getattr(arguments, key) for key in ("dataset", "crowd", "epochs", "seed")}
    shorthand = [f"{key}={value}" for key, value in short.items() if value is not None]
    given = parse_settings(shorthand + arguments.set, TrialConfig, EvaluationConfig)
    start = {} if arguments.preset is None else preset(arguments.preset)
    values = usual_settings(given.get("dataset", "digits")) | start | given
    return (
        TrialConfig.from_mapping({k: v for k, v in values.items() if k in TrialConfig.fields()}),
        EvaluationConfig.from_mapping({k: v for k, v in values.items() if k in EvaluationConfig.fields()}),
    )


class TrialResult(NamedTuple):
    """A trial that was run to its end."""

    report: EpochReport
    """The numbers of the chosen epoch."""

    config: TrialConfig
    prepared: Prepared
    """The data, and who judged."""

    agreement: HumanAgreement | None
    """Answers beside those of people who labelled images, where there are any."""

    folder: Path
    """The trial's folder, with the model and all reports."""


class _TrialInterrupted(KeyboardInterrupt):
    """A trial was stopped by Ctrl-C; with `out` set to its `folder` it goes on after the last epoch that was done."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped; to go on after the last epoch that was done, give out={str(folder)!r}")
        self.folder = folder


def options_from(given: Mapping[str, Any]) -> argparse.Namespace:
    """Return options of a trial as their command has them, where None, and what is left out, has its default."""
    parser = Parser(prog="trial")
    add_arguments(parser)
    options = parser.parse_args([])
    vars(options).update({name: value for name, value in given.items() if value is not None})
    return options


def run(arguments: argparse.Namespace) -> int:
    """Prepare, train, report, write `model.pt` and `report.json`; return the exit status."""
    if arguments.format not in _FORMATS:
        raise InputError(f"--format {arguments.format}: {did_you_mean(arguments.format, _FORMATS)}")
    if arguments.json and arguments.format == "json":
        raise InputError("--json prints each report as it comes, --format json all of them at the end: give one")
    with ProgressLine(sys.stderr, shown=not arguments.json) as line:
        try:
            done = run_one(arguments, line, _print_json if arguments.json else partial(_log_report, line))
        except _TrialInterrupted as stopped:
            line.log("Stopped. To go on after the last epoch that was done, give the same command with")
            line.log(f"  --out {stopped.folder}")
            return _INTERRUPTED
    if arguments.format == "json":
        print((done.folder / REPORT_FILE).read_text(encoding="utf-8"), end="")
    elif not arguments.json:
        from trainer.training import MODEL_FILE

        found = agreement_lines(done.agreement, done.prepared.evaluation.dataset)
        print(summary(done.report, done.config, done.prepared), *found, "", sep="\n")
        print(f"model   {done.folder / MODEL_FILE}\nreport  {done.folder / REPORT_FILE}")
    return _DONE


def run_one(
    arguments: argparse.Namespace, line: ProgressLine, on_report: Callable[[EpochReport], object]
) -> TrialResult:
    """Prepare, train, write `model.pt` and `report.json`.

    Args:
        on_report: called with the report of each epoch, and with the final one.

    Raises:
        InputError: naming what is wrong, before anything is trained.
        TrialFailed: if a number is not finite.
        _TrialInterrupted: (a KeyboardInterrupt) after Ctrl-C in the training.
    """
    config, evaluation = configs(arguments)
    _check_threads(arguments.cpus_per_trial)
    storage = _absolute("--storage", arguments.storage or os.environ.get("OTSWEEP_STORAGE") or "~/otsweep")
    evaluation = evaluation.replace(crowd=find_crowd(evaluation.crowd, storage))
    examples = find_examples(arguments.invariance_examples, dataset=evaluation.dataset, data_dir=arguments.data_dir)
    line.update("loading torch", now=True)
    import torch

    from trainer.data import SIZES
    from trainer.training import check_batch_size

    # Before anything is prepared, which may take minutes, refuse what can be refused.
    device = pick_device(arguments.device)
    if size := evaluation.train_size or (evaluation.dataset in SIZES and SIZES[evaluation.dataset].train):
        check_batch_size(config.batch_size, size)
    torch.set_num_threads(arguments.cpus_per_trial)
    with _trial_folder(arguments.out, storage) as folder:
        prepared = _prepare_all(config, evaluation, arguments.data_dir, storage, device, line)
        sets = _read_sets(examples, prepared)
        line.begin(f"training: {config.epochs} epochs, results in {folder}")
        try:
            chosen = _train(config, prepared, folder, device=device, line=line, on_report=on_report)
        except KeyboardInterrupt:
            raise _TrialInterrupted(folder) from None
        agreement = _compare_with_people(examples, sets, prepared, folder, config.architecture) if examples else None
    return TrialResult(chosen, config, prepared, agreement, folder)


def _check_threads(count: int) -> None:
    most = os.cpu_count() or 1
    if not 1 <= count <= most:
        raise InputError(f"--cpus-per-trial {count}: must be at least 1 and at most {most}, the cores of this machine")


def _absolute(option: str, text: str) -> Path:
    """Return the path given with an option."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"{option} {text!r}: {error}") from None


def pick_device(name: str) -> str:
    """Return the device of that name; `auto` is the first GPU, or the CPU if there is none.

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


@contextlib.contextmanager
def _trial_folder(out: str | None, storage: Path) -> Iterator[Path]:
    """Make the trial's folder and check that it can be written; remove it again if the trial leaves nothing in it.

    Args:
        out: The folder; None makes a new one in `storage`, named after the time (UTC).

    Raises:
        InputError: naming the folder and the reason.
    """
    folder = storage / "trials" if out is None else _absolute("--out", out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if out is None:
            folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-", time.gmtime()), dir=folder))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise InputError(f"cannot write to {str(folder)!r}: {reason}; name another with --storage or --out") from None
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def _prepare_all(
    config: TrialConfig,
    evaluation: EvaluationConfig,
    data_dir: Path | None,
    storage: Path,
    device: str,
    line: ProgressLine,
) -> Prepared:
    """Prepare the data, the judging set, the judge's quality, and the training perturbations that the trial uses."""
    from trainer.data import load_data
    from trainer.invariance import prepare
    from trainer.training import check_own

    places: dict[str, Any] = {"data_dir": data_dir, "cache_dir": storage / "cache"}
    check_own(config, load_data(evaluation, **places))
    prepared = prepare(
        evaluation,
        invariance_norms=(config.invariance_norm,) if config.uses_invariance else (),
        device=device,
        progress=lambda stage, done, total: line.show(f"preparing: {stage}", done, total),
        **places,
    )
    _ = prepared.judge_quality
    return prepared


def _train(
    config: TrialConfig,
    prepared: Prepared,
    folder: Path,
    *,
    device: str,
    line: ProgressLine,
    on_report: Callable[[EpochReport], object],
) -> EpochReport:
    """Run the trial, pass on each report, keep all of them in the folder's `report.json`; return the last one."""
    from trainer.files import FolderStore
    from trainer.training import run_trial

    store = FolderStore(folder)
    head = {
        "config": config.to_dict(),
        "evaluation": prepared.evaluation.to_dict(),
        "data_fingerprint": prepared.data.fingerprint,
    }
    reports = earlier_reports(store, head)
    last = None

    def progress(epoch: int, done: int, total: int) -> None:
        share = (epoch - 1 + done / total) / config.epochs
        doing = "judging" if done == total else line.time_left(share)
        number = f"{epoch:{len(str(config.epochs))}}/{config.epochs}"
        line.update(f"epoch {number} {bar(share)} {doing:<10} {brief(last)}", now=done == total)

    for last in run_trial(
        config,
        prepared.evaluation,
        prepared,
        store=store,
        device=device,
        warn=lambda message: line.log(f"warning: {message}"),
        progress=progress,
    ):
        reports[last.final, last.epoch] = last.to_dict()
        content = {
            **head,
            "judge": {"crowd": prepared.crowd.name, **prepared.judge_quality._asdict()},
            "reports": [reports[key] for key in sorted(reports)],
        }
        _write_json(store, content)
        on_report(last)
    assert last is not None
    return last


def _write_json(store: Store, content: dict[str, Any]) -> None:
    store.write(REPORT_FILE, (json.dumps(content, indent=2) + "\n").encode())


def earlier_reports(store: Store, head: dict[str, Any]) -> dict[tuple[bool, int], dict[str, Any]]:
    """Return the reports that `report.json` holds already, by (final, epoch): a resumed trial repeats only the newest.

    Args:
        head: What the file must say of configuration and data; the reports of another trial are ignored.
    """
    try:
        content = json.loads(store.read(REPORT_FILE))
        same = all(content[key] == value for key, value in head.items())
        return {(report["final"], report["epoch"]): report for report in content["reports"]} if same else {}
    except (OSError, ValueError, KeyError, TypeError):  # missing or not ours: it is written anew
        return {}


def _read_sets(examples: ExamplesFolder | None, prepared: Prepared) -> list[LabelledSet]:
    """Read the examples that people labelled, before the training, so that damaged ones are found out at once."""
    from trainer.invariance import read_examples

    data = prepared.data
    return read_examples(Path(examples.path), data.test, classes=data.classes) if examples else []


def _compare_with_people(
    examples: ExamplesFolder, sets: list[LabelledSet], prepared: Prepared, folder: Path, architecture: str
) -> HumanAgreement:
    """Compare the judge and the chosen model with people, and add the result to the folder's `report.json`."""
    from trainer.files import FolderStore
    from trainer.invariance import answers_of, ask_people
    from trainer.training import MODEL_FILE, load_model

    model = load_model(folder / MODEL_FILE, architecture=architecture)
    agreement = ask_people(examples, sets, {JUDGE: prepared.answer, MODEL: answers_of(model)})
    store = FolderStore(folder)
    _write_json(store, {**json.loads(store.read(REPORT_FILE)), "people": dataclasses.asdict(agreement)})
    return agreement


def _print_json(report: EpochReport) -> None:
    # An interrupt between the writing of a line and the news that it is written would have it written again.
    with SignalHandler() as signals:
        print(json.dumps(report.to_dict()), flush=True)
    if signals.asked:
        raise KeyboardInterrupt


def _log_report(line: ProgressLine, report: EpochReport) -> None:
    """Print an epoch's accuracies where no line on a terminal shows them."""
    if not line.living and not report.final:
        line.log(f"epoch {report.epoch}: {brief(report)}")


def main(argv: list[str] | None = None) -> int:
    """Run one trial and return its exit status; without `argv` it is the one that this process was started for."""
    if argv is not None:
        return _main(argv)
    with lasting_output():
        return _main(sys.argv[1:])


def _main(argv: list[str]) -> int:
    parser = Parser(prog="python -m trainer", description=__doc__)
    add_arguments(parser)
    try:
        with remembered_interrupts():
            return run(parser.parse_all(argv))
    except InputError as error:
        print(visible(f"trainer: {error}"), file=sys.stderr)
        return _BAD_INPUT
    except OtsweepError as error:
        print(visible(f"trainer: failed: {error}"), file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("trainer: stopped", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

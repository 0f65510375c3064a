"""One trial, here, without Ray: `otsweep trial`, or `python -m trainer` where only torch is installed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from trainer.config import (
    DATASET_DEFAULTS,
    EvaluationConfig,
    InputError,
    OtsweepError,
    TrialConfig,
    did_you_mean,
    parse_settings,
)
from trainer.people import (
    HEADINGS,
    LEGEND,
    MODEL,
    OPTION,
    ORACLE,
    ExamplesFolder,
    People,
    cells,
    find_examples,
    unknown_agreement,
)
from trainer.presets import PRESETS, preset
from trainer.report import collapse

if TYPE_CHECKING:
    from trainer.checkpoint import Store
    from trainer.examples import LabelledSet
    from trainer.preparation import Prepared
    from trainer.report import EpochReport

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

REPORT_FILE = "report.json"
REDRAW_SECONDS = 0.1
BAR_WIDTH = 12
COLUMNS = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `otsweep trial`."""
    parser.add_argument("--preset", metavar="NAME", help="start from a named configuration (below)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="set a knob (below); may be repeated"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="short for --set dataset=NAME, with that data's usual budgets"
    )
    parser.add_argument("--epochs", metavar="N", help="short for --set epochs=N")
    parser.add_argument("--seed", metavar="N", help="short for --set seed=N")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets lie (or OTSWEEP_DATA_DIR)")
    parser.add_argument("--storage", metavar="DIR", help="where results go (or OTSWEEP_STORAGE; default ~/otsweep)")
    parser.add_argument("--out", metavar="DIR", help="this trial's folder; a trial that was stopped there goes on")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument(
        "--cpus-per-trial", type=int, default=1, metavar="N", help="threads; the numbers depend on it (1)"
    )
    parser.add_argument(
        OPTION, metavar="DIR", help="images that people labelled; the model and the oracle are compared with them"
    )
    parser.add_argument("--json", action="store_true", help="print each report as one line of JSON, and nothing else")
    knobs = {**TrialConfig().to_dict(), **EvaluationConfig().to_dict()}
    parser.epilog = (
        f"Presets: {', '.join(PRESETS)}. "
        f"Knobs and their defaults: {', '.join(f'{name}={value}' for name, value in knobs.items())}."
    )


def configs(arguments: argparse.Namespace) -> tuple[TrialConfig, EvaluationConfig]:
    """The data set's defaults, then the preset, then what was set; the last word counts."""
    said = {key: getattr(arguments, key) for key in ("dataset", "epochs", "seed")}
    shorthand = [f"{key}={value}" for key, value in said.items() if value is not None]
    given = parse_settings(shorthand + arguments.set, TrialConfig, EvaluationConfig)
    start = {} if arguments.preset is None else preset(arguments.preset)
    values = DATASET_DEFAULTS[given.get("dataset", "digits")] | start | given
    return (
        TrialConfig.from_mapping({k: v for k, v in values.items() if k in TrialConfig.fields()}),
        EvaluationConfig.from_mapping({k: v for k, v in values.items() if k in EvaluationConfig.fields()}),
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare, train, tell, and write `model.pt` and `report.json`; the exit status."""
    config, evaluation = configs(arguments)
    check_threads(arguments.cpus_per_trial)
    storage = absolute("--storage", arguments.storage or os.environ.get("OTSWEEP_STORAGE") or "~/otsweep")
    examples = find_examples(arguments.invariance_examples, dataset=evaluation.dataset, data_dir=arguments.data_dir)
    with StatusLine(sys.stderr, shown=not arguments.json) as line:
        line.draw("loading torch")
        import torch

        from trainer.data import SIZES
        from trainer.training import check_batch_size
        from trainer.trial import MODEL_FILE

        # What can be refused is refused before anything is prepared, which may take minutes.
        device = pick_device(arguments.device)
        check_batch_size(config.batch_size, evaluation.train_size or SIZES[evaluation.dataset].train)
        torch.set_num_threads(arguments.cpus_per_trial)
        with trial_folder(arguments.out, storage) as folder:
            prepared = prepare_all(config, evaluation, arguments.data_dir, storage, line)
            sets = read_sets(examples, prepared)
            line.begin(f"training: {config.epochs} epochs, results in {folder}")
            tell = print_json if arguments.json else line.tell
            try:
                chosen = train(config, prepared, folder, device=device, line=line, tell=tell)
            except KeyboardInterrupt:
                line.say("Stopped. To go on after the last epoch that was done, give the same command with")
                line.say(f"  --out {folder}")
                return INTERRUPTED
            except BrokenPipeError:  # who read the reports has gone, as in `... --json | head -1`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
                return FAILED
            people = compare_with_people(examples, sets, prepared, folder) if examples else None
    if not arguments.json:
        print(summary(chosen, config, prepared), *people_lines(people, evaluation.dataset), "", sep="\n")
        print(f"model   {folder / MODEL_FILE}\nreport  {folder / REPORT_FILE}")
    return DONE


def check_threads(count: int) -> None:
    most = os.cpu_count() or 1
    if not 1 <= count <= most:
        raise InputError(f"--cpus-per-trial {count}: must be at least 1 and at most {most}, the cores of this machine")


def absolute(said: str, text: str) -> Path:
    """The path given with an option."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"{said} {text!r}: {error}") from None


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


@contextlib.contextmanager
def trial_folder(out: str | None, storage: Path) -> Iterator[Path]:
    """The trial's folder, which can be written: the one that was given, or a new one named after the time (UTC). It is
    removed again if nothing comes of the trial.

    Raises:
        InputError: naming the folder and the reason.
    """
    folder = storage / "trials" if out is None else absolute("--out", out)
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


def prepare_all(
    config: TrialConfig, evaluation: EvaluationConfig, data_dir: Path | None, storage: Path, line: StatusLine
) -> Prepared:
    """Data, judging set, what is known of the oracle, and the training perturbations that the trial uses."""
    from trainer.preparation import prepare

    prepared = prepare(
        evaluation,
        invariance_norms=(config.invariance_norm,) if config.uses_invariance else (),
        data_dir=data_dir,
        cache_dir=storage / "cache",
        progress=line.prepare,
    )
    _ = prepared.judge_quality
    return prepared


def train(
    config: TrialConfig,
    prepared: Prepared,
    folder: Path,
    *,
    device: str,
    line: StatusLine,
    tell: Callable[[EpochReport], None],
) -> EpochReport:
    """Run the trial, tell each report, and keep all of them in the folder's `report.json`; the last one."""
    from trainer.checkpoint import FolderStore
    from trainer.trial import run_trial

    store, oracle = FolderStore(folder), prepared.judge_quality
    head = {
        "config": config.to_dict(),
        "evaluation": prepared.evaluation.to_dict(),
        "data_fingerprint": prepared.data.fingerprint,
    }
    reports = earlier_reports(store, head)
    last, left = None, TimeLeft()

    def progress(epoch: int, done: int, total: int) -> None:
        share = (epoch - 1 + done / total) / config.epochs
        doing = "judging" if done == total else left.after(share)
        number = f"{epoch:{len(str(config.epochs))}}/{config.epochs}"
        line.draw(f"epoch {number} {bar(share)} {doing:<10} {brief(last)}", now=done == total)

    for last in run_trial(
        config,
        prepared.evaluation,
        prepared,
        store=store,
        device=device,
        warn=lambda message: line.say(f"warning: {message}"),
        progress=progress,
    ):
        reports[last.final, last.epoch] = last.to_dict()
        content = {**head, "oracle": oracle._asdict(), "reports": [reports[key] for key in sorted(reports)]}
        store.write(REPORT_FILE, (json.dumps(content, indent=2) + "\n").encode())
        tell(last)
    assert last is not None
    return last


def earlier_reports(store: Store, head: dict[str, Any]) -> dict[tuple[bool, int], dict[str, Any]]:
    """What `report.json` tells already, by (final, epoch): a trial that goes on repeats only its newest report."""
    try:
        content = json.loads(store.read(REPORT_FILE))
        same = all(content[key] == value for key, value in head.items())
        return {(report["final"], report["epoch"]): report for report in content["reports"]} if same else {}
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is not ours; it is written anew
        return {}


def read_sets(examples: ExamplesFolder | None, prepared: Prepared) -> list[LabelledSet]:
    """The examples that people labelled, read before the training, so that damaged ones cost none."""
    from trainer.examples import read_examples

    data = prepared.data
    return read_examples(Path(examples.path), data.test, classes=data.classes) if examples else []


def compare_with_people(examples: ExamplesFolder, sets: list[LabelledSet], prepared: Prepared, folder: Path) -> People:
    """How far the oracle and the chosen model agree with people; kept in the folder's `report.json` too."""
    from trainer.checkpoint import FolderStore
    from trainer.examples import answers_of, ask_people
    from trainer.trial import MODEL_FILE, load_model

    model = load_model(folder / MODEL_FILE)
    people = ask_people(examples, sets, {ORACLE: prepared.judge.label, MODEL: answers_of(model)})
    store = FolderStore(folder)
    content = {**json.loads(store.read(REPORT_FILE)), "people": dataclasses.asdict(people)}
    store.write(REPORT_FILE, (json.dumps(content, indent=2) + "\n").encode())
    return people


def print_json(report: EpochReport) -> None:
    print(json.dumps(report.to_dict()), flush=True)


def brief(report: EpochReport | None) -> str:
    """The three accuracies of an epoch, where there is little room."""
    if report is None:
        return ""
    clean, sensitivity, invariance = report.clean_accuracy, report.sensitivity_accuracy, report.invariance_accuracy
    return f"clean {clean:.1%}  sens {sensitivity:.1%}  inv {invariance:.1%}"


def summary(report: EpochReport, config: TrialConfig, prepared: Prepared) -> str:
    """What a person wants to know at the end: what was measured, and how surely."""
    images, changed = len(prepared.data.validation.labels), report.invariance_changed_size
    evaluation, oracle = prepared.evaluation, prepared.judge_quality
    unchanged = int(prepared.judging.unchanged.sum())
    attack = f"PGD-{evaluation.eval_sensitivity_steps}, {evaluation.eval_sensitivity_norm}"
    perturbed = f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}"
    return "\n".join(
        [
            f"{evaluation.dataset}: epoch {report.epoch} of {config.epochs} chosen",
            "                        95% interval  share of",
            row("clean", report.clean_accuracy, f"{images} validation images: right", size=images),
            row(
                "sensitivity",
                report.sensitivity_accuracy,
                f"them: right, also under {attack} {evaluation.eval_sensitivity_epsilon:.3g}",
                size=images,
            ),
            row(
                "invariance",
                report.invariance_accuracy,
                f"{changed} changed by {perturbed}: new label given",
                size=changed,
            ),
            row("  stuck", report.invariance_stuck, "those right before: old label given"),
            row(
                "  unchanged",
                report.invariance_unchanged,
                f"{unchanged} not changed by it: old label given",
                size=unchanged,
            ),
            "What is changed, and to which label, says an oracle, a proxy for people. It",
            f"answers {oracle.coverage:.1%} of the images as they are, and {oracle.accuracy:.1%} of these right.",
            *([f"Of this trial, {alarm}."] if (alarm := collapse(report.to_dict())) else []),
        ]
    )


def people_lines(people: People | None, dataset: str) -> list[str]:
    """A table per set of examples, as wide as a terminal."""
    if people is None:
        return textwrap.wrap(unknown_agreement(dataset), COLUMNS)
    lines = ["", f"Agreement with people, on the examples in {people.folder}", ""]
    for each in people.sets:
        lines += [each.title, *columns([HEADINGS, *(cells([agreement]) for agreement in each.agreements)]), ""]
    return [*lines, *textwrap.wrap(LEGEND, COLUMNS)]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells one below the other; the first row holds headings of two lines."""
    lines = [*zip(*(heading.split("\n") for heading in rows[0]), strict=True), *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def row(name: str, share: float, meaning: str, *, size: int | None = None) -> str:
    """A line of the summary, with Wilson's interval where the share is one of `size` images."""
    from trainer.intervals import wilson_interval

    interval = ""
    if size:
        low, high = wilson_interval(round(share * size), size)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"  {name:<12}{share:7.1%}   {interval:<14}{meaning}"


def bar(share: float) -> str:
    """A share as a bar and in percent."""
    filled = int(BAR_WIDTH * share)
    return f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} {share:4.0%}"


class TimeLeft:
    """How long the rest takes if it goes on as it went."""

    def __init__(self) -> None:
        self.begun: tuple[float, float] | None = None

    def after(self, share: float) -> str:
        """In words, once there is something to go by; the first share that it hears of is where it starts."""
        now = time.monotonic()
        start, before = self.begun = self.begun or (now, share)
        if share == before:
            return ""
        seconds = int((now - start) * (1 - share) / (share - before))
        return f"{seconds // 60}:{seconds % 60:02d} left"


class StatusLine:
    """On a terminal one line that is written over again, elsewhere plain lines; a context that ends with a clean one.

    Args:
        stream: where it stands.
        shown: False keeps all but what is said to oneself.
    """

    def __init__(self, stream: TextIO, *, shown: bool) -> None:
        self.stream, self.shown, self.living = stream, shown, shown and stream.isatty()
        self.stage, self.drawn = "", 0.0

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def begin(self, stage: str) -> None:
        """Something else is being done now."""
        if stage != self.stage:
            self.stage = stage
            self.draw(stage, now=True)
            if self.shown and not self.living:
                self.say(stage)

    def draw(self, text: str, *, now: bool = False) -> None:
        """The living line; as often as eyes can follow, or `now`."""
        if self.living and (now or time.monotonic() - self.drawn > REDRAW_SECONDS):
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r\x1b[K{text[: columns - 1]}")
            self.stream.flush()
            self.drawn = time.monotonic()

    def prepare(self, stage: str, done: int, total: int) -> None:
        """How far a stage of the preparation is."""
        self.begin(f"preparing: {stage}")
        self.draw(f"{self.stage} {bar(done / max(total, 1))}", now=done == total)

    def tell(self, report: EpochReport) -> None:
        """An epoch's accuracies; on a terminal the living line has them."""
        if not self.living and not report.final:
            self.say(f"epoch {report.epoch}: {brief(report)}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.living:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest right word for a wrong one, and one line instead of the whole usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_all(self, argv: list[str] | None) -> argparse.Namespace:
        """As `parse_args`; an unknown word is blamed on the subcommand's parser where `arguments.parser` names one."""
        arguments, unknown = self.parse_known_args(argv)
        known = getattr(arguments, "parser", self).options()
        if unknown and "--set" in known and "=" in unknown[0] and not unknown[0].startswith("-"):
            raise InputError(f"unexpected {unknown[0]!r}: write --set {unknown[0]}")
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
        return arguments

    def options(self) -> list[str]:
        return [word for action in self._actions for word in action.option_strings if word.startswith("--")]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m trainer", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_all(argv))
    except InputError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return BAD_INPUT
    except OtsweepError as error:
        print(f"trainer: failed: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("trainer: stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

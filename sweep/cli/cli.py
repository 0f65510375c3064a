"""The command `otsweep`: read the words, call the part that does it, say what happened.

Exit status: 0 done, 1 failed, 2 bad usage or input, 130 stopped by Ctrl-C. Heavy imports wait until they are needed,
so that `--help` and a mistyped word are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.arguments import Parser
from trainer.errors import InputError, OtsweepError, StorageFailed
from trainer.human_agreement import EXAMPLES_OPTION, find_examples
from trainer.progress import ProgressLine
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from sweep.plan import SweepPlan
    from sweep.state import SweepState

_PLACES = ("storage", "data_dir", "mlflow_uri")
"""Options that say where things are."""

_DONE, _FAILED, BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130

_console = Console(soft_wrap=True, highlight=False)
_errors = Console(stderr=True, soft_wrap=True, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        parser = build_parser()
        if not words:
            parser.print_help()
            return BAD_INPUT
        _check_command(words)
        arguments = parser.parse_all(words)
        return arguments.run(arguments)
    except InputError as error:
        _errors.print(f"otsweep: {error}", markup=False)
        return BAD_INPUT
    except OtsweepError as error:
        _errors.print(f"otsweep: failed: {error}", markup=False)
        return _FAILED
    except KeyboardInterrupt:
        _errors.print("otsweep: stopped")
        return _INTERRUPTED


def _check_command(words: list[str]) -> None:
    """argparse's own answer to a wrong command names no nearest one."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise InputError(f"unknown command {words[0]!r}: {did_you_mean(words[0], COMMANDS)}")


def build_parser() -> Parser:
    parser = Parser(prog="otsweep", description="Map how robust one classifier can be to two opposite attacks at once.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, (add, run, about) in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about)
        add(sub)
        sub.set_defaults(run=run, parser=sub)
    return parser


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", metavar="DIR", help="folder of all sweeps (or OTSWEEP_STORAGE; default ~/otsweep)")


def _add_circumstances(parser: argparse.ArgumentParser) -> None:
    """What does not decide a trial's numbers, and so may differ when a sweep is gone on with."""
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets lie (or OTSWEEP_DATA_DIR)")
    parser.add_argument(
        "--mlflow-uri", metavar="URI", help="MLflow server or store; default: SQLite in the storage folder"
    )
    parser.add_argument("--max-hours", metavar="H", help="begin no trial after H hours")
    parser.add_argument("--max-gpu-hours", metavar="H", help="spend no more than H hours of GPUs on trials")
    parser.add_argument(
        "--max-concurrent",
        metavar="N",
        help="most trials at once, or auto: by measured memory; default: as many as fit",
    )
    parser.add_argument(
        "--pack", metavar="K", help="train K trials in one process, alike ones in one vectorised step, on a GPU (1)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("space", nargs="?", default="digits", help="a name in search_spaces/ or a YAML file (digits)")
    parser.add_argument("--name", help="of the sweep; default: the space's name and the time")
    _add_storage(parser)
    _add_circumstances(parser)
    parser.add_argument("--trials", metavar="N", help="how many trials in all; each seed of a configuration is one")
    parser.add_argument("--seeds", metavar="N", help="on how many seeds each configuration runs, ranked together (1)")
    parser.add_argument(
        "--require",
        metavar="BOUND",
        action="append",
        default=[],
        help="what a trial must reach to be on the front: 'clean_accuracy >= 0.9'; may be given again",
    )
    parser.add_argument("--epochs", metavar="N", help="epochs of every trial")
    parser.add_argument("--seed", metavar="N", help="decides the search and, with it, every trial (0)")
    parser.add_argument(
        "--sampler", metavar="NAME", help="who proposes configurations: tpe, nsga2, nsga3, gp, random, qmc (tpe)"
    )
    parser.add_argument("--points", metavar="FILE", type=Path, help="configurations to run first: YAML, JSON or CSV")
    parser.add_argument("--from", metavar="NAME", dest="front_of", help="run the front of an earlier sweep first")
    parser.add_argument("--stop-when-flat", metavar="N", help="end once the hypervolume has not grown over N trials")
    parser.add_argument("--flat-growth", metavar="X", help="share up to which it has not grown (0.01)")
    parser.add_argument("--stopper", metavar="NAME", help="who stops trials early: asha or none (none)")
    parser.add_argument("--eta", metavar="N", help="of the trials that reach a rung the best 1/eta go on (2)")
    parser.add_argument("--grace-epochs", metavar="N", help="epochs before anything is stopped (2)")
    parser.add_argument(
        "--stop-chance", metavar="P", help="most chance of the front with which who is behind is stopped (0.05)"
    )
    parser.add_argument(
        "--ladder", metavar="N", help="judge first epochs with N attack steps, more later, all of them in the 2nd half"
    )
    parser.add_argument("--cpus-per-trial", metavar="N", help="cores, and threads, of a trial or pack (1)")
    parser.add_argument("--gpus-per-trial", metavar="N", help="GPUs of a trial or pack; 0.25 shares one among four (0)")
    parser.add_argument(
        "--keep-models", metavar="WHOSE", help="models that MLflow is given: front, all or none (front)"
    )


def _run(arguments: argparse.Namespace) -> int:
    return _drive(plan_of(arguments), fresh=True)


def plan_of(arguments: argparse.Namespace) -> SweepPlan:
    """The plan that the options of `run` describe."""
    from search_spaces import load_space
    from sweep.plan import OPTIONS, make_plan
    from sweep.search import with_given_points

    space = load_space(arguments.space).requiring(arguments.require)
    return make_plan(
        with_given_points(space, file=arguments.points, sweep=arguments.front_of, storage=arguments.storage),
        name=arguments.name,
        storage=arguments.storage,
        mlflow_uri=arguments.mlflow_uri,
        data_dir=arguments.data_dir,
        **{option: getattr(arguments, option) for option in OPTIONS},
    )


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--format", metavar="FORMAT", default="table", help="table or json (table)")


def _plan(arguments: argparse.Namespace) -> int:
    """Time a little of what would run, and say what the whole would take; nothing is run or logged."""
    from sweep.forecast import forecast_table, headline, keep_forecast, make_forecast, profile_plan

    if arguments.format not in ("table", "json"):
        raise InputError(f"--format {arguments.format}: {did_you_mean(arguments.format, ('table', 'json'))}")
    plan = plan_of(arguments)
    with ProgressLine(sys.stderr) as line:
        forecast = make_forecast(plan, profile_plan(plan, line.show))
    keep_forecast(plan, forecast)
    if arguments.format == "json":
        print(json.dumps({**forecast.to_dict(), "command": run_command(arguments)}, indent=2))
        return _DONE
    _console.print(headline(plan, forecast), "", sep="\n", markup=False, soft_wrap=False)
    _console.print(forecast_table(plan, forecast), soft_wrap=False)
    _console.print(f"\nRun it:\n  {run_command(arguments)}", markup=False)
    return _DONE


def run_command(arguments: argparse.Namespace) -> str:
    """The command that runs what was planned, in the options that were given."""
    from sweep.plan import OPTIONS

    given = {option: getattr(arguments, option) for option in (*OPTIONS, *_PLACES, "name", "points")}
    words = [_program(), "run", shlex.quote(arguments.space)]
    for option, value in {**given, "from": arguments.front_of}.items():
        words += [f"--{option.replace('_', '-')} {shlex.quote(str(value))}"] if value is not None else []
    return " ".join([*words, *(f"--require {shlex.quote(bound)}" for bound in arguments.require)])


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of a sweep in the storage folder")
    _add_storage(parser)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_circumstances(parser)
    _add_address(parser)
    _add_wait(parser)


def _resume(arguments: argparse.Namespace) -> int:
    if arguments.address:
        from sweep.cluster import resume_sweep

        return resume_sweep(arguments, _console, _errors)
    from sweep.plan import with_resume_overrides

    return _drive(with_resume_overrides(_find_plan(arguments), vars(arguments)), fresh=False)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="URL", help="of the cluster's dashboard (or RAY_API_SERVER_ADDRESS)")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="follow the job to its end, and end as it did")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_address(parser)
    _add_wait(parser)


def _submit(arguments: argparse.Namespace) -> int:
    from sweep.cluster import submit_sweep

    return submit_sweep(arguments, _console, _errors)


def _show_jobs(arguments: argparse.Namespace) -> int:
    from sweep.cluster import show_jobs

    return show_jobs(arguments, _console)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="its id, or the name of its sweep")
    _add_address(parser)


def _add_logs(parser: argparse.ArgumentParser) -> None:
    _add_job(parser)
    parser.add_argument("--follow", action="store_true", help="go on showing until the job ends, and end as it did")


def _logs(arguments: argparse.Namespace) -> int:
    from sweep.cluster import show_logs

    return show_logs(arguments, _console, _errors)


def _stop(arguments: argparse.Namespace) -> int:
    from sweep.cluster import stop_job

    return stop_job(arguments, _console)


def _find_plan(arguments: argparse.Namespace) -> SweepPlan:
    from sweep.plan import read_plan

    return read_plan(arguments.name, storage=arguments.storage)


def _drive(plan: SweepPlan, *, fresh: bool) -> int:
    """Run a fresh sweep, or what is left of one, and show what it found."""
    from sweep.engine import PackFailed, run_plan
    from sweep.forecast import begin_forecast
    from sweep.ledger import LedgerWriter, read_ledger
    from sweep.plan import drop_remote, push_remote, write_plan
    from sweep.report import Screen
    from sweep.search import remarks
    from sweep.state import read_data_summary, state_of_trials
    from sweep.tracking import Tracker

    results = state_of_trials(plan, {})
    screen, line = Screen(_console, plan, results), ProgressLine(sys.stdout)

    def log(message: str) -> None:
        line.clear()
        screen.say(message)

    tracker = Tracker(plan, results, say=log)

    def listen(number: int) -> None:
        tracker.changed(number)
        screen.trial_changed(number)

    tracker.start()
    if fresh:
        write_plan(plan)
    complete = False
    with LedgerWriter(plan.folder) as ledger:
        recorded = read_ledger(plan.folder)
        # The writer's first: it cut a torn line off, and the reader sees none any more.
        for warning in dict.fromkeys([*ledger.warnings, *recorded.warnings]):
            screen.say(f"ledger: {warning}")
        results.load(recorded.to_go_on_from())
        results.facts = read_data_summary(plan.folder)
        screen.open(resumed=bool(recorded.trials))
        for remark in remarks(plan):
            screen.say(remark)
        try:
            complete = run_plan(
                plan,
                ledger,
                results,
                progress=screen.prepare,
                begin=lambda: screen,
                listen=listen,
                say=screen.say,
                on_slots=lambda slots: begin_forecast(plan, slots),
            )
        except InputError:
            if fresh and not results.trials:
                shutil.rmtree(plan.folder, ignore_errors=True)
                drop_remote(plan.folder)
            raise
        except (StorageFailed, PackFailed) as error:
            raise type(error)(f"{error}. Nothing recorded is lost; to go on:\n  {_resumption(plan)}") from None
        finally:
            screen.close()
            with _mlflow_progress(line) as tell:
                tracker.close(complete=complete, tell=tell)
    try:
        _save_front(plan, results)
        push_remote(plan.folder)
    except (OSError, InputError) as error:
        screen.say(f"the front's table and picture are not written: {error}; `otsweep front` shows it")
    _show_end(plan, results, tracker.link, complete=complete)
    if not complete:
        return _INTERRUPTED
    return _DONE if results.finished else _FAILED


@contextlib.contextmanager
def _mlflow_progress(line: ProgressLine) -> Iterator[Callable[[int, int], None]]:
    """Show how far the writing is; yield the function to be called with the numbers done and in all."""
    with line:
        line.update("Writing to MLflow ...", now=True)
        yield lambda done, total: line.update(f"Writing to MLflow: {done} of {total} ...")


def _save_front(plan: SweepPlan, results: SweepState) -> None:
    """The flat table and the picture, beside the ledger."""
    from sweep.ledger import Ledger
    from sweep.report import front_picture, ledger_metadata, save_figure

    Ledger(results.trials, []).write_parquet(plan.folder / "ledger.parquet", ledger_metadata(plan, results))
    if results.finished:
        save_figure(front_picture(plan, results), plan.folder / "front.png")


def _show_end(plan: SweepPlan, results: SweepState, link: Callable[[str], str], *, complete: bool) -> None:
    """The front, where everything is, and the one command that comes next."""
    from sweep.forecast import describe_cost

    _console.print()
    if results.finished:
        _show_front(plan, results)
    if plan.stopper != "none" or plan.ladder:
        _show_agreements(plan, results)
    for number, record in results.failed.items():
        _console.print(f"trial {number:03d} failed: {record.reason}", markup=False)
    if not complete:
        left = plan.trials - len(results.ended)
        _console.print(f"Stopped with {left} trials to go. Nothing is lost; to go on:\n  {_resumption(plan)}")
        return
    if len(results.ended) < plan.trials:
        if results.running:
            _console.print(
                f"{len(results.running)} were stopped by the budget; a larger one goes on with them:\n"
                f"  {_resumption(plan)} --max-gpu-hours {2 * plan.max_gpu_hours:g}\n"
            )
        grown = f"; hypervolume +{results.growth(plan.stop_when_flat):.1%} over the last {plan.stop_when_flat}"
        why = grown if plan.stop_when_flat else ""
        _console.print(f"Ended after {len(results.ended)} of {plan.trials} trials, as the plan has it{why}.\n")
    if told := describe_cost(plan, results):
        _console.print(f"time     {told}")
    if results.finished:
        _console.print(f"picture  {plan.folder / 'front.png'}")
    _console.print(f"ledger   {plan.folder / 'ledger.parquet'}")
    if plan.mlflow_uri.startswith("http"):
        _console.print(f"MLflow   {link(plan.mlflow_uri)}")
        return
    _console.print(f"MLflow   {_program()} ui {_called(plan)}")
    _console.print(f"opens    {link('http://127.0.0.1:5000')}")


def _resumption(plan: SweepPlan) -> str:
    """The command that goes on with a sweep."""
    return f"{_program()} resume {_called(plan)}"


def _called(plan: SweepPlan) -> str:
    """A sweep's name, as commands take it, with its storage where that is another than they look in."""
    from sweep.plan import storage_folder

    where = "" if Path(plan.storage) == storage_folder() else f" --storage {shlex.quote(plan.storage)}"
    return plan.name + where


def _program() -> str:
    """How this command is called again: by its name where the shell finds it, else by the path it was called by."""
    typed = Path(sys.argv[0])
    if typed.name != "otsweep" or shutil.which("otsweep"):
        return "otsweep"
    return shlex.quote(os.path.relpath(typed))


def _add_front(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--format", metavar="FORMAT", default="table", help="table, json or csv (table)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the picture: .png, .svg or .pdf")


def _front(arguments: argparse.Namespace) -> int:
    from sweep.ledger import read_ledger
    from sweep.report import front_csv, front_json, front_picture, save_figure
    from sweep.state import read_data_summary, state_of_trials

    if arguments.format not in ("table", "json", "csv"):
        raise InputError(f"--format {arguments.format}: {did_you_mean(arguments.format, ('table', 'json', 'csv'))}")
    plan = _find_plan(arguments)
    recorded = read_ledger(plan.folder)
    for warning in recorded.warnings:
        _errors.print(f"ledger: {warning}", markup=False)
    results = state_of_trials(plan, recorded.trials)
    results.facts = read_data_summary(plan.folder)
    if arguments.plot:
        save_figure(front_picture(plan, results), arguments.plot)
    if arguments.format == "json":
        print(front_json(plan, results))
    elif arguments.format == "csv":
        print(front_csv(plan, results), end="")
    elif results.finished:
        _show_front(plan, results)
    else:
        _console.print(f"No trial of {plan.name} has finished yet.")
    return _DONE


def _show_front(plan: SweepPlan, results: SweepState) -> None:
    """The verdict, the front, and published configurations beside what was published, where any ran."""
    from sweep.report import front_table, paper_table, published_trials, verdict

    _console.print(verdict(plan, results), "\n", sep="")
    _console.print(front_table(plan, results))
    _console.print()
    published = published_trials(plan, results)
    if published:
        _console.print(paper_table(plan, published), "\n", sep="")


def _show_agreements(plan: SweepPlan, results: SweepState) -> None:
    """Whether the order at each rung tells that at the next, and an alarm where it does not."""
    from sweep.report import agreement_alarms, agreement_table, agreements_of

    if found := agreements_of(plan, results):
        _console.print("\nOrder kept from rung to rung (Kendall's tau: 1 all of it, 0 none):")
        _console.print(agreement_table(found))
        for line in agreement_alarms(found):
            _console.print(line)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--eta", metavar="N", help="of the trials that reach a rung the best 1/eta go on; default: some"
    )
    parser.add_argument("--grace-epochs", metavar="N", help="epochs before anything is stopped; default: the sweep's")
    parser.add_argument(
        "--stop-chance",
        metavar="P",
        help="most chance of the front with which who is behind is stopped; 1 stops all who are; default: the sweep's",
    )


def _replay(arguments: argparse.Namespace) -> int:
    from sweep.ledger import read_ledger
    from sweep.plan import check_option
    from sweep.report import ETAS, replay_table, unknown_ends
    from sweep.report import replay_sweep as run_replay
    from sweep.state import state_of_trials

    plan = _find_plan(arguments)
    etas = ETAS if arguments.eta is None else (check_option("eta", arguments.eta),)
    grace, chance = (
        getattr(plan, name) if getattr(arguments, name) is None else check_option(name, getattr(arguments, name))
        for name in ("grace_epochs", "stop_chance")
    )
    results = state_of_trials(plan, read_ledger(plan.folder).trials)
    replays = [run_replay(plan, results, eta=eta, grace_epochs=grace, stop_chance=chance) for eta in etas]
    _console.print(replay_table(replays, results))
    _show_agreements(plan, results)
    if cut := unknown_ends(replays, results):
        _console.print(f"\n{len(cut)} trials were stopped by the sweep itself: how they would have ended is not known.")
    return _DONE


def _add_audit(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--seeds", metavar="N", help="fresh seeds that every finalist is trained on (3)")
    parser.add_argument("--finalists", metavar="N", help="most trials that are audited, the front's first (8)")
    parser.add_argument("--test-size", metavar="N", help="test images that are attacked; 0 takes all (1000)")
    parser.add_argument("--steps", metavar="N", help="gradient steps of every round of the attacks (100)")
    parser.add_argument("--queries", metavar="N", help="calls of the model by the Square attack (5000)")
    parser.add_argument(
        EXAMPLES_OPTION,
        metavar="DIR",
        help="images that people labelled; the models and the oracle are compared with them",
    )


def _audit(arguments: argparse.Namespace) -> int:
    from sweep.audit import Audit, command, read_options, run_audit, show_audit
    from sweep.ledger import read_ledger
    from sweep.plan import url_of
    from sweep.state import read_data_summary, state_of_trials

    plan = _find_plan(arguments)
    if url := url_of(plan.folder):
        raise InputError(f"{url}: a sweep at a URL can't be audited there; copy its folder here and give --storage DIR")
    examples = find_examples(
        arguments.invariance_examples, dataset=plan.space.evaluation.dataset, data_dir=plan.data_dir
    )
    results = state_of_trials(plan, read_ledger(plan.folder).trials)
    results.facts = read_data_summary(plan.folder)
    begun = Audit(plan, results, read_options(vars(arguments)), examples)
    if not run_audit(begun, _console):
        _console.print(f"Stopped. Nothing that is done is lost; to go on:\n  {command(begun)}")
        return _INTERRUPTED
    passed = show_audit(begun, _console)
    _bring_up_to_date(plan)
    return _DONE if passed else _FAILED


def _bring_up_to_date(plan: SweepPlan) -> None:
    """What was found about a sweep's trials after its end, in MLflow too; where that does not answer, it is said."""
    from sweep.tracking import sync as run_sync

    try:
        line = ProgressLine(sys.stderr)
        with _mlflow_progress(line) as tell:
            run_sync(plan, plan.mlflow_uri, say=line.log, tell=tell)
    except InputError as error:
        _errors.print(f"{error}\nWhen it answers: {_program()} sync {plan.name}", markup=False)


def _add_trial(parser: argparse.ArgumentParser) -> None:
    from trainer.__main__ import add_arguments

    add_arguments(parser)


def _trial(arguments: argparse.Namespace) -> int:
    from trainer.__main__ import run

    return run(arguments)


def _add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="sweep to open at; default: the newest")
    _add_storage(parser)
    parser.add_argument("--port", metavar="N", type=int, default=5000, help="on 127.0.0.1; 0 takes a free one (5000)")
    parser.add_argument("--no-browser", action="store_true", help="only print the link")


def _ui(arguments: argparse.Namespace) -> int:
    from sweep.tracking import serve

    arguments.name = arguments.name or _newest(arguments.storage)
    plan = _find_plan(arguments)
    return serve(plan, port=arguments.port, browser=not arguments.no_browser, say=_console.print)


def _newest(storage: str | None) -> str:
    from sweep.plan import list_sweeps, storage_folder

    folder = storage_folder(storage)
    sweeps = list_sweeps(folder)
    if not sweeps:
        raise InputError(f"no sweep in {folder} yet: run one with otsweep run")
    return sweeps[0]


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a sweep; A1,A2,A3 for the same one on several seeds")
    parser.add_argument("b", help="another")
    _add_storage(parser)


def _compare(arguments: argparse.Namespace) -> int:
    from sweep.report import (
        compare_sweeps,
        comparison_markdown,
        comparison_metrics,
        comparison_tables,
        comparison_verdict,
        read_side,
        write_comparison_files,
    )
    from sweep.tracking import write_comparison

    a, b = (read_side(names, storage=arguments.storage) for names in (arguments.a, arguments.b))
    with ProgressLine(sys.stderr) as line:
        line.update("Comparing ...", now=True)
        comparison = compare_sweeps(a, b)
        folder = write_comparison_files(comparison)
    _console.print(f"A: {a.name}\nB: {b.name}", markup=False)
    _console.print(comparison_verdict(comparison), "", sep="\n", markup=False, soft_wrap=False)
    for table in comparison_tables(comparison):
        _console.print(table, "", sep="\n", soft_wrap=False)
    _console.print(f"picture  {folder / 'compare.png'}\nnumbers  {folder / 'compare.json'}", markup=False)
    plan = a.sweeps[0].plan
    try:
        link = write_comparison(
            plan,
            f"{a.name} vs {b.name}",
            metrics=comparison_metrics(comparison),
            note=lambda run: comparison_markdown(comparison, run),
            folder=folder,
            time=max(record.ended or 0.0 for record in (*a.trials, *b.trials)),
            say=_errors.print,
        )
    except InputError as error:
        _errors.print(str(error), markup=False)
        return _FAILED
    address = plan.mlflow_uri if plan.mlflow_uri.startswith("http") else "http://127.0.0.1:5000"
    _console.print(f"MLflow   {address}{link}", markup=False)
    return _DONE


def _add_sync(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--mlflow-uri", metavar="URI", help="write into this server or store; default: the sweep's")


def _sync(arguments: argparse.Namespace) -> int:
    from sweep.plan import absolute_uri
    from sweep.tracking import sync as run_sync

    plan = _find_plan(arguments)
    uri = plan.mlflow_uri if arguments.mlflow_uri is None else absolute_uri(arguments.mlflow_uri)
    line = ProgressLine(sys.stderr)
    with _mlflow_progress(line) as tell:
        results = run_sync(plan, uri, say=line.log, tell=tell)
    if not results.trials:
        _console.print(f"{plan.name} has no trial yet: there is nothing to write.")
        return _DONE
    _console.print(f"{plan.name}: all {len(results.trials)} trials are in MLflow at {uri}", markup=False)
    return _DONE


_Add = Callable[[argparse.ArgumentParser], None]
_Run = Callable[[argparse.Namespace], int]

COMMANDS: dict[str, tuple[_Add, _Run, str]] = {
    "run": (_add_run, _run, "Run a sweep on this machine, or on the Ray cluster that this runs in."),
    "plan": (_add_plan, _plan, "Tell how long a sweep would take, and what it would leave behind, before it is run."),
    "submit": (_add_submit, _submit, "Send a sweep to a Ray cluster, as a job."),
    "jobs": (_add_address, _show_jobs, "List the sweeps of a cluster."),
    "logs": (_add_logs, _logs, "Show what a job says."),
    "stop": (_add_job, _stop, "End a job as Ctrl-C would; `resume` goes on with it."),
    "resume": (_add_resume, _resume, "Go on with a sweep after any crash or Ctrl-C, here or on a cluster."),
    "front": (_add_front, _front, "Show the front of a sweep, also of one that still runs."),
    "replay": (_add_replay, _replay, "Tell what another way of stopping trials early would have saved and lost."),
    "audit": (_add_audit, _audit, "Train the finalists again and judge them on the test split by every attack."),
    "trial": (_add_trial, _trial, "Train and judge one configuration, here, without Ray."),
    "compare": (_add_compare, _compare, "Compare the fronts of two sweeps, or of one on several seeds with another."),
    "sync": (_add_sync, _sync, "Bring MLflow up to date from the sweep's ledger, also another server or store."),
    "ui": (_add_ui, _ui, "Open MLflow on this machine's store, at the front."),
}


if __name__ == "__main__":
    sys.exit(main())

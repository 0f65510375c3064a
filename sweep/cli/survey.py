"""The page of `people NAME`: served until Ctrl-C, then how far the people agree with the judge and with each other."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from typing import TYPE_CHECKING

from sweep.cli.console import DONE, console, find_plan, program
from trainer.human_agreement import Share
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from rich.table import Table

    from sweep.people import AnswerLog
    from sweep.plan import SweepPlan
    from trainer.invariance import Prepared

_LOOK_SECONDS = 0.5
"""Time between two looks at how many answers there are."""


def add_survey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a sweep: ask people on a page what its perturbed images show")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="images of a new survey (default: 100)")
    parser.add_argument("--show", action="store_true", help="show what people answered so far, without the page")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address of the page (default: 127.0.0.1, this machine)"
    )
    parser.add_argument("--port", type=int, default=0, metavar="PORT", help="port of the page (default: a free one)")


def survey(arguments: argparse.Namespace) -> int:
    """Ask people about a sweep's images until Ctrl-C, then show their agreement."""
    from sweep.people import AnswerLog, SurveyServer, open_survey
    from trainer.errors import InputError

    if not 1 <= arguments.images <= 10_000:
        raise InputError(f"--images {arguments.images}: must be from 1 to 10000")
    plan = find_plan(arguments)
    log = AnswerLog(open_survey(plan, arguments.images, lambda: _prepare(plan)))
    fit = _fit_command(plan, log)
    if not arguments.show:
        with SurveyServer(log, fit=fit, host=arguments.host, port=arguments.port) as server:
            console.print(f"Open {server.address} and answer. Ctrl-C ends the page; all answers stay.", markup=False)
            _wait(log)
        log.write_votes()
    if arguments.format == "json":
        print(json.dumps(_plain(log), indent=2))
        return DONE
    if not log.people:
        console.print("Nobody has answered yet.")
        return DONE
    console.print(_agreement_table(log), soft_wrap=False)
    for line in [*_lines(log), f"fit      {fit}"]:
        console.print(line, markup=False)
    return DONE


def _fit_command(plan: SweepPlan, log: AnswerLog) -> str:
    """Return the command that fits a crowd on the answers, for sweeps of the same storage."""
    from sweep.plan import storage_folder

    words = [program(), "people", "--fit", str(log.votes_folder), "--crowd", "mine"]
    words += ["--dataset", plan.space.evaluation.dataset] if plan.space.evaluation.dataset != "mnist" else []
    words += ["--storage", plan.storage] if plan.storage != str(storage_folder()) else []
    return shlex.join(words)


def _prepare(plan: SweepPlan) -> Prepared:
    """Return the sweep's judging set and judge, from its cache or made now."""
    from sweep.engine import make_task, prepare_shared

    with ProgressLine(sys.stderr) as line:
        return prepare_shared(make_task(plan), lambda stage, done, total: line.show(f"preparing: {stage}", done, total))


def _wait(log: AnswerLog) -> None:
    """Show how many answers there are, until Ctrl-C."""
    total = len(log.survey.images)
    with ProgressLine(sys.stderr) as line:
        try:
            while True:
                each = [f"{person} {len(log.of(person))} of {total}" for person in log.people]
                line.update(", ".join(each) or "nobody has answered yet")
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            return


def _agreement_table(log: AnswerLog) -> Table:
    from sweep.people import agreement_of
    from sweep.report import plain_table

    headings = ("person", "answered", "right where\nunchanged", "sees a\nchange", "predicted", "agrees with\nthe judge")
    table = plain_table(*headings, "log\nloss")
    for each in agreement_of(log):
        table.add_row(
            each.person,
            f"{each.answered.hits} of {each.answered.size}",
            _shown(each.right),
            _shown(each.changed),
            f"{each.predicted_changed:.0%}",
            _shown(each.agrees),
            f"{each.log_loss:.2f}",
        )
    return table


def _lines(log: AnswerLog) -> list[str]:
    from sweep.people import pair_agreement

    pairs = pair_agreement(log)
    among = [f"People gave each other's answer in {_shown(pairs)} of their common images."] if pairs.size else []
    return [*among, f"votes    {log.votes_folder}"]


def _plain(log: AnswerLog) -> dict[str, object]:
    from sweep.people import agreement_of, pair_agreement

    people = [{**each._asdict(), **_plain_shares(each._asdict())} for each in agreement_of(log)]
    return {"people": people, "pairs": pair_agreement(log)._asdict(), "votes": str(log.votes_folder)}


def _plain_shares(fields: dict[str, object]) -> dict[str, object]:
    return {name: value._asdict() for name, value in fields.items() if isinstance(value, Share)}


def _shown(share: Share) -> str:
    """Return a share with Wilson's interval at 95%, such as "25% (10 to 49%)"; a dash for none."""
    from trainer.intervals import wilson_interval

    if not share.size:
        return "-"
    low, high = wilson_interval(share.hits, share.size)
    return f"{share.value:.0%} ({100 * low:.0f} to {100 * high:.0f}%)"

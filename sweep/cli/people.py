"""The command `people`: people asked on a page, and the judge held against people."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.cli.console import DONE, add_format, add_storage, check_format, console, program
from sweep.cli.survey import add_survey, survey
from trainer.config import usual_evaluation
from trainer.crowds import Prediction, crowd_for, crowd_line, crowds_for
from trainer.errors import InputError
from trainer.own_crowds import CROWDS, check_own_name, find_crowd, write_crowd
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from trainer.data import Data
    from trainer.invariance import Calibration, Judge


def add_people(parser: argparse.ArgumentParser) -> None:
    add_survey(parser)
    parser.add_argument(
        "--predict", type=Path, metavar="IMAGES.npy", help="write what a crowd of people would say to these images"
    )
    parser.add_argument("--dataset", metavar="NAME", default="mnist", help="the images' data set (default: mnist)")
    parser.add_argument(
        "--crowd", metavar="NAME", help="strict (default), lenient or one's own; with --fit VOTES the new crowd's name"
    )
    parser.add_argument("--out", type=Path, metavar="SHARES.npy", help="file for the shares, (images, classes) float32")
    parser.add_argument(
        "--fit",
        nargs="?",
        const="",
        metavar="VOTES",
        help="fit the crowd that --crowd names on a folder of votes, for all sweeps in the storage; without a folder, "
        "fit strict and lenient anew on the answers in the data folder, and show how well they predict them",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with data sets (or OTSWEEP_DATA_DIR)")
    add_storage(parser)
    add_format(parser, ("table", "json"))


def people(arguments: argparse.Namespace) -> int:
    check_format(arguments)
    arguments.dataset = usual_evaluation(arguments.dataset).dataset
    if arguments.fit is not None:
        return _fit_own(arguments) if arguments.fit else _fit(arguments)
    if arguments.predict:
        return _predict(arguments)
    if arguments.name:
        return survey(arguments)
    raise InputError("people: name a sweep, or give --predict IMAGES.npy with --out SHARES.npy, or --fit")


def _predict(arguments: argparse.Namespace) -> int:
    """Write the shares of a crowd for a file of images."""
    import numpy as np

    from trainer.files import write_whole
    from trainer.invariance import read_perturbed

    crowd = crowd_for(arguments.dataset, find_crowd(arguments.crowd or "strict", _storage(arguments)))
    if arguments.out is None or not arguments.out.absolute().parent.is_dir():
        raise InputError(f"--out {str(arguments.out or '')!r}: must name a file in a folder that exists")
    data = _open_data(arguments)
    images = read_perturbed(arguments.predict, data.shape)
    judge = _open_judge(arguments, data)
    shares, buffer = judge.shares(images, crowd).numpy().astype(np.float32), io.BytesIO()
    np.save(buffer, shares)
    try:
        write_whole(arguments.out, buffer.getvalue())
    except OSError as error:
        raise InputError(f"--out {str(arguments.out)!r}: can't be written: {error}") from None
    console.print(f"{arguments.out}: {shares.shape} shares, by the judge: {crowd_line(crowd)}.", markup=False)
    return DONE


def _fit(arguments: argparse.Namespace) -> int:
    """Fit the crowds on the people's answers in the data folder, and show how well they predict them."""
    from trainer.invariance import calibrate

    folder = arguments.data_dir or os.environ.get("OTSWEEP_DATA_DIR")
    if not folder:
        raise InputError("--fit: name the folder with people's answers with --data-dir or OTSWEEP_DATA_DIR")
    if arguments.dataset != "mnist":
        raise InputError(f"--fit --dataset {arguments.dataset!r}: people's answers are of mnist alone")
    data = _open_data(arguments)
    judge = _open_judge(arguments, data)
    found = calibrate(judge, data.test, Path(folder), classes=data.classes)
    if arguments.format == "json":
        print(json.dumps([dataclasses.asdict(each.crowd) for each in found], indent=2))
        return DONE
    console.print(*_fitted_lines(found), "", *_quality_lines(found), sep="\n", markup=False)
    return DONE


def _fit_own(arguments: argparse.Namespace) -> int:
    """Fit a crowd of one's own on a folder of votes, keep it in the storage, and show how well it predicts them."""
    from sweep.plan import open_storage, push_remote
    from trainer.invariance import calibrate_on

    if arguments.crowd is None:
        raise InputError("--fit VOTES: name the new crowd with --crowd NAME")
    name, folder = check_own_name(arguments.crowd), Path(arguments.fit).expanduser()
    if not folder.is_dir():
        raise InputError(f"--fit {arguments.fit!r}: no such folder; a sweep's votes lie in its folder's people/votes")
    storage, data = open_storage(arguments.storage), _open_data(arguments)
    crowd = calibrate_on(_open_judge(arguments, data), data, folder, name)
    path = write_crowd(storage, crowd)
    push_remote(path.parent)
    if arguments.format == "json":
        print(json.dumps({**dataclasses.asdict(crowd), "file": str(path)}, indent=2))
        return DONE
    (quality,) = crowd.predictions
    console.print(f"{name}: {crowd.numbers_text}", "", sep="\n", markup=False)
    console.print(*_prediction_lines(name, quality, "cross-validated"), *_width_lines(quality), sep="\n", markup=False)
    elsewhere = f" --storage {shlex.quote(arguments.storage)}" if arguments.storage else ""
    console.print(f"\ncrowd    {path}\nuse it   {program()} run SPACE --crowd {name}{elsewhere}", markup=False)
    return DONE


def _width_lines(quality: Prediction) -> Iterator[str]:
    """Yield which numbers of a prediction are known too vaguely, and how many images would tell them better."""
    for name, measured, wide in (("changed share", quality.changed, 0.05), ("AUC", quality.auc, 0.1)):
        half = (measured.interval.high - measured.interval.low) / 2
        if half > wide:
            needed = math.ceil(quality.images * (half / wide) ** 2)
            yield f"The {name} is known to ±{half:.2f} from {quality.images} images; {needed} tell it to ±{wide:g}."
    if math.isnan(quality.auc.value):
        yield "AUC is not known: it needs images that most people see changed, and others that most do not."


def _open_data(arguments: argparse.Namespace) -> Data:
    """Return the data set that is named, in its usual sizes."""
    from trainer.data import load_data

    return load_data(
        usual_evaluation(arguments.dataset), data_dir=arguments.data_dir, cache_dir=_cache_folder(arguments)
    )


def _open_judge(arguments: argparse.Namespace, data: Data) -> Judge:
    """Return the judge of a data set, trained now where the cache lacks it."""
    from trainer.invariance import open_judge

    with ProgressLine(sys.stderr) as line:
        return open_judge(
            data,
            usual_evaluation(arguments.dataset),
            cache_dir=_cache_folder(arguments),
            progress=lambda stage, done, total: line.show(f"preparing: {stage}", done, total),
        )


def _storage(arguments: argparse.Namespace) -> Path:
    """Return the storage folder, with the crowds in it as its URL has them, if it follows one."""
    from sweep.plan import pull_remote, storage_folder

    folder = storage_folder(arguments.storage)
    pull_remote(folder / CROWDS)
    return folder


def _cache_folder(arguments: argparse.Namespace) -> Path:
    from sweep.plan import CACHE, storage_folder

    return storage_folder(arguments.storage) / CACHE


def _fitted_lines(found: list[Calibration]) -> Iterator[str]:
    """Yield the numbers of every crowd as fitted now, and as they stand in the code."""
    known = {crowd.name: crowd for crowd in crowds_for("mnist")}
    for crowd, _ in found:
        yield f"{crowd.name}: {crowd.numbers_text}; in the code {known[crowd.name].numbers_text}"


def _quality_lines(found: list[Calibration]) -> Iterator[str]:
    """Yield how well each crowd predicts people: cross-validated on those it was fitted on, else plainly."""
    for crowd, elsewhere in found:
        for each in crowd.predictions:
            yield from _prediction_lines(crowd.name, each, "cross-validated")
        for each in elsewhere:
            yield from _prediction_lines(crowd.name, each, "not fitted on")


def _prediction_lines(name: str, prediction: Prediction, how: str) -> Iterator[str]:
    """Yield the numbers of a prediction, each with its 95% interval over sources."""
    images, saw = prediction.images, prediction.people_changed
    yield f"{name}, {prediction.people} ({images} images, {how}): saw {saw:.3f} changed"
    named = {"predicted": prediction.changed, "Brier": prediction.brier}
    named |= {"log loss": prediction.log_loss, "AUC": prediction.auc}
    yield "  " + ", ".join(
        f"{key} {value:.3f} ({low:.3f} to {high:.3f})" for key, (value, (low, high)) in named.items()
    )

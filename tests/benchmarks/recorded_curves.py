"""Learning curves of studies' trials: recorded from their ledgers, and drawn from in place of training.

A table has a row for every finished trial: the knobs that differ between the trials, every objective after each epoch,
and what the trial ended with, which is judged harder than its epochs. A drawn configuration stands for the recorded
trial that is nearest to it and has not stood for another yet.

    python -m tests.benchmarks.recorded_curves TABLE.parquet SWEEP_FOLDER ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import rankdata

from sweep.ledger import read_ledger
from sweep.plan import read_plan
from sweep.plan.objectives import OBJECTIVES

_KNOB, _FINAL = "config.", "final."


class Course(NamedTuple):
    """What a trial reports: objectives (epochs, d) after every epoch, and at the end (d,)."""

    config: dict[str, Any]
    """Its configuration, as far as trials differ in it."""

    reports: np.ndarray
    final: np.ndarray


class RecordedTrials:
    """The trials of a table, in the order in which they were recorded."""

    def __init__(self, path: Path) -> None:
        table = pq.read_table(path)
        names = OBJECTIVES.names
        reports = np.stack([np.array(table[name].to_pylist()) for name in names], axis=2)
        finals = np.stack([table[_FINAL + name].to_numpy() for name in names], axis=1)
        knobs = table.select([name for name in table.column_names if name.startswith(_KNOB)])
        knobs = knobs.rename_columns([name.removeprefix(_KNOB) for name in knobs.column_names])
        self.courses = [Course(*each) for each in zip(knobs.to_pylist(), reports, finals, strict=True)]
        self._values = knobs.to_pydict()
        self._words = {name: sorted(set(each)) for name, each in self._values.items() if isinstance(each[0], str)}
        """What the knobs that take words may be."""
        self._places = {name: self._encode(name) for name in self._values}

    def _encode(self, name: str) -> np.ndarray:
        """Return the place (n,) of each trial's value: a word's index; a number's rank, from 0 to 1."""
        if name in self._words:
            return np.array([self._words[name].index(value) for value in self._values[name]])
        ranks = rankdata(self._values[name])
        return (ranks - ranks.min()) / np.ptp(ranks)

    def draw(self, trial: optuna.Trial, used: set[int]) -> Course:
        """Return the trial that is nearest to a draw, by Gower's distance (1971), and add its number to the used.

        Args:
            used: numbers of trials that are passed over.
        """
        distances = np.zeros(len(self.courses))
        for name, places in self._places.items():
            if name in self._words:
                distances += places != trial.suggest_categorical(name, range(len(self._words[name])))
            else:
                distances += np.abs(places - trial.suggest_float(name, 0, 1))
        distances[sorted(used)] = np.inf
        used.add(nearest := int(distances.argmin()))
        return self.courses[nearest]


def record(path: Path, folders: Iterable[Path]) -> int:
    """Write the finished trials of sweeps, all judged alike, into a table; return their number."""
    evaluations, versions, rows = set(), set(), []
    for folder in folders:
        plan = read_plan(str(folder.name), storage=str(folder.parent))
        # Their validation images differ by the seed of the split alone.
        evaluations.add(str(plan.space.evaluation.replace(split_seed=0)))
        versions.add(plan.code_version)
        for trial in read_ledger(folder).trials.values():
            if trial.state != "finished" or trial.result is None:
                continue
            epochs = [report for report in trial.reports if not report["final"]]
            told = {name: [report[name] for report in epochs] for name in OBJECTIVES.names}
            final = {_FINAL + name: trial.result[name] for name in OBJECTIVES.names}
            rows.append((trial.config, {"sweep": folder.name, "trial": trial.number, **told, **final}))
    if len(evaluations) > 1:
        raise SystemExit("the sweeps are judged in different ways: " + "; ".join(sorted(evaluations)))
    differ = [name for name in rows[0][0] if len({config[name] for config, _ in rows}) > 1 and name != "seed"]
    table = pa.Table.from_pylist([{**row, **{_KNOB + name: config[name] for name in differ}} for config, row in rows])
    about = {"code_version": ", ".join(sorted(versions)), "evaluation": evaluations.pop()}
    pq.write_table(table.replace_schema_metadata(about), path, compression="zstd")
    return len(rows)


if __name__ == "__main__":
    print(record(Path(sys.argv[1]), map(Path, sys.argv[2:])), "trials")

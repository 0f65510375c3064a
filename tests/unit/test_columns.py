"""The ledger's table explains itself to whoever opens it without this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sweep.report.files import write_ledger_table
from tests.support.recorded_sweeps import recorded, results_of
from trainer.config import TrialConfig
from trainer.fields import field_docs
from trainer.report import EpochReport


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    plan = recorded("digits24", folder)
    write_ledger_table(plan, results_of(plan), folder / "ledger.parquet")
    return folder / "ledger.parquet"


def test_every_column_is_described_to_arrow_and_in_the_files_own_metadata(table: Path) -> None:
    schema = pq.read_schema(table)
    told = json.loads(pq.read_metadata(table).metadata[b"columns"])
    assert list(told) == schema.names
    for name in schema.names:
        metadata = {key.decode(): value.decode() for key, value in (schema.field(name).metadata or {}).items()}
        assert told[name].items() <= metadata.items()
        assert told[name]["description"] not in ("", "Further number of the trial's reports.")
    units = {name: each.get("unit") for name, each in told.items()}
    assert (units["train_seconds"], units["started"], units["trial"]) == ("s", "s since 1970-01-01 UTC", None)
    assert units["config.sensitivity_epsilon"].startswith("pixel value")  # type: ignore[union-attr]
    assert units["clean_accuracy"] == "share, from 0 to 1"
    assert "Training budget of the sensitivity attack" in told["config.sensitivity_epsilon"]["description"]


def test_the_front_is_a_column(table: Path) -> None:
    rows = pd.read_parquet(table)
    final = rows.loc[rows["final"].eq(True)]
    assert sorted(final["trial"]) == list(range(24))
    numbers = np.stack([final["sensitivity_accuracy"], final["invariance_accuracy"]], axis=1)
    beaten = [((numbers >= each).all(1) & (numbers > each).any(1)).any() for each in numbers]
    assert list(final["front"]) == [not one for one in beaten]


@pytest.mark.parametrize("record", [TrialConfig, EpochReport])
def test_the_fields_of_a_record_are_described_by_its_source(record: type) -> None:
    described = field_docs(record)
    undescribed = set(record.__dataclass_fields__) - described.keys()  # type: ignore[attr-defined]
    assert undescribed <= {"learning_rate", "train_seconds"}
    assert all(text.endswith(".") and "\n" not in text for text in described.values())

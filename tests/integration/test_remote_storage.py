"""Storage at a URL, on a real S3 server on the loopback address: a sweep is killed and goes on from what is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.paths import storage_folder
from sweep.plan.remote_storage import MARK, UrlStore, folder_of, pull_remote, push_remote, url_of
from tests.support.commands import call
from tests.support.ray_nodes import answers, end, free_ports, kill, start, wait_for
from trainer.errors import InputError

SPACE = """
trials: 3
evaluation: {dataset: digits, train_size: 200, validation_size: 60, eval_sensitivity_steps: 1}
space:
  architecture: mlp
  batch_size: 50
  epochs: 20
  cross_entropy_on: clean
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.01}
"""
TIMES = ("train_seconds", "evaluation_seconds", "time")


class Bucket(NamedTuple):
    """An empty bucket."""

    url: str
    settings: dict[str, str]
    """With which the environment reaches it."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    if find_spec("moto") is None or find_spec("flask_cors") is None:
        pytest.skip("needs the S3 server of moto[server]")
    folder, (port,) = tmp_path_factory.mktemp("s3"), free_ports(1)
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = start(words, folder, "moto", dict(os.environ))
    keys = {"AWS_ACCESS_KEY_ID": "planted-id", "AWS_SECRET_ACCESS_KEY": "planted-secret", "AWS_REGION": "us-east-1"}
    settings = {**keys, "AWS_ENDPOINT_URL": address}
    try:
        wait_for(lambda: answers(f"{address}/moto-api/"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**settings, "XDG_CACHE_HOME": str(folder / "here")}.items():
                patch.setenv(name, value)
            UrlStore("s3://sweeps?allow_bucket_creation=true").root[0].create_dir("sweeps")
            yield Bucket("s3://sweeps/all", settings)
    finally:
        end(server)


@pytest.mark.slow
def test_a_store_at_a_url_is_like_a_folder(bucket: Bucket) -> None:
    store = UrlStore(f"{bucket.url}/store")
    assert store.names() == []
    store.write("b", b"2")
    store.write("a", b"1")
    store.write("a", b"3")
    assert store.names() == ["a", "b"]
    assert store.read("a") == b"3"
    store.delete("a")
    store.delete("a")
    assert store.names() == ["b"]
    with pytest.raises(OSError, match="a"):
        store.read("a")
    with pytest.raises(InputError, match="cannot write s3://nowhere/a"):
        UrlStore("s3://nowhere").write("a", b"")


@pytest.mark.slow
def test_a_name_at_a_url_does_not_lead_out_of_the_folder(bucket: Bucket) -> None:
    import boto3  # comes with moto

    client = boto3.client("s3", endpoint_url=bucket.settings["AWS_ENDPOINT_URL"])
    client.put_object(Bucket="sweeps", Key="planted/name/../../../../planted", Body=b"")
    with pytest.raises(InputError, match=r"holds 'name/\.\./\.\./\.\./\.\./planted', a name that leads out"):
        pull_remote(storage_folder("s3://sweeps/planted"))


@pytest.mark.slow
def test_a_folder_follows_its_url(bucket: Bucket) -> None:
    url = f"{bucket.url}/follow"
    folder = storage_folder(url)
    assert folder == folder_of(url)
    assert url_of(folder / "name" / "ledger") == f"{url}/name/ledger"
    (folder / "name" / "ledger").mkdir(parents=True)
    (folder / "name" / "plan.yaml").write_text("a plan")
    (folder / "name" / "ledger" / "part").write_text("events")
    push_remote(folder / "name")
    UrlStore(f"{url}/name/trials/0000").write("checkpoint", b"")
    UrlStore(f"{url}/name/ledger").delete("part")
    UrlStore(f"{url}/name/ledger").write("log.jsonl", b"newer")
    UrlStore(f"{url}/name").write(MARK, b"s3://stranger/all")
    (folder / "name" / "plan.yaml").write_text("changed here alone")
    pull_remote(folder / "name")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - {MARK} == {"name/plan.yaml", "name/ledger/log.jsonl", "name/.pull.lock"}
    assert (folder / "name" / "plan.yaml").read_text() == "a plan"


def test_a_plain_folder_follows_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    push_remote(tmp_path / "file")
    pull_remote(tmp_path)
    assert url_of(tmp_path) is None
    assert storage_folder(f"file://{tmp_path}") == tmp_path


def test_a_mark_that_was_not_made_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a folder from elsewhere can't say where everything is sent."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = folder_of("s3://bucket/all")
    assert url_of(own / "name") == "s3://bucket/all/name"
    for folder in (tmp_path / "unpacked", own / "name"):
        folder.mkdir(exist_ok=True)
        (folder / MARK).write_text("s3://stranger/all")
        with pytest.raises(InputError, match="names a URL that this folder is to follow, but was not made here"):
            url_of(folder / "ledger")


def numbers(folder: Path, name: str) -> dict[int, tuple[str, dict, list[dict]]]:
    def timeless(record: TrialRecord) -> list[dict]:
        return [{key: value for key, value in report.items() if key not in TIMES} for report in record.reports]

    trials = read_ledger(folder / name).trials
    return {number: (record.state, record.config, timeless(record)) for number, record in trials.items()}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_elsewhere_from_the_url(bucket: Bucket, tmp_path: Path) -> None:
    """On the second machine nothing is known but the URL."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    mlflow = f"sqlite:///{tmp_path}/mlflow.db"

    def words(*said: str) -> list[str]:
        return [sys.executable, "-m", "sweep", *said, "--storage", bucket.url]

    def run(name: str) -> list[str]:
        space = str(tmp_path / "tiny.yaml")
        return words("run", space, "--name", name, "--max-concurrent", "1", "--mlflow-uri", mlflow)

    def machine(name: str) -> dict[str, str]:
        return {**os.environ, **bucket.settings, "XDG_CACHE_HOME": str(tmp_path / name)}

    # Forked, with a Ray of its own: it has the bucket's keys in its environment.
    without = call(words("run", "digits"), joins=False, env=machine("a"), cwd="/")
    whole = call(run("whole"), joins=False, env=machine("a"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    killed = start(run("killed"), tmp_path, "killed", machine("a"))
    log = UrlStore(f"{bucket.url}/killed/ledger")
    wait_for(lambda: "log.jsonl" in log.names() and log.read("log.jsonl").count(b'"reported"') > 25)
    kill(killed)
    resumed = call(words("resume", "killed"), joins=False, env=machine("b"))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for name in ("whole", "killed"):
        pull_remote(storage_folder(bucket.url) / name)
    folder = storage_folder(bucket.url)
    assert numbers(folder, "killed") == numbers(folder, "whole")
    attempts = [record.attempts for record in read_ledger(folder / "killed").trials.values()]
    assert sorted(attempts) == [1, 1, 2]
    assert {"front.png", "ledger.parquet", "plan.yaml"} <= set(UrlStore(f"{bucket.url}/killed").names())
    front = call(words("front", "killed"), joins=False, env=machine("c"))
    assert "front of" in front.stdout, front.stderr
    assert without.returncode == 2
    assert "holds no database; give --mlflow-uri" in without.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in written if b"planted-secret" in content]

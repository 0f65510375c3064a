"""The commands of docker/compose.yaml, as processes on the loopback address instead of containers.

A head without slots, two workers, MLflow with its users on a real PostgreSQL: a sweep is sent, workers (one of them
after a warning) and MLflow are killed in the middle, and the front is that of an undisturbed sweep. Where these tests
may, they confine each process as the file does: a root that can't be written, no capability, no new privilege.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from tests.support.commands import call, front
from tests.support.postgres import Postgres, need_postgres
from tests.support.ray_nodes import RAY, answers, end, environment, free_ports, kill, need_jobs, start, wait_for

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SPACE = """
trials: 4
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 2}
space:
  architecture: mlp
  batch_size: 50
  epochs: 150
  cross_entropy_on: clean
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.01}
"""
CONFINED = "mount --rbind /tmp /tmp && mount -o remount,bind,ro / && exec setpriv --no-new-privs --inh-caps=-all "
CONFINED += '--bounding-set=-all "$@"'
TIMES = ("train_seconds", "evaluation_seconds", "time")


@functools.cache
def confined() -> tuple[str, ...]:
    """Return the words that run a command as `read_only`, `cap_drop` and `no-new-privileges` do; none if not root."""
    words = ("unshare", "-m", "sh", "-c", CONFINED, "sh")
    if shutil.which("unshare") is None:
        return ()
    tried = subprocess.run([*words, "touch", "/usr/written"], capture_output=True, text=True)
    return words if "Read-only file system" in tried.stderr else ()


class Compose:
    """What `docker compose up` would start, with this machine's own ports and folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        gcs, dashboard, client, mlflow, database = free_ports(5)
        self.dashboard, self.mlflow, self.database = (
            f"http://127.0.0.1:{dashboard}",
            f"http://127.0.0.1:{mlflow}",
            database,
        )
        names = ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY")
        self.values = {name: secrets.token_hex(16) for name in names}
        self.values["OTSWEEP_WORKER_CPUS"] = "1"
        self.places = {
            "http://mlflow:5000": self.mlflow,
            "/etc/otsweep": f"{ROOT}/docker",
            "head:6379": f"127.0.0.1:{gcs}",
            "--port=6379": f"--port={gcs}",
            "--port=5000": f"--port={mlflow}",
            "127.0.0.1:5000": f"127.0.0.1:{mlflow}",
            "--dashboard-port=8265": f"--dashboard-port={dashboard}",
            "0.0.0.0": "127.0.0.1",
            "/storage": f"{folder}/storage",
            "=/artifacts": f"={folder}/artifacts",
        }
        self.alone = {
            "head": [f"--ray-client-server-port={client}", "--node-ip-address=127.0.0.1"],
            "worker": ["--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"],
        }
        """Of which each container has its own, and the processes of one machine can't."""
        self.running: list[subprocess.Popen[bytes]] = []

    def here(self, text: str) -> str:
        """A text of the file with its variables filled in, and its places on this machine."""
        text = re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda match: self.values.get(match[1], match[2] or ""), text)
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def up(
        self, service: str, name: str = "", within: Sequence[str] = (), *, tries: int = 3
    ) -> subprocess.Popen[bytes]:
        """A service's process; a worker that gave up (Ray gives a node 30 seconds to start) is started again, as the
        file's restart policy has it."""
        words = [self.here(word) for word in COMPOSE["services"][service]["command"]] + self.alone.get(service, [])
        name = name or service
        if "start" in words:
            # Of its own, as in a container: nodes that share a folder delete each other's packages.
            words += [f"--dashboard-agent-listen-port={free_ports(1)[0]}", f"--temp-dir={self.folder}/{name}"]
        module = {"ray": "ray.scripts.scripts", "mlflow": "mlflow"}[words[0]]
        settings = {key: self.here(value) for key, value in COMPOSE["services"][service]["environment"].items()}
        if service == "mlflow":
            settings |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.database)}
        home = self.folder / "home" / name
        home.mkdir(parents=True, exist_ok=True)
        command = [*within, *confined(), sys.executable, "-m", module, *words[1:]]
        settings = environment(PYTHONPATH="", HOME=str(home), **settings)
        self.running.append(start(command, self.folder, name, settings))
        if service == "worker":
            log = self.folder / f"{name}.log"
            started = self.running[-1]
            wait_for(lambda: "block forever" in log.read_text() or started.poll() is not None)
            if started.poll() is not None:
                assert tries > 1, log.read_text()[-2000:]
                return self.up(service, name, within, tries=tries - 1)
        return self.running[-1]

    def up_postgres(self) -> None:
        """As the image does: one superuser with a password, one database."""
        settings = COMPOSE["services"]["postgres"]["environment"]
        postgres = Postgres(
            self.folder,
            port=self.database,
            user=settings["POSTGRES_USER"],
            password=self.values["POSTGRES_PASSWORD"],
            database=settings["POSTGRES_DB"],
            initdb=(settings["POSTGRES_INITDB_ARGS"],),
        )
        self.running.append(postgres.process)

    def workers(self) -> set[str]:
        """Ray's names of the nodes beside the head that it takes for alive."""
        headers = {"Authorization": f"Bearer {self.values['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/v0/nodes", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]}

    def warn_of(self, node: str) -> None:
        """As a cloud does before it takes a machine back."""
        words = [
            "drain-node",
            f"--address={self.here('head:6379')}",
            f"--node-id={node}",
            "--reason-message=taken back",
        ]
        words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds=30"]
        settings = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=self.values["RAY_AUTH_TOKEN"])
        done = subprocess.run([*RAY, *words], env=settings, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr

    def otsweep(self, *words: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "sweep", *words, "--address", self.dashboard)
        return call([*words], joins=False, env=environment(RAY_AUTH_TOKEN=self.values["RAY_AUTH_TOKEN"]))

    def submit(self, name: str, *words: str) -> None:
        (self.folder / "tiny.yaml").write_text(SPACE)
        space = str(self.folder / "tiny.yaml")
        # Random draws: the order in which results come, which no two runs share, then can't matter.
        sent = self.otsweep("submit", space, "--name", name, "--sampler", "random", *words)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        assert f"MLflow   {self.mlflow}" in sent.stdout


@pytest.fixture(scope="module")
def compose(cache_dir: Path) -> Iterator[Compose]:
    need_jobs()
    need_postgres()
    with tempfile.TemporaryDirectory(prefix="otc-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "storage").mkdir()
        (folder / "storage" / "cache").symlink_to(cache_dir)
        made = Compose(folder)
        try:
            made.up_postgres()
            made.up("mlflow")
            made.up("head")
            wait_for(lambda: answers(f"{made.dashboard}/api/version", made.values["RAY_AUTH_TOKEN"]))
            wait_for(lambda: answers(f"{made.mlflow}/health"))
            yield made
        finally:
            for process in reversed(made.running):
                end(process)


def numbers(storage: Path, name: str) -> dict[int, tuple[str, dict, list[dict]]]:
    """States, configurations and every number but times."""

    def timeless(record: TrialRecord) -> list[dict]:
        return [{key: value for key, value in report.items() if key not in TIMES} for report in record.reports]

    trials = read_ledger(storage / name).trials
    return {number: (record.state, record.config, timeless(record)) for number, record in trials.items()}


@pytest.mark.slow
@pytest.mark.cluster
def test_workers_and_mlflow_are_killed_and_the_front_is_the_same(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = compose.folder / "storage"
    log = storage / "disturbed" / "ledger" / "log.jsonl"

    def events(kind: str) -> int:
        return log.read_bytes().count(b'"event":"%b"' % kind.encode()) if log.exists() else 0

    # With no node to run on the sweep waits: nothing fails.
    compose.submit("disturbed")
    first = compose.up("worker", "worker-1")
    [its_name] = compose.workers()
    second = compose.up("worker", "worker-2")
    [second_name] = compose.workers() - {its_name}
    wait_for(lambda: events("reported") > 10)
    kill(first)
    mlflow = compose.running[1]
    kill(mlflow)
    told = events("reported")
    wait_for(lambda: events("reported") > told + 10)
    # The last node goes too, with a warning, up to whose end its trial goes on; all is pending until another comes.
    compose.warn_of(second_name)
    told = events("reported")
    wait_for(lambda: events("reported") > told + 3)
    kill(second)
    compose.running[1] = compose.up("mlflow")
    compose.up("worker", "worker-3")
    compose.up("worker", "worker-4")
    ended = compose.otsweep("logs", "disturbed", "--follow")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4/4 done" in ended.stdout

    compose.submit("undisturbed")
    assert compose.otsweep("logs", "undisturbed", "--follow").returncode == 0
    assert numbers(storage, "disturbed") == numbers(storage, "undisturbed")
    assert front(storage, "disturbed")["front"] == front(storage, "undisturbed")["front"]

    trials = read_ledger(storage / "disturbed").trials
    lost = sum(record.attempts - 1 for record in trials.values())
    assert 1 <= lost <= 4, "nodes with one slot each were killed while they trained"
    # A lost node costs the epoch in flight alone: what was told before is not trained again.
    assert events("reported") <= sum(len(record.reports) for record in trials.values()) + lost
    check_mlflow(compose, trials, monkeypatch)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(os.getuid() != 0, reason="not root: only it may give a process a folder of its own")
def test_a_node_that_does_not_see_the_storage_is_named(compose: Compose) -> None:
    hide = f'mount -t tmpfs none {compose.folder}/storage && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", hide, "sh", "true"]).returncode:
        pytest.skip("not root enough: this kernel gives no mounts of one's own")
    blind = compose.up("worker", "worker-blind", within=["unshare", "-m", "sh", "-c", hide, "sh"])
    space = str(compose.folder / "tiny.yaml")
    refused = compose.otsweep("submit", space, "--name", "blind", "--seed", "7", "--wait")
    kill(blind)
    assert refused.returncode == 2, refused.stdout
    said = r"--storage \S+/storage: is not the same folder there \(node [\d.]+, [0-9a-f]{8}\)"
    assert re.search(said, refused.stdout)
    assert not (compose.folder / "storage" / "blind").exists(), "nothing began"


def check_mlflow(compose: Compose, trials: dict[int, TrialRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLflow missed while it was away was written later; who has no password reads nothing of it."""
    from sweep.tracking.store import connect

    search = urllib.request.Request(f"{compose.mlflow}/api/2.0/mlflow/experiments/search?max_results=1")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(search, timeout=30)
    settings = {"URI": compose.mlflow, "USERNAME": "admin", "PASSWORD": compose.values["MLFLOW_PASSWORD"]}
    for name, value in settings.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    client = connect(compose.mlflow)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:"), "artifacts pass through the server"
    query = "tags.`otsweep.sweep` = 'disturbed' and tags.`otsweep.kind` = 'sweep'"
    [parent] = client.search_runs([experiment.experiment_id], query)
    assert parent.info.status == "FINISHED", compose.otsweep("logs", "disturbed").stdout
    assert "front/front.png" in {file.path for file in client.list_artifacts(parent.info.run_id, "front")}
    runs = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(int(run.data.tags["otsweep.trial"]) for run in runs) == sorted(trials)
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "sensitivity_accuracy")
        record = trials[int(run.data.tags["otsweep.trial"])]
        assert {metric.step for metric in history} == {r["epoch"] for r in record.reports if not r["final"]}

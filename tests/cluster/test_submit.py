"""Sweeps sent to a real Ray head on the loopback address, which asks for a token: sent, followed, stopped, resumed."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from search_spaces.reading import load_space
from sweep.cluster import package
from sweep.cluster.access import check_address, read_token
from sweep.cluster.cluster import Job, exit_status
from sweep.cluster.info import ClusterInfo, differences, find_answer
from sweep.cluster.package import pack
from sweep.cluster.submission import Submission, refuse_duplicate
from sweep.cluster.submit import free_id
from sweep.ledger.reading import read_ledger
from sweep.plan.plugins import plugins_of
from tests.support.commands import call
from tests.support.ray_nodes import LOOPBACK, RAY, answers, end, environment, free_ports, need_jobs, start, wait_for
from trainer.errors import InputError
from trainer.plugins import send_plugins

ROOT = Path(__file__).parents[2]
SPACE = """
trials: 3
evaluation: {dataset: digits, train_size: 200, validation_size: 60, eval_sensitivity_steps: 1}
space:
  architecture: mlp
  batch_size: 50
  epochs: 3
  cross_entropy_on: clean
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.01}
"""
PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": "planted-" + secrets.token_hex(16),
    "AWS_SECRET_ACCESS_KEY": "planted-" + secrets.token_hex(16),
}
"""Secrets that a cluster's own environment holds."""


class Head(NamedTuple):
    """A Ray head of this module's own."""

    address: str
    token: str
    folder: Path
    """With its session and the storage of its sweeps."""

    @property
    def storage(self) -> Path:
        return self.folder / "storage"


@pytest.fixture(scope="module")
def head(cache_dir: Path) -> Iterator[Head]:
    need_jobs()
    token, (port, dashboard, client, agent) = secrets.token_hex(16), free_ports(4)
    # Ray keeps sockets in its folder, and their paths are short.
    with tempfile.TemporaryDirectory(prefix="ots-") as folder:
        (Path(folder) / "storage").mkdir()
        (Path(folder) / "storage" / "cache").symlink_to(cache_dir)
        words = [*RAY, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        words += [f"--port={port}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        words += [
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            "--num-cpus=2",
            f"--temp-dir={folder}/ray",
        ]
        settings = environment(PYTHONPATH="", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, **PLANTED, **LOOPBACK)
        started = start(words, Path(folder), "head", settings)
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version", token))
            yield Head(f"http://127.0.0.1:{dashboard}", token, Path(folder))
        finally:
            end(started)


def otsweep(head: Head, *words: str, own: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "sweep", *words, "--address", head.address)
    return call([*words], own=own, joins=False, env=environment(**{"RAY_AUTH_TOKEN": head.token, **more}))


def submit(head: Head, name: str, *words: str, own: bool = False) -> subprocess.CompletedProcess[str]:
    space = head.folder / "tiny.yaml"
    space.write_text(SPACE)
    named = ("--name", name) if name else ()
    return otsweep(head, "submit", str(space), *named, "--storage", str(head.storage), *words, own=own)


@pytest.fixture(scope="module")
def sent(head: Head) -> subprocess.CompletedProcess[str]:
    return submit(head, "first", "--wait", "--verbose", own=True)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_sweep_is_sent_and_followed_to_its_front(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert f"job      first.1 on {head.address}" in sent.stdout
    assert re.search(r"sent     \d{3} files, \d\.\d MB: otsweep, tiny.yaml\n", sent.stdout)
    assert re.search(r"\n +[\d,]+  sweep/cluster/submit.py\n", sent.stdout)
    assert f"otsweep logs first.1 --follow --address {head.address}" in sent.stdout
    assert re.search(r"MLflow   otsweep ui first --storage \S+", sent.stdout)
    assert "3/3 done" in sent.stdout
    assert re.search(r"front of \d among 3 finished trials", sent.stdout)
    assert not re.search("Traceback|INFO|gcs://|Running entrypoint", sent.stdout + sent.stderr)
    assert [record.state for record in read_ledger(head.storage / "first").trials.values()] == ["finished"] * 3


@pytest.mark.slow
@pytest.mark.cluster
def test_what_runs_there_is_what_is_here(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    from sweep.plan.plan_file import read_plan
    from sweep.plan.version import code_version

    assert read_plan("first", storage=str(head.storage)).code_version == code_version()
    [package] = (head.folder / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    here = {path.relative_to(package) for path in package.rglob("*") if "__pycache__" not in path.parts}
    assert {Path("sweep/cluster/submit.py"), Path("trainer/training/trial.py"), Path("tiny.yaml")} <= here
    assert not {Path(".git"), Path(".venv"), Path("tests")} & here


@pytest.mark.slow
@pytest.mark.cluster
def test_jobs_and_logs_tell_of_it(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    listed = otsweep(head, "jobs")
    told = json.loads(otsweep(head, "jobs", "--format", "json").stdout)["jobs"]
    assert {job["sweep"] for job in told} <= set(listed.stdout.split())
    assert re.search(r"first\.1 +succeeded +20\d\d-\d\d-\d\d \d\d:\d\d +\d+:\d\d +first", listed.stdout)
    said = otsweep(head, "logs", "first").stdout
    assert said in sent.stdout
    assert "3/3 done" in said
    wrong = otsweep(head, "logs", "frist")
    assert wrong.returncode == 2
    assert "no job 'frist'" in wrong.stderr
    assert "first" in wrong.stderr


@pytest.mark.slow
@pytest.mark.cluster
def test_the_same_plan_is_refused_unless_named_anew(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    again = submit(head, "")
    assert (again.returncode, again.stdout) == (2, "")
    assert "this very plan is on this cluster as 'first', job first.1, succeeded" in again.stderr
    named = submit(head, "first")
    assert (named.returncode, named.stdout) == (2, "")
    assert "--name 'first': that sweep is on this cluster" in named.stderr


@pytest.mark.slow
@pytest.mark.cluster
def test_what_is_wrong_there_is_said_here(head: Head) -> None:
    refused = otsweep(head, "submit", "digits", "--name", "nowhere", "--storage", "/proc/nowhere")
    assert refused.returncode == 2, refused.stdout
    assert "--storage '/proc/nowhere': can't be written" in refused.stdout


@pytest.mark.slow
@pytest.mark.cluster
def test_two_sweeps_at_once_stopped_resumed_and_kept_apart(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    """The second goes on beside the first, which is stopped as by Ctrl-C and comes to the undisturbed numbers."""
    assert submit(head, "stopped", "--max-concurrent", "1", "--epochs", "200").returncode == 0
    assert submit(head, "beside", "--max-concurrent", "1", "--seed", "5").returncode == 0
    logs = [head.storage / name / "ledger" / "log.jsonl" for name in ("stopped", "beside")]
    wait_for(lambda: all(log.exists() and log.read_bytes().count(b'"reported"') >= 2 for log in logs))
    stopped = otsweep(head, "stop", "stopped")
    assert stopped.returncode == 0, stopped.stderr
    assert f"otsweep resume stopped --address {head.address}" in stopped.stdout
    assert "Nothing is lost" in otsweep(head, "logs", "stopped").stdout
    assert "stopped.1" in otsweep(head, "stop", "stopped").stdout, "stopped twice: said, no error"
    twice = submit(head, "stopped")
    assert twice.returncode == 2

    resumed = otsweep(head, "resume", "stopped", "--wait")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "job      stopped.2" in resumed.stdout
    assert "3/3 done" in resumed.stdout
    assert otsweep(head, "logs", "beside", "--follow").returncode == 0
    ledgers = {name: read_ledger(head.storage / name) for name in ("stopped", "beside")}
    for found in ledgers.values():
        assert [record.state for record in found.trials.values()] == ["finished"] * 3
        assert found.warnings == []
    begun = {name: min(record.started or 0 for record in each.trials.values()) for name, each in ledgers.items()}
    over = {name: max(record.ended or 0 for record in each.trials.values()) for name, each in ledgers.items()}
    assert max(begun.values()) < min(over.values()), "they did not run at once"
    assert trials_in_mlflow(head.storage / "mlflow.db") == {"first": 3, "stopped": 3, "beside": 3}


def trials_in_mlflow(database: Path) -> dict[str, int]:
    """Runs of trials below the runs of their sweeps, by sweep; none of them under another one's."""
    query = """
        select parent.value, count(*) from tags as kind
        join tags as sweep on sweep.run_uuid = kind.run_uuid and sweep.key = 'otsweep.sweep'
        join tags as link on link.run_uuid = kind.run_uuid and link.key = 'mlflow.parentRunId'
        join tags as parent on parent.run_uuid = link.value and parent.key = 'otsweep.sweep'
        join runs on runs.run_uuid = kind.run_uuid and runs.lifecycle_stage = 'active'
        where kind.key = 'otsweep.kind' and kind.value = 'trial' and sweep.value = parent.value
        group by parent.value
    """
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        return dict(store.execute(query).fetchall())


@pytest.mark.slow
@pytest.mark.cluster
def test_a_difference_is_said_before_anything_is_sent(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    """A laptop with another Python and another Ray."""
    lie = (
        "import platform, sys; from importlib import metadata; real = metadata.version\n"
        "platform.python_version = lambda: '3.99.1'\n"
        "metadata.version = lambda name: '2.51.0' if name == 'ray' else real(name)\n"
        "import sweep.cluster.submit\n"
        "def never(*_, **__): raise SystemExit('it was going to be sent')\n"
        "sweep.cluster.submit.pack = never\n"
        "from sweep.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", lie, "submit", "digits", "--name", "other", "--address", head.address],
        env=environment(RAY_AUTH_TOKEN=head.token),
        capture_output=True,
        text=True,
        timeout=600,
    )
    said, sending = done.stderr.split("it was going to be sent")
    assert re.search(r"Python 3\.\d+\.\d+ there, 3\.99\.1 here; Ray 2\.\S+ there, 2\.51\.0 here", said)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"RAY_AUTH_TOKEN": ""}, "asks for a token; set RAY_AUTH_TOKEN", id="missing"),
        pytest.param({"RAY_AUTH_TOKEN": "wrong"}, "refuses the token in RAY_AUTH_TOKEN", id="wrong"),
        pytest.param(
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/proc/none"}, "RAY_AUTH_TOKEN_PATH=/proc/none", id="no-file"
        ),
    ],
)
def test_a_wrong_token_is_one_clear_line(head: Head, settings: dict[str, str], message: str, tmp_path: Path) -> None:
    done = otsweep(head, "jobs", **settings, HOME=str(tmp_path), own=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.cluster
def test_the_token_may_come_from_a_file(head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(head.token + "\n")
    named = otsweep(head, "jobs", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert named.returncode == 0, named.stderr
    (tmp_path / ".ray").mkdir()
    (tmp_path / "token").rename(tmp_path / ".ray" / "auth_token")
    assert otsweep(head, "jobs", RAY_AUTH_TOKEN="", HOME=str(tmp_path)).returncode == 0


@pytest.mark.slow
@pytest.mark.cluster
def test_no_secret_is_written_anywhere(head: Head, sent: subprocess.CompletedProcess[str]) -> None:
    """Not in the ledger, the plan, MLflow's store, the logs of Ray and its jobs, or what the job API tells."""
    planted = [head.token.encode(), *(value.encode() for value in PLANTED.values())]
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        metadata = answer.read()
    assert b"first.1" in metadata
    written = {"the job API": metadata, "the screen": (sent.stdout + sent.stderr).encode()}
    files = [path for path in head.folder.rglob("*") if path.is_file()]
    assert {"log.jsonl", "mlflow.db", "plan.yaml"} <= {path.name for path in files}
    assert any(path.name.startswith("job-driver-first") for path in files)
    written |= {str(path): path.read_bytes() for path in files}
    assert [where for where, content in written.items() for secret in planted if secret in content] == []


def job(**changed: object) -> Job:
    return Job("a.1", "a", "0" * 16, "", "SUCCEEDED", 0.0, 1.0, 0)._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "status", "ended_with"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_waiting_ends_as_the_job_did(state: str, status: int | None, ended_with: int) -> None:
    assert exit_status(job(state=state, exit_status=status)) == ended_with


def test_job_ids_count_the_jobs_of_a_sweep() -> None:
    assert free_id("a", []) == "a.1"
    assert free_id("a", [job(id="a.1"), job(id="a.2")]) == "a.3"
    assert free_id("a", [job(id="ab.1")]) == "a.1"


def submission(*, name: str | None = None, **options: object) -> Submission:
    return Submission.of("digits", name=name, options=options, paths={})


def test_a_plan_is_the_same_under_any_name_and_anywhere() -> None:
    first = submission(name="first")
    ran = [job(sweep="first", plan_hash=first.plan.hash)]
    for again in (submission(), Submission.of("digits", name=None, options={}, paths={"storage": "/else"})):
        with pytest.raises(InputError, match="this very plan"):
            refuse_duplicate(again, ran)
    refuse_duplicate(submission(name="second"), ran)
    refuse_duplicate(submission(seed="1"), ran)
    refuse_duplicate(submission(), [ran[0]._replace(state="FAILED", exit_status=2)])
    with pytest.raises(InputError, match="this very plan"):
        refuse_duplicate(submission(), [ran[0]._replace(state="FAILED", exit_status=1)])


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"storage": "relative/folder"}, r"--storage 'relative/folder': must be an absolute path or a URL"),
        ({"storage": "s3://me:hunter2@bucket"}, r"--storage 's3://\*\*\*@bucket': holds a secret"),
        ({"data_dir": "data"}, r"--data-dir 'data': must be an absolute path"),
        ({"mlflow_uri": "http://me:hunter2@host"}, r"\*\*\*@host"),
    ],
)
def test_a_wrong_path_is_refused_before_the_cluster_is_asked(paths: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Submission.of("digits", name=None, options={}, paths=paths)
    assert "hunter2" not in str(caught.value)


def test_what_is_added_to_a_space_is_sent_with_it(tmp_path: Path) -> None:
    points = tmp_path / "points.yaml"
    points.write_text("- {margin: 0.125}\n")
    one = Submission.of(
        "digits", name="a", options={}, paths={}, require=["clean_accuracy >= 0.9"], points=points, from_=None
    )
    assert one.space_file is not None
    name, text = one.space_file
    assert one.command[:2] == ("run", name)
    (tmp_path / name).write_text(text)
    there = load_space(str(tmp_path / name))
    assert there == one.plan.space
    assert there.points[0]["margin"] == 0.125
    assert [str(each) for each in there.require] == ["clean_accuracy >= 0.9"]


def test_options_reach_the_command_as_they_were_typed() -> None:
    one = Submission.of("digits", name="a", options={"trials": "9", "seed": None}, paths={"storage": "/s"})
    assert one.command == ("run", "digits", "--name", "a", "--storage", "/s", "--trials", "9")


def test_the_package_is_small_and_runs_alone(tmp_path: Path) -> None:
    packed = pack(tmp_path, None)
    assert packed.sizes == {
        str(path.relative_to(tmp_path)): path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()
    }
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2_000_000
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import sweep.cli, json; print(json.dumps(sweep.cli.__file__))"],
        env=environment(PYTHONPATH=str(tmp_path)),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == str(tmp_path / "sweep" / "cli" / "__init__.py")


def test_modules_of_ones_own_that_a_space_names_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / "own_sent").mkdir(parents=True)
    (here / "own_sent/__init__.py").write_text("def load(): ...\n")
    (here / "space.yaml").write_text(
        "evaluation: {dataset: 'python:own_sent:load'}\nspace: {margin: {low: 0.1, high: 0.2}}\n"
    )
    monkeypatch.syspath_prepend(here)
    one = Submission.of(str(here / "space.yaml"), name="a", options={}, paths={})
    assert plugins_of(one.plan) == ["python:own_sent:load"]
    pack(tmp_path / "job", one.space_file, send_plugins(plugins_of(one.plan)))
    assert (tmp_path / "job/own_sent/__init__.py").read_text() == "def load(): ...\n"
    assert "own_sent" not in sys.modules


SECRET = b"-----BEGIN PRIVATE KEY-----"


def plant_secrets(root: Path) -> set[str]:
    """Put what must never be sent into a copy of the source; return its paths."""
    (root / "id_rsa").write_bytes(SECRET)
    names = ["trainer/.env.py", "trainer/.hidden/kept.py", "search_spaces/.aws.yaml", "sweep/credentials.yaml"]
    names += ["sweep/.env", "sweep/report/token.json", "trainer/data/id_rsa"]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(SECRET)
    links = {"trainer/link.py": root / "id_rsa", "trainer/errors.py": root / "id_rsa", "sweep/gone.py": root / "no"}
    links |= {"sweep/linked": root / "elsewhere", "search_spaces/all.yaml": root / "id_rsa"}
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "secret.py").write_bytes(SECRET)
    for name, target in links.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    return {*names, *links, "sweep/linked/secret.py"}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source that `pack` takes for the running one."""
    root = tmp_path / "copied"
    for name in ("search_spaces", "sweep", "trainer"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(package, "_ROOT", root)
    return root


@pytest.mark.parametrize("known_to", ["git", "an installation", "nobody"])
def test_only_the_projects_own_files_are_sent(
    copied: Path, tmp_path: Path, known_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {str(path.relative_to(copied)) for path in copied.rglob("*") if path.suffix in (".py", ".yaml", ".html")}
    if known_to == "git":
        for words in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *words], cwd=copied, check=True)
    elif known_to == "an installation":
        info = copied / "otsweep-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otsweep\nVersion: 9\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in sorted(before)))
        monkeypatch.syspath_prepend(copied)
    planted = plant_secrets(copied)
    (copied / "trainer/new.py").write_bytes(SECRET)
    packed = pack(tmp_path / "job", None)
    sent = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file()}
    is_listed = known_to != "nobody"
    assert sent == packed.sizes.keys() == before - planted | (set() if is_listed else {"trainer/new.py"})
    assert {"trainer/link.py", "trainer/errors.py", "search_spaces/.aws.yaml"} <= set(packed.left_out)
    assert ("trainer/new.py" in packed.left_out) == is_listed
    assert "not sent" in packed.warning
    assert not any(path.is_symlink() for path in (tmp_path / "job").rglob("*"))
    texts = {path.name: path.read_bytes() for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert {name for name, text in texts.items() if SECRET in text} == (set() if is_listed else {"new.py"})


def test_a_module_of_ones_own_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / "own_linked" / ".ipynb_checkpoints").mkdir(parents=True)
    (here / "own_linked/__init__.py").write_text("def load(): ...\n")
    (here / "own_linked/.ipynb_checkpoints/old.py").write_bytes(SECRET)
    monkeypatch.syspath_prepend(here)
    [sent] = send_plugins(["python:own_linked:load"])
    assert [name for name, _ in sent.files] == ["own_linked/__init__.py"]
    assert pack(tmp_path / "job", ("a.yaml", "{}"), [sent]).brought == ("a.yaml", "own_linked")
    (tmp_path / "id_rsa").write_bytes(SECRET)
    (here / "own_linked/key.py").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(InputError, match=r"own_linked/key.py' is a link"):
        pack(tmp_path / "again", None, send_plugins(["python:own_linked:load"]))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("python", "ray", "said"),
    [
        ("3.11.9", "2.60.0", []),
        ("3.12.1", "2.60.0", ["Python 3.12.1 there, 3.11.7 here"]),
        ("3.11.7", "2.59.0", ["Ray 2.59.0 there, 2.60.0 here"]),
    ],
)
def test_a_patch_release_of_python_is_no_difference(python: str, ray: str, said: list[str]) -> None:
    assert differences(ClusterInfo(python, ray, (), "", ""), python="3.11.7", ray="2.60.0") == said


@pytest.mark.parametrize("address", ["host:8265", "ray://host:10001", "http://", "http://host:99999", "ftp://host"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="must be http"):
        check_address(address)


def test_an_address_holds_no_secret() -> None:
    with pytest.raises(InputError, match=r"\*\*\*@host:8265': holds a secret"):
        check_address("http://me:hunter2@host:8265")


def test_an_empty_token_file_is_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text("\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match="the file is empty"):
        read_token()


def test_the_answer_of_a_cluster_is_found_among_what_ray_says() -> None:
    answer = '{"python": "3.11.7", "missing": []}'
    for said in (answer, f"a warning\n{answer}", f"{answer}\n2026-11-25 INFO worker.py -- Connecting\n"):
        assert find_answer(said) == {"python": "3.11.7", "missing": []}
    assert find_answer("") == find_answer("[1]\nTraceback") == {}

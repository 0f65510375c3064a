"""The command under the settings of calling programs, sites and containers, and on every kind of output."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.environment import settle_environment
from sweep.ledger import LedgerWriter
from tests.support.commands import command
from tests.support.recorded_sweeps import recorded

ROOT = str(Path(__file__).parents[2])
USERS_FILES = ("search_spaces", "trainer", "matplotlib", "mlflow", "pyarrow", "ray", "torch")
CODE = "raise SystemExit('a file of the user was executed')\n"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    with LedgerWriter(recorded("digits24", folder).folder):
        """Count the events, as versions of today do, so that nothing is to be said of them."""
    for name in USERS_FILES:
        (folder / f"{name}.py").write_text(CODE)
    return folder


def environment(settings: dict[str, str]) -> dict[str, str]:
    """Return the tests' own environment with settings; an empty one is removed."""
    given = {"PYTHONPATH": ROOT, "OTSWEEP_STORAGE": "", "TERM": "", **settings}
    return {name: value for name, value in {**os.environ, **given}.items() if value}


def front(
    storage: Path, *words: str, folder: Path | None = None, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    settings = settings or {}
    return subprocess.run(
        command(storage, "front", "digits24", *words),
        capture_output=True,
        encoding=settings.get("PYTHONIOENCODING", "utf-8"),
        env=environment(settings),
        cwd=folder,
    )


@pytest.fixture(scope="module")
def plain(storage: Path) -> str:
    return front(storage).stdout


SITES = {
    "a notebook's": {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": "1"},
    "colours wanted": {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1"},
    "colours not wanted": {"FORCE_COLOR": "0", "NO_COLOR": "1", "TERM": "dumb"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "a container's": {
        "HOME": "/dev/null/home",
        "TMPDIR": "/dev/null/tmp",
        "CUDA_VISIBLE_DEVICES": "-1",
        "COLUMNS": "0",
    },
    "a proxy": {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example.org"},
    "MLflow's": {"MLFLOW_TRACKING_URI": "file:/proc/none", "MLFLOW_STATIC_PREFIX": "/mlflow", "MLFLOW_RUN_ID": "none"},
    "an old terminal's": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("site", SITES)
def test_nothing_that_a_site_sets_changes_what_is_shown(site: str, storage: Path, plain: str, tmp_path: Path) -> None:
    done = front(storage, "--plot", str(tmp_path / "front.png"), settings=SITES[site])
    assert (done.returncode, done.stdout, done.stderr) == (0, plain, "")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_files_of_the_users_are_never_executed(storage: Path, plain: str, tmp_path: Path) -> None:
    """They lie in the current folder and on PYTHONPATH before ours."""
    path = os.pathsep.join([str(storage), ROOT])
    done = front(storage, "--plot", str(tmp_path / "front.png"), folder=storage, settings={"PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, plain, "")


def test_a_narrow_terminal_cuts_no_number(storage: Path, plain: str) -> None:
    narrow = front(storage, settings={"COLUMNS": "30"}).stdout
    for numbers in re.findall(r"^ +\d{3}( +\d+\.\d%)+", plain, re.MULTILINE):
        assert numbers in narrow
    assert "…" not in narrow
    assert "configuration" in narrow


def in_shell(storage: Path, words: str, rest: str) -> subprocess.CompletedProcess[str]:
    """Run `front` with a redirection, or with a reader, and print its status last."""
    line = f"{{ {sys.executable} -m sweep front digits24 {words} --storage {storage}; echo status $? >&3; }} {rest}"
    return subprocess.run(["bash", "-c", f"exec 3>&1; {line}"], capture_output=True, text=True, env=environment({}))


OUTPUTS = {
    "a reader that leaves": ("--format csv", "| true", 0, ""),
    "a reader of one line": ("", "| head -1 > /dev/null", 0, ""),
    "a full disk": ("--format json", "> /dev/full", 1, "otsweep: standard output can't be written: No space left on"),
    "a full disk for both": ("", "> /dev/full 2>&1", 1, ""),
    "no output": ("", ">&-", 0, ""),
    "no stream at all": ("", "<&- >&- 2>&-", 0, ""),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_takes_nothing_ends_without_a_traceback(output: str, storage: Path) -> None:
    words, rest, status, said = OUTPUTS[output]
    done = in_shell(storage, words, rest)
    assert done.stdout == f"status {status}\n"
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def on_terminal(words: list[str], *, columns: int, term: str) -> str:
    """Return what a person sees of a command on a terminal."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        words, stdin=writer, stdout=writer, stderr=writer, env=environment({"TERM": term})
    ) as process:
        os.close(writer)
        seen = b""
        while chunk := read_some(reader):
            seen += chunk
        assert process.wait() == 0
    os.close(reader)
    return seen.decode()


def read_some(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # which is how a terminal that was closed ends
        return b""


@pytest.mark.parametrize(("term", "columns", "steered"), [("dumb", 100, False), ("", 0, False), ("xterm", 20, True)])
def test_a_terminal_gets_control_codes_only_if_it_has_them(
    term: str, columns: int, steered: bool, storage: Path, plain: str
) -> None:
    seen = on_terminal(command(storage, "front", "digits24"), columns=columns, term=term)
    assert ("\x1b" in seen) == steered
    unsteered = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    for numbers in re.findall(r"(?:\d+\.\d%){2,}", plain):
        assert numbers in unsteered


@pytest.mark.parametrize(
    ("given", "direct"),
    [
        ({"http_proxy": "http://a:1"}, "127.0.0.1,localhost,::1"),
        ({"http_proxy": "http://a:1", "NO_PROXY": "b"}, "b,127.0.0.1,localhost,::1"),
        ({"ALL_PROXY": "http://a:1", "no_proxy": "*"}, "*"),
        ({}, None),
    ],
)
def test_loopback_addresses_are_asked_directly(
    given: dict[str, str], direct: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    settle_environment()
    assert os.environ.get("no_proxy") == direct


TINY = """
trials: 1
evaluation: {dataset: digits, train_size: 200, validation_size: 60, eval_sensitivity_steps: 1}
space: {architecture: mlp, epochs: 1, batch_size: 100}
points:
  - {preset: baseline}
"""


@pytest.mark.slow
def test_a_sweep_under_hostile_settings_comes_to_its_front(new_storage: Callable[[str], Path]) -> None:
    """With a Ray of its own, whose workers are told to import the user's files, and a reader that leaves at once."""
    storage = new_storage("hostile")
    for name in (*USERS_FILES, "sweep"):
        (storage / f"{name}.py").write_text(CODE)
    (storage / "tiny.yaml").write_text(TINY)
    settings = SITES["a notebook's"] | SITES["colours wanted"] | SITES["a proxy"]
    words = ["run", "tiny.yaml", "--name", "tiny", "--storage", str(storage)]
    code = f"import sys; sys.argv = ['otsweep', *{words!r}]; from sweep.cli import main; sys.exit(main())"
    path = os.pathsep.join([ROOT, str(storage)])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=storage,
        env=environment({**settings, "PYTHONPATH": path}),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
    assert first == "tiny: 1 trials of 1 epochs on digits, seed 0\n"
    assert (storage / "tiny" / "front.png").stat().st_size > 1000
    assert (storage / "tiny" / "ledger.parquet").stat().st_size > 1000

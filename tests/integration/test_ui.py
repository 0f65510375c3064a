"""MLflow's page as `otsweep ui` serves it: to whoever has the secret of its link, and to nobody else on the machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sweep.plan.plan_file import read_plan
from tests.support.chromium import browser_page, need_chromium, open_anew
from tests.support.commands import PATIENCE, command, otsweep, start
from tests.support.recorded_sweeps import recorded, results_of

pytestmark = pytest.mark.slow

NOBODY = 65534


class Ui(NamedTuple):
    """A running `otsweep ui`."""

    storage: Path
    link: str
    """As printed, with the secret."""

    @property
    def address(self) -> str:
        return self.link.partition("/?")[0]

    @property
    def secret(self) -> str:
        return self.link.partition("token=")[2].partition("#")[0]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """Serve a recorded sweep whose folder has a % in its name; a browser is a script that notes what it is given."""
    folder = tmp_path_factory.mktemp("ui")
    storage = folder / "sto%20rage"
    storage.mkdir()
    plan = recorded("digits24", storage)
    done = otsweep(storage, "sync", "digits24", "--mlflow-uri", plan.mlflow_uri)
    assert done.returncode == 0, done.stdout + done.stderr
    browser = folder / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {folder}/opened\n')
    browser.chmod(0o755)
    settings = {
        "BROWSER": f"{browser} %s",
        "http_proxy": "http://127.0.0.1:9",
        "MLFLOW_STATIC_PREFIX": "/mlflow",
        "MLFLOW_TRACKING_URI": plan.mlflow_uri,
    }
    (folder / "mlflow.py").write_text("raise SystemExit('a file of the user was executed')\n")
    words = command(storage, "ui", "digits24", "--port", "0")
    options = {"env": {**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parents[2])}, "cwd": folder}
    with start(words, own=True, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "http" in line:
                break
        found = re.search(r"^digits24: (http://127\.0\.0\.1:\d+/\?token=\S+)$", said[-1])
        assert found, "".join(said)
        yield Ui(storage, found[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [storage.name], "no neighbour was made"
    assert not list(storage.glob("ui-*"))


def ask(
    ui: Ui, path: str, content: Any = None, *, known: bool = True, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Ask the server, directly; return the status and the text of its answer."""
    jar = urllib.request.HTTPCookieProcessor(CookieJar())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)
    body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
    try:
        if known:
            opener.open(f"{ui.address}/?token={ui.secret}").close()
        request = urllib.request.Request(
            ui.address + path, body, {"Content-Type": "application/json", **(headers or {})}
        )
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["/", "/health", "/version", "/static-files/favicon.ico", "/?token=", "/?token=wrong"])
def test_nobody_without_the_secret_is_answered(path: str, ui: Ui) -> None:
    assert ask(ui, path, known=False) == (
        403,
        "This page needs its secret: open the link that `otsweep ui` printed.\n",
    )
    assert ask(ui, path, known=False, headers={"Cookie": "otsweep-1=wrong; x"})[0] == 403


def test_the_secret_opens_and_a_page_of_another_server_does_not(ui: Ui) -> None:
    assert ask(ui, "/health") == (200, "OK")
    assert ask(ui, "/version", headers={"Origin": ui.address})[0] == 200
    assert ask(ui, "/version", headers={"Origin": "http://127.0.0.1:1"})[0] == 403
    assert ask(ui, "/ajax-api/3.0/mlflow/assistant/config")[0] == 404


def test_another_user_gets_neither_an_answer_nor_the_secret(ui: Ui) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: can't be another user")
    status, text, seen = as_another_user(lambda: (*ask(ui, "/version", known=False), seen_of_processes()))
    assert (status, "needs its secret" in text) == (403, True)
    assert "sweep.tracking.page_server" in seen
    assert ui.secret not in seen


def seen_of_processes() -> str:
    """Return what this user may read of all processes' arguments and environments."""
    seen = []
    for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]:
        with contextlib.suppress(OSError):
            seen.append(path.read_bytes().decode(errors="replace").replace("\0", " "))
    return "\n".join(seen)


def as_another_user(action: Callable[[], Any]) -> Any:
    """Return what an action returns in a fork of this process that belongs to another user."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def test_the_browser_is_led_on_by_a_file_that_only_this_user_can_read(ui: Ui) -> None:
    opened, deadline = ui.storage.parent / "opened", time.monotonic() + PATIENCE
    while not (opened.exists() and opened.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    name = opened.read_text().strip()
    assert ui.secret not in name
    [file] = ui.storage.glob("ui-*.html")
    assert name == file.as_uri()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f'url={ui.link.replace("&", "&amp;")}"' in file.read_text()


def test_no_file_outside_of_the_artifacts_can_be_read_or_written(ui: Ui, tmp_path: Path) -> None:
    created = ask(ui, "/api/2.0/mlflow/experiments/create", {"name": "evil", "artifact_location": tmp_path.as_uri()})
    experiment = json.loads(created[1])["experiment_id"]
    _, text = ask(ui, "/api/2.0/mlflow/runs/create", {"experiment_id": experiment, "start_time": 1})
    run = json.loads(text)["run"]["info"]
    files = tmp_path / run["run_id"] / "artifacts"
    files.mkdir(parents=True)
    (files / "key").write_text("private")
    upload = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run['run_id']}&path=new"
    answers = [
        ask(ui, f"/get-artifact?path=key&run_uuid={run['run_id']}"),
        ask(ui, f"/ajax-api/2.0/mlflow/artifacts/list?run_id={run['run_id']}"),
        ask(ui, upload, b"new", headers={"Content-Type": "application/octet-stream"}),
        ask(ui, "/get-artifact?path=../../../../etc/hostname&run_uuid=" + run["run_id"]),
    ]
    assert [status for status, _ in answers] == [400] * 4, answers
    assert "private" not in "".join(text for _, text in answers)
    assert [path.name for path in files.iterdir()] == ["key"]


def test_real_chromium_opens_the_front_and_then_the_link_that_a_sweep_printed(ui: Ui) -> None:
    need_chromium()
    points = len(results_of(read_plan("digits24", storage=str(ui.storage))).finished)
    drawn = "document.querySelector('.js-plotly-plot')?.querySelectorAll('.scatterlayer path.point')"
    without = ui.address + "/#" + ui.link.partition("#")[2]
    with browser_page() as page:
        page.goto(without)
        page.wait_for_function("document.body?.innerText.includes('needs its secret')")
        [file] = ui.storage.glob("ui-*.html")
        for link in (file.as_uri(), without, ui.link):
            open_anew(page, link)
            page.wait_for_function(f"({drawn} ?? []).length === {points}")
            assert ui.secret not in page.url

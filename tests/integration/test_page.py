"""What a person sees: real Chromium opens the links that the command printed, on MLflow's real server.

Screenshots lie in the folder that OTSWEEP_SCREENSHOTS names, where it is set.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib.image
import numpy as np
import pytest

from sweep.plan.plan_file import read_plan
from sweep.report.page import as_script, front_page
from sweep.state.sweep_state import SweepState
from sweep.tracking.store import connect
from sweep.tracking.views import DOMINATED_COLOUR, FRONT_COLOUR, KNEE_COLOUR
from tests.support.chromium import browser_page, need_chromium, open_anew
from tests.support.commands import otsweep
from tests.support.mlflow_stores import Server
from tests.support.recorded_sweeps import recorded, results_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

LIST_SECONDS = 20
"""The aim is a few; on a busy machine of two cores the browser itself takes some."""
# Read at once: the tests run in an environment of their own.
SCREENSHOTS = os.environ.get("OTSWEEP_SCREENSHOTS")
MEMORY = Path("/dev/shm")


class Shown(NamedTuple):
    """A recorded sweep, written to MLflow by the command."""

    results: SweepState
    link: str
    """As printed, at the server's address."""


@pytest.fixture(scope="module")
def shown() -> Iterator[dict[str, Shown]]:
    """Both recorded sweeps in one store, in memory where that is possible, and a server on it."""
    need_chromium()
    with tempfile.TemporaryDirectory(prefix="otsweep-page-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield from shown_in(Path(folder))


def shown_in(storage: Path) -> Iterator[dict[str, Shown]]:
    server = Server(storage)
    printed = {}
    for name in ("digits24", "thousand"):
        plan = recorded(name, storage)
        done = otsweep(storage, "resume", name)
        assert done.returncode == 0, done.stdout + done.stderr
        link = re.search(r"^opens +(http://127\.0\.0\.1:5000)(/\S+)$", done.stdout, re.MULTILINE)
        assert link is not None, done.stdout
        printed[name] = Shown(results_of(plan), server.uri + link[2])
    server.start()
    yield printed
    server.stop()


@pytest.fixture(scope="module")
def page(shown: dict[str, Shown]) -> Iterator[Page]:
    with browser_page(height=1500) as page:
        yield page


def look(page: Page, name: str) -> None:
    if SCREENSHOTS:
        time.sleep(1)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def hexadecimal(colour: str) -> str:
    return "#" + "".join(f"{int(part):02X}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_printed_link_opens_at_the_front(name: str, shown: dict[str, Shown], page: Page) -> None:
    results, link = shown[name]
    open_anew(page, link)
    # The page loads the first hundred by rank.
    points = min(len(results.finished), 100)
    drawn = "document.querySelector('.js-plotly-plot')?.querySelectorAll('.scatterlayer path.point')"
    page.wait_for_function(f"({drawn} ?? []).length === {points}")
    colours = Counter(map(hexadecimal, page.evaluate(f"[...{drawn}].map(point => point.style.fill)")))
    on_front = len(results.front_records)
    assert results.knee is not None
    assert colours == {FRONT_COLOUR: on_front - 1, KNEE_COLOUR: 1, DOMINATED_COLOUR: points - on_front}
    text = page.evaluate("document.body.innerText")
    for words in (f"Pareto front: {name}", "sel_sens vs. sel_inv", "Parallel Coordinates", "sensitivity_accuracy"):
        assert words in text
    look(page, f"front-{name}")


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_run_of_a_sweep_tells_its_front(name: str, shown: dict[str, Shown], page: Page) -> None:
    results = shown[name].results
    open_anew(page, parent_link(shown, name))
    page.wait_for_function("document.body?.innerText.includes('finished trials')")
    text = page.evaluate("document.body.innerText")
    verdict = f"Front of {len(results.front_records)} among {len(results.finished)} finished trials, hypervolume"
    assert verdict in text
    assert f"at its knee, trial {results.knee:03d}" in text
    # The picture is loaded, and a part of it shows without a click.
    picture = "document.querySelector('img[src*=\"front.png\"]')"
    page.wait_for_function(f"{picture}?.naturalWidth > 500")
    assert page.evaluate(f"{picture}.getBoundingClientRect().top") < 400
    links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.textContent)")
    for record in results.front_records:
        assert f"{record.number:03d}" in links
    page.evaluate("[...document.querySelectorAll('span')].find(s => s.textContent === 'Show more')?.click()")
    look(page, f"run-{name}")


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_interactive_picture_is_drawn_on_the_page(
    name: str, shown: dict[str, Shown], page: Page, tmp_path: Path
) -> None:
    """In a frame of its own, into which only a picture of the screen can look: the knee's ring is there."""
    open_anew(page, f"{parent_link(shown, name)}/artifacts/front/front.html")
    page.wait_for_function("document.querySelector('iframe')?.src")
    screen, deadline = tmp_path / "screen.png", time.monotonic() + 120
    ring = [int(KNEE_COLOUR[place : place + 2], 16) for place in (1, 3, 5)]
    while True:
        page.screenshot(path=screen)
        pixels = np.round(matplotlib.image.imread(screen)[..., :3] * 255)
        if (abs(pixels - ring).max(axis=-1) < 12).sum() > 40:
            break
        assert time.monotonic() < deadline, "no knee is drawn"
    look(page, f"interactive-{name}")


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_page_by_itself(name: str, shown: dict[str, Shown], page: Page, tmp_path: Path) -> None:
    """The same file, opened without MLflow: points, knee, and the configuration of the point under the pointer."""
    results = shown[name].results
    plan = read_plan(name, storage=str(Path(__file__).parents[1] / "recorded"))
    file = tmp_path / "front.html"
    file.write_text(front_page(plan, results))
    open_anew(page, file.as_uri())
    page.wait_for_function("document.querySelectorAll('.point').length")
    counts = page.evaluate(
        "['.point', '.point.front', '.ring', '.stairs'].map(s => document.querySelectorAll(s).length)"
    )
    assert counts == [len(results.finished), len(results.front_records), 1, 1]
    for record in (results.front_records[0], results.front_records[-1]):
        point = f"document.querySelector('[aria-label^=\"trial {record.number}\"]')"
        page.evaluate(f"{point}.dispatchEvent(new PointerEvent('pointerenter'))")
        text = page.evaluate("document.getElementById('details').innerText")
        assert f"Trial {record.number:03d}" in text
        for knob, value in plan.space.active(record.config).items():
            shortened = f"{value:.4g}" if isinstance(value, float) else str(value)
            assert re.search(rf"{knob}\s+{re.escape(shortened[:4])}", text), text
    page.evaluate("document.querySelector('.keys label:last-child input').click()")
    visible = "[...document.querySelectorAll('.point')].filter(p => p.style.display !== 'none').length"
    assert page.evaluate(visible) == len(results.front_records)
    page.evaluate("document.querySelector('.keys label:last-child input').click()")
    look(page, f"alone-{name}")


def test_no_name_is_read_as_markup() -> None:
    text = as_script({"name": "</script><script>document.title='taken'</script>&<!--"})
    assert "<" not in text
    assert ">" not in text


def test_the_list_of_a_thousand_nested_runs_opens_in_seconds(shown: dict[str, Shown], page: Page) -> None:
    address, _, _ = shown["thousand"].link.partition("?")
    page.goto("about:blank")
    begun = time.monotonic()
    page.goto(f"{address}?compareRunsMode=TABLE&workflowType=machine_learning")
    # The sweep's own row, its trials folded below it. While it is still loading the page says "0 matching runs".
    row = "[...document.querySelectorAll('a[href*=\"/runs/\"]')].some(a => a.textContent === 'thousand')"
    page.wait_for_function(f"{row} && /[1-9]\\d* matching run/.test(document.body.innerText)")
    took = time.monotonic() - begun
    print(f"the list page of 1,000 nested runs opened in {took:.1f} s")
    assert took < LIST_SECONDS
    look(page, "list-thousand")


def parent_link(shown: dict[str, Shown], name: str) -> str:
    """Of a sweep's own run on MLflow's page."""
    address, _, rest = shown[name].link.partition("/#/")
    match = re.match(r"experiments/(\d+)/", rest)
    assert match is not None
    [parent] = connect(address).search_runs([match[1]], "tags.`otsweep.kind` = 'sweep'")
    return f"{address}/#/experiments/{match[1]}/runs/{parent.info.run_id}"

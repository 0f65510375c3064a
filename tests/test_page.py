"""What a person sees: real Chromium opens the links that the command printed, on MLflow's real server.

Screenshots lie in the folder that OTSWEEP_SCREENSHOTS names, where it is set.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sweep.results import Results
from sweep.views import DOMINATED_COLOUR, FRONT_COLOUR, KNEE_COLOUR
from tests.chromium import BROWSER, Page
from tests.mlflow_stores import Server
from tests.recorded_sweeps import recorded, results_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)"),
]

LIST_SECONDS = 20
"""The aim is a few; on a busy machine of two cores the browser itself takes some."""


class Shown(NamedTuple):
    """A recorded sweep, written to MLflow by the command."""

    results: Results
    link: str
    """As printed, at the server's address."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shown]]:
    """Both recorded sweeps in one store, and a server on it."""
    storage = tmp_path_factory.mktemp("shown")
    server = Server(storage)
    printed = {}
    for name in ("digits24", "thousand"):
        plan = recorded(name, storage)
        words = [sys.executable, "-m", "sweep.cli", "resume", name, "--storage", str(storage)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        link = re.search(r"^opens +(http://127\.0\.0\.1:5000)(/\S+)$", done.stdout, re.MULTILINE)
        assert link is not None, done.stdout
        printed[name] = Shown(results_of(plan), server.uri + link[2])
    server.start()
    yield printed
    server.stop()


@pytest.fixture(scope="module")
def page(shown: dict[str, Shown]) -> Iterator[Page]:
    with Page(height=1500) as page:
        yield page


def look(page: Page, name: str) -> None:
    if folder := os.environ.get("OTSWEEP_SCREENSHOTS"):
        time.sleep(1)
        page.screenshot(Path(folder) / f"{name}.png")


def hexadecimal(colour: str) -> str:
    return "#" + "".join(f"{int(part):02X}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_printed_link_opens_at_the_front(name: str, shown: dict[str, Shown], page: Page) -> None:
    results, link = shown[name]
    page.open(link)
    # The page loads the first hundred by rank.
    points = min(len(results.finished), 100)
    drawn = "document.querySelector('.js-plotly-plot')?.querySelectorAll('.scatterlayer path.point')"
    page.wait(f"({drawn} ?? []).length === {points}")
    colours = Counter(map(hexadecimal, page.run(f"[...{drawn}].map(point => point.style.fill)")))
    on_front = len(results.front_records)
    assert results.knee is not None
    assert colours == {FRONT_COLOUR: on_front - 1, KNEE_COLOUR: 1, DOMINATED_COLOUR: points - on_front}
    text = page.run("document.body.innerText")
    for words in (f"Pareto front: {name}", "sel_sens vs. sel_inv", "Parallel Coordinates", "sensitivity_accuracy"):
        assert words in text
    look(page, f"front-{name}")


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_run_of_a_sweep_tells_its_front(name: str, shown: dict[str, Shown], page: Page) -> None:
    results = shown[name].results
    page.open(parent_link(shown, name))
    page.wait("document.body.innerText.includes('finished trials')")
    text = page.run("document.body.innerText")
    verdict = f"Front of {len(results.front_records)} among {len(results.finished)} finished trials, hypervolume"
    assert verdict in text
    assert f"at its knee, trial {results.knee:03d}" in text
    # The picture is loaded, and a part of it shows without a click.
    picture = "document.querySelector('img[alt=\"The front\"]')"
    assert page.wait(f"{picture}?.naturalWidth") > 500
    assert page.run(f"{picture}.getBoundingClientRect().top") < 400
    links = page.run("[...document.querySelectorAll('a')].map(a => a.textContent)")
    for record in results.front_records:
        assert f"{record.number:03d}" in links
    page.run("[...document.querySelectorAll('span')].find(s => s.textContent === 'Show more')?.click()")
    look(page, f"run-{name}")


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_interactive_picture_shows_a_configuration_under_the_pointer(
    name: str, shown: dict[str, Shown], page: Page
) -> None:
    page.open(f"{parent_link(shown, name)}/artifacts/front/front.html")
    inside = "document.querySelector('iframe')?.srcdoc ?? ''"
    page.wait(f"({inside}).includes('id=\"picture\"') || document.querySelector('iframe')?.src", seconds=60)
    time.sleep(2)
    look(page, f"interactive-{name}")


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_page_by_itself(name: str, shown: dict[str, Shown], page: Page, tmp_path: Path) -> None:
    """The same file, opened without MLflow: points, knee, and the configuration of the point under the pointer."""
    from sweep.front_page import front_page
    from sweep.plan import read_plan

    results = shown[name].results
    plan = read_plan(name, storage=str(Path(__file__).with_name("recorded")))
    file = tmp_path / "front.html"
    file.write_text(front_page(plan, results))
    page.open(file.as_uri())
    page.wait("document.querySelectorAll('.point').length")
    counts = page.run("['.point', '.point.front', '.ring', '.stairs'].map(s => document.querySelectorAll(s).length)")
    assert counts == [len(results.finished), len(results.front_records), 1, 1]
    for record in (results.front_records[0], results.front_records[-1]):
        point = f"document.querySelector('[aria-label^=\"trial {record.number}\"]')"
        page.run(f"{point}.dispatchEvent(new PointerEvent('pointerenter'))")
        text = page.run("document.getElementById('details').innerText")
        assert f"Trial {record.number:03d}" in text
        for knob, value in plan.space.active(record.config).items():
            shortened = f"{value:.4g}" if isinstance(value, float) else str(value)
            assert re.search(rf"{knob}\s+{re.escape(str(float(shortened)) if False else shortened)[:4]}", text), text
    page.run("document.querySelector('.keys label:last-child input').click()")
    visible = "[...document.querySelectorAll('.point')].filter(p => p.style.display !== 'none').length"
    assert page.run(visible) == len(results.front_records)
    page.run("document.querySelector('.keys label:last-child input').click()")
    look(page, f"alone-{name}")


def test_nothing_in_a_page_is_markup_of_a_name(page: Page, shown: dict[str, Shown], tmp_path: Path) -> None:
    from sweep.front_page import as_script

    text = as_script({"name": "</script><script>document.title='taken'</script>&<!--"})
    assert "<" not in text
    assert ">" not in text


def test_the_list_of_a_thousand_nested_runs_opens_in_seconds(shown: dict[str, Shown], page: Page) -> None:
    address, _, rest = shown["thousand"].link.partition("?")
    page.open("about:blank")
    begun = time.monotonic()
    page.open(f"{address}?compareRunsMode=TABLE&workflowType=machine_learning")
    page.wait("document.body.innerText.includes('matching run')")
    took = time.monotonic() - begun
    print(f"the list page of 1,000 nested runs opened in {took:.1f} s")
    assert took < LIST_SECONDS
    look(page, "list-thousand")


def parent_link(shown: dict[str, Shown], name: str) -> str:
    """Of a sweep's own run on MLflow's page."""
    from sweep.tracking import connect

    address, _, rest = shown[name].link.partition("/#/")
    match = re.match(r"experiments/(\d+)/", rest)
    assert match is not None
    [parent] = connect(address).search_runs([match[1]], "tags.`otsweep.kind` = 'sweep'")
    return f"{address}/#/experiments/{match[1]}/runs/{parent.info.run_id}"

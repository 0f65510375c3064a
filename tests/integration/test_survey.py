"""People asked in a real browser about a real sweep's images: by key, back, reload, Ctrl-C, and what is told then."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.chromium import browser_page, need_chromium
from tests.support.commands import command, otsweep, start, wait_for

pytestmark = pytest.mark.slow

# Read at once: the tests run in an environment of their own.
SCREENSHOTS = os.environ.get("OTSWEEP_SCREENSHOTS")

SPACE = """
trials: 1
evaluation: {dataset: digits, train_size: 200, validation_size: 60, eval_sensitivity_steps: 5}
space: {architecture: mlp, epochs: 1}
points: [{preset: baseline}]
"""


def test_a_person_names_images_by_key(new_storage: Callable[[str], Path], tmp_path: Path) -> None:
    need_chromium()
    storage, space, log = new_storage("survey"), tmp_path / "one.yaml", tmp_path / "page.log"
    space.write_text(SPACE)
    done = otsweep(storage, "run", str(space), "--name", "asked", "--max-concurrent", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    with log.open("w") as out:
        asked = start(command(storage, "people", "asked", "--images", "5"), joins=False, stdout=out, stderr=out)
    try:
        wait_for(lambda: "http://" in log.read_text(), asked)
        (link,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+/", log.read_text())
        answer_by_key(link)
        asked.send_signal(signal.SIGINT)
        assert asked.wait(timeout=60) == 0
    finally:
        asked.kill()
        asked.wait()
    answers = storage / "asked" / "people" / "answers.jsonl"
    given = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    assert given == [3, 1, -1, 8, 6, 0]
    assert re.search(r"Ann +5 of 5", log.read_text())
    votes = storage / "asked" / "people" / "votes"
    assert np.load(votes / "votes.npy").shape == (4, 1)
    (command_line,) = re.findall(r"people --fit .*", log.read_text())
    few = otsweep(storage, *shlex.split(command_line))
    assert few.returncode == 2
    assert f"{votes}/votes.npy: 4 images of 4 sources have an answer: too few" in " ".join(few.stderr.split())
    shown = otsweep(storage, "people", "asked", "--show", "--format", "json")
    assert json.loads(shown.stdout)["people"][0]["answered"] == {"hits": 5, "size": 5}


def answer_by_key(link: str) -> None:
    """Answer five images as Ann: 3, 1, can't tell, then back to say 8 instead, then after a reload 6 and 0."""
    with browser_page(width=800, height=800) as page:

        def begin() -> None:
            page.goto(link)
            page.fill("#person", "Ann")
            page.press("#person", "Enter")

        def count(text: str) -> None:
            page.get_by_text(text, exact=True).wait_for()

        begin()
        for number, key in enumerate(["3", "1", " "], start=1):
            count(f"{number} of 5")
            width = page.locator("#image").evaluate("image => image.decode().then(() => image.naturalWidth)")
            assert width == 8
            page.keyboard.press(key)
        count("4 of 5")
        page.keyboard.press("ArrowLeft")
        count("3 of 5")
        if SCREENSHOTS:
            page.screenshot(path=Path(SCREENSHOTS) / "survey.png")
        page.keyboard.press("8")
        count("4 of 5")
        begin()  # as after closing the page: it goes on where it was left
        count("4 of 5")
        page.click("#keys button:nth-child(7)")
        count("5 of 5")
        page.keyboard.press("0")
        page.wait_for_selector("#done:not([hidden])")
        assert re.search(r"people --fit \S+/people/votes --crowd mine --dataset digits", page.inner_text("#fit"))
        if SCREENSHOTS:
            page.screenshot(path=Path(SCREENSHOTS) / "survey-done.png")

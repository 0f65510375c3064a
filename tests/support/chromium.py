"""Debian's Chromium, headless, driven by Playwright. Nothing here downloads a browser."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_SECONDS = 200


def need_chromium() -> None:
    """Skip where it is not installed."""
    if BROWSER is None or find_spec("playwright") is None:
        pytest.skip("needs Chromium (apt-get install chromium) and playwright")


@contextlib.contextmanager
def browser_page(*, width: int = 1600, height: int = 1200) -> Iterator[Page]:
    """A page of a browser of its own, which waits long for whatever it is asked: the machine may be busy."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=BROWSER, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * WAIT_SECONDS)
        yield page


def open_anew(page: Page, address: str) -> None:
    """Load an address, also if only the part behind its # differs from the page's."""
    page.goto("about:blank")
    page.goto(address)

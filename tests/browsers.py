"""Debian's Chromium, driven by Playwright, for the tests of the demo's page and for its pictures in the documents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-unsafe-swiftshader"  # the last for WebGL, which editors need
).split()


def missing() -> str | None:
    """Say what is missing to drive a browser, if anything is."""
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "Playwright is not installed"
    return None if shutil.which("chromium") else "chromium is not installed"


@contextmanager
def chromium() -> Iterator[Any]:
    """Run Chromium for the length of the `with`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        try:
            yield browser
        finally:
            browser.close()

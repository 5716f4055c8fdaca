"""Make the pictures of the demo that the documents show, from the page as it is, on the embedded checkpoint.

python docs/screenshots.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "fixtures"))  # the browser and the server of the tests

from browsers import chromium  # noqa: E402
from demos import MACHINE, REFERENCE, served  # noqa: E402

from instantstyle.console import calm  # noqa: E402
from instantstyle.demo.studio import Studio  # noqa: E402


SCREENS = {
    "demo": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "demo-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
TOPS = {"demo": "body", "demo-phone": "#prompt"}
SEED = "7"


def main() -> None:
    """Write a picture of each screen."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    with tempfile.TemporaryDirectory() as library:
        with calm(bars=False):
            studio = Studio(MACHINE)
        with served(studio, Path(library)) as address, chromium() as browser:
            for name, screen in SCREENS.items():
                page = browser.new_context(**screen).new_page()
                page.goto(address)
                paint(page)
                page.locator(TOPS[name]).evaluate("element => element.scrollIntoView()")
                page.wait_for_timeout(1000)  # what fades out is gone
                page.screenshot(path=folder / f"{name}.png")


def paint(page: Any) -> None:
    """Paint four pictures in the style of the example reference."""
    page.locator("#reference input[type=file]").first.set_input_files(str(REFERENCE))
    page.locator("#sampling > button").click()
    for label, value in (("Seed", SEED), ("number input for Pictures", "4")):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Draw a seed for every run").uncheck()
    page.locator("#sampling > button").click()
    page.locator("#generate").click()
    page.get_by_text("Done in").wait_for(timeout=120_000)


if __name__ == "__main__":
    main()

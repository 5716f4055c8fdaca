"""The demo's page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browsers import chromium, missing
from demos import REFERENCE, demo_options, served

from instantstyle import recipe
from instantstyle.demo.studio import METHODS, Studio
from instantstyle.generate import open_picture


pytest.importorskip("gradio", reason="the demo is made with Gradio")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 30_000  # milliseconds
MANY = 40  # steps: a run that is still going when something else happens
DONE = re.compile(r"Done in .* s, seed \d+\.")


@pytest.fixture(scope="module")
def studio() -> Studio:
    """Load the studio on the embedded checkpoint."""
    return Studio(demo_options())


@pytest.fixture(scope="module")
def address(studio, tmp_path_factory) -> Iterator[str]:
    """Serve the page."""
    with served(studio, tmp_path_factory.mktemp("library")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Run the browser."""
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser, address) -> Iterator[Any]:
    """Give what opens the page as another user, and close all at the end; nothing but the page may be asked for."""
    contexts, asked = [], []

    def visit(**context: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": LAPTOP, **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("#generate").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    hosts = {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).hostname}


@pytest.fixture
def page(visit) -> Any:
    """Open the page on a laptop."""
    return visit()


def upload(page: Any, where: str, path: Path) -> None:
    """Give a file to a control, in place of the one that it may have."""
    remove = page.locator(f"{where} button[aria-label='Remove Image'], {where} button[aria-label='Clear']")
    if remove.count():
        remove.first.click()
    page.locator(f"{where} input[type=file]").first.set_input_files(str(path))


def open_part(page: Any, name: str) -> None:
    """Open a closed part of the page."""
    page.locator(f"#{name} > button").click()


def fill(page: Any, where: str, text: str) -> None:
    """Write into a field."""
    page.locator(f"{where} textarea, {where} input").first.fill(text)


def shows(page: Any, pattern: str | re.Pattern[str]) -> None:
    """Wait until the status says something."""
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_contain_text(re.compile(pattern), timeout=PATIENCE)


def file_of(page: Any, image: Any, folder: Path) -> Path:
    """Fetch the file of a picture that the page shows."""
    path = folder / "fetched.png"
    path.write_bytes(page.request.get(image.get_attribute("src")).body())
    return path


def made(page: Any, folder: Path) -> dict[str, Any]:
    """Wait for the end of a run and return the recipe of its first picture."""
    shows(page, DONE)
    return recipe.read(file_of(page, page.locator("#pictures img").first, folder))


def set_steps(page: Any, steps: int) -> None:
    """Choose a number of steps."""
    if not page.get_by_label("number input for Steps").is_visible():
        open_part(page, "sampling")
    page.get_by_label("number input for Steps").fill(str(steps))
    page.get_by_label("number input for Steps").press("Tab")


def test_a_picture_is_uploaded_and_painted_with(page, tmp_path):
    upload(page, "#reference", REFERENCE)
    page.locator("#reference img").wait_for()
    fill(page, "#prompt", "a ring")
    fill(page, "#content", "a star")
    page.locator("#generate").click()
    found = made(page, tmp_path)
    assert (found["picture"]["prompt"], found["content"]) == ("a ring", "a star")
    assert found["style"]["sha256"] == open_picture("", str(REFERENCE)).sha256
    page.get_by_role("tab", name="Recipe").click()
    shown = page.locator("#recipe").inner_text()
    assert found["style"]["sha256"] in shown


def test_enter_paints_and_all_can_be_reached_by_keyboard(page, tmp_path):
    page.locator("#prompt textarea, #prompt input").first.focus()
    page.keyboard.press("Enter")
    assert made(page, tmp_path)["picture"]["prompt"] == "a heart"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"generate", "compare", "stop"} <= reached


def test_methods_are_compared_side_by_side(page, tmp_path):
    page.locator("#compare").click()
    shows(page, DONE)
    images = page.locator("#compared img")
    from playwright.sync_api import expect

    expect(images).to_have_count(len(METHODS), timeout=PATIENCE)
    for name in METHODS:
        assert name in page.locator("#compared").inner_text()
    sources = [images.nth(number).get_attribute("src") for number in range(len(METHODS))]
    sides = page.locator("#slider img")
    expect(sides).to_have_count(2)
    assert {Path(side.get_attribute("src")).name for side in sides.all()} == {Path(s).name for s in sources[1:]}
    page.get_by_label("Left", exact=True).click()
    page.get_by_role("option", name=METHODS[0]).click()
    expect(sides.first).to_have_attribute("src", re.compile(re.escape(Path(sources[0]).name)), timeout=PATIENCE)


def test_what_is_stopped_ends(page, studio, tmp_path):
    set_steps(page, MANY)
    page.locator("#generate").click()
    shows(page, rf"Step \d+ of {MANY}")
    page.locator("#pictures img").first.wait_for()  # a preview
    page.locator("#stop").click()
    shows(page, r"Stopped\.")
    with studio._lock:  # it comes to an end
        pass
    set_steps(page, 2)
    page.locator("#generate").click()
    assert made(page, tmp_path)["steps"] == 2


def test_a_style_is_kept_and_comes_back(page, visit, tmp_path):
    upload(page, "#reference", REFERENCE)
    open_part(page, "styles")
    page.locator("#encode").click()
    page.locator("#style-file").get_by_text("reference").first.wait_for()
    fill(page, "#style-name", "dots")
    page.locator("#save-style").click()
    from playwright.sync_api import expect

    expect(page.locator("#library input")).to_have_value("dots", timeout=PATIENCE)
    other = visit()
    open_part(other, "styles")
    other.locator("#library input").click()
    other.get_by_role("option", name="dots").click()
    other.locator("#style-file").get_by_text("dots").first.wait_for()
    other.locator("#generate").click()
    found = made(other, tmp_path)
    assert found["style"]["file"] == "dots.safetensors"
    assert found["target_blocks"] is None


def test_what_is_no_picture_is_refused_at_once(page, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("not a picture")
    upload(page, "#reference", bad)
    page.get_by_text("Picture: bad.png is not a picture that can be read").first.wait_for()
    page.locator("#reference input[type=file]").first.wait_for(state="attached")
    page.locator("#generate").click()
    page.get_by_text("Reference: there is neither a picture nor a style file").first.wait_for()


def test_two_users_wait_for_each_other_and_get_each_their_own(visit, tmp_path):
    first, second = visit(), visit()
    fill(first, "#prompt", "a ring")
    fill(second, "#prompt", "a square")
    set_steps(first, MANY)
    first.locator("#generate").click()
    shows(first, "Step")
    second.locator("#generate").click()
    second.get_by_text(re.compile(r"queue: \d+/\d+")).first.wait_for()
    assert made(first, tmp_path)["picture"]["prompt"] == "a ring"
    assert made(second, tmp_path)["picture"]["prompt"] == "a square"


def test_a_dropped_picture_sets_the_controls(page, visit, tmp_path):
    upload(page, "#reference", REFERENCE)
    fill(page, "#prompt", "a ring")
    page.get_by_label("Layout", exact=True).check()
    page.locator("#generate").click()
    found = made(page, tmp_path)
    assert found["target_blocks"] == {"layout": 1.0}
    other = visit()
    other.get_by_role("tab", name="Recipe").click()
    other.locator("#dropped input[type=file]").set_input_files(str(tmp_path / "fetched.png"))
    other.get_by_text("Give these again").first.wait_for()
    from playwright.sync_api import expect

    expect(other.locator("#prompt textarea, #prompt input").first).to_have_value("a ring")
    expect(other.get_by_label("Layout", exact=True)).to_be_checked()
    open_part(other, "sampling")
    assert other.locator("#seed input").input_value() == str(found["picture"]["seed"])
    upload(other, "#reference", REFERENCE)
    other.get_by_role("tab", name="Pictures").click()
    other.locator("#generate").click()
    again = made(other, tmp_path)
    assert {**again, "versions": None} == {**found, "versions": None}


def test_a_part_is_repainted(page, tmp_path):
    open_part(page, "start")
    upload(page, "#start-editor", REFERENCE)
    page.locator("#start-editor button[aria-label='Brush']").click()
    canvas = page.locator("#start-editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)  # it fits itself to the picture
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=8)
    page.mouse.up()
    page.locator("#generate").click()
    found = made(page, tmp_path)
    assert found["pipeline"] == "StableDiffusionXLInstantStyleInpaintPipeline"
    assert found["mask"]["file"] == "painted"


@pytest.mark.parametrize(("viewport", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")], ids=["laptop", "phone"])
def test_the_page_fits_its_screen(visit, viewport, scheme):
    page = visit(viewport=viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    ask, show, more = (page.locator(name).bounding_box() for name in ("#ask", "#show", "#more"))
    if viewport is PHONE:
        assert ask["y"] < show["y"] < more["y"]
    else:
        assert show["x"] >= ask["x"] + ask["width"]
        assert page.locator("#generate").bounding_box()["y"] < viewport["height"]
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(json.loads("[" + re.sub(r"[^\d,]", "", shade) + "]")[:3]) / 3
    assert (lightness < 128) == (scheme == "dark")

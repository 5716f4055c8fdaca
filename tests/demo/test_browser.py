"""The demo's page in a real browser."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browsers import chromium, missing
from demos import MACHINE, REFERENCE, served
from PIL import Image

from instantstyle.demo.library import Library
from instantstyle.demo.page import Page
from instantstyle.demo.studio import Studio
from instantstyle.inference import grid
from instantstyle.inference.grid import METHODS
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.recipe import read_recipe
from instantstyle.inference.request import Request


pytest.importorskip("gradio", reason="the demo is made with Gradio")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 30_000  # milliseconds
FEW, MANY = 2, 40  # steps: a run that is still going when something else happens
BRUSH = (225, 29, 72)
DONE = re.compile(r"Done in .* s, seed \d+\.")


@pytest.fixture(scope="module")
def studio() -> Studio:
    """Load the studio on the embedded checkpoint."""
    return Studio(MACHINE)


@pytest.fixture(scope="module")
def ring() -> Request:
    """Ask for a ring in the style of the reference."""
    return Request(prompt="a ring", size=64, style=str(REFERENCE), steps=3, seed=0)


@pytest.fixture(scope="module")
def address(studio, ring, tmp_path_factory) -> Iterator[str]:
    """Serve the page, with a style in its library, and few steps unless others are chosen."""
    folder = tmp_path_factory.mktemp("library")
    Library(folder).save("kept", studio.encode(ring))
    sampling = Page._sampling

    def short(page: Page) -> None:
        sampling(page)
        page.controls["steps"].value = FEW

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Page, "_sampling", short)
        with served(studio, folder) as found:
            yield found


@pytest.fixture(scope="module")
def picture(studio, ring, tmp_path_factory) -> Path:
    """Paint a picture with its recipe."""
    path = tmp_path_factory.mktemp("pictures") / "ring.png"
    (painting,) = studio.paint([ring])
    painting.save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Run the browser."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
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


@pytest.fixture
def hurry(studio, monkeypatch) -> Iterator[threading.Event]:
    """Make every step take long, until this is set."""
    event, forward = threading.Event(), type(studio.session.pipe.unet).forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        event.wait(0.25)
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(studio.session.pipe.unet), "forward", slow)
    yield event
    event.set()


@contextmanager
def held(page: Any) -> Iterator[None]:
    """Hold back what the server is asked and sent, until the end of the `with`."""
    routes: list[Any] = []
    pattern = re.compile(r"/gradio_api/(upload\b(?!_)|run/|queue/join)")
    page.route(pattern, lambda route: routes.append(route))
    yield
    for route in routes:
        route.continue_()
    page.unroute(pattern)


def first(page: Any, where: str) -> Any:
    """Find the field of a control."""
    return page.locator(f"{where} textarea, {where} input").first


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
    first(page, where).fill(text)


def shows(page: Any, pattern: str | re.Pattern[str]) -> None:
    """Wait until the status says something."""
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_contain_text(re.compile(pattern))


def file_of(page: Any, image: Any, folder: Path) -> Path:
    """Fetch the file of a picture that the page shows."""
    path = folder / "fetched.png"
    path.write_bytes(page.request.get(image.get_attribute("src")).body())
    return path


def made(page: Any, folder: Path) -> dict[str, Any]:
    """Wait for the end of a run and return the recipe of its first picture."""
    shows(page, DONE)
    return read_recipe(file_of(page, page.locator("#pictures img").first, folder))


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
    assert (found["prompt"], found["content"]) == ("a ring", "a star")
    assert found["style"]["sha256"] == open_picture("", str(REFERENCE)).sha256
    page.get_by_role("tab", name="Recipe").click()
    shown = page.locator("#recipe").inner_text()
    assert found["style"]["sha256"] in shown


def test_enter_paints_and_all_can_be_reached_by_keyboard(page, tmp_path):
    first(page, "#prompt").focus()
    page.keyboard.press("Enter")
    assert made(page, tmp_path)["prompt"] == "a heart"
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

    expect(images).to_have_count(len(METHODS))
    for name in METHODS:
        assert name in page.locator("#compared").inner_text()
    sources = [images.nth(number).get_attribute("src") for number in range(len(METHODS))]
    sides = page.locator("#slider img")
    expect(sides).to_have_count(2)
    assert {Path(side.get_attribute("src")).name for side in sides.all()} == {Path(s).name for s in sources[1:]}
    page.get_by_label("Left", exact=True).click()
    page.get_by_role("option", name=METHODS[0]).click()
    expect(sides.first).to_have_attribute("src", re.compile(re.escape(Path(sources[0]).name)))


def test_what_is_stopped_ends_and_the_next_run_waits_for_that(page, studio, hurry, tmp_path):
    from playwright.sync_api import expect

    set_steps(page, MANY)
    page.locator("#generate").click()
    shows(page, rf"Step \d+ of {MANY}")
    page.locator("#pictures img").first.wait_for()  # a preview
    page.locator("#stop").click()
    shows(page, r"Stopped\.")
    with studio._lock:  # it comes to an end
        pass
    page.locator("#generate").click()
    shows(page, rf"Step \d+ of {MANY}")
    set_steps(page, FEW)
    page.locator("#stop").click()
    page.locator("#generate").click()
    hurry.set()
    assert made(page, tmp_path)["steps"] == FEW
    expect(page.locator("#status [data-testid=status-tracker]")).to_be_hidden()


def test_a_style_is_kept_and_comes_back(page, visit, tmp_path):
    upload(page, "#reference", REFERENCE)
    open_part(page, "styles")
    page.locator("#encode").click()
    page.locator("#style-file").get_by_text("reference").first.wait_for()
    fill(page, "#style-name", "dots")
    page.locator("#save-style").click()
    from playwright.sync_api import expect

    expect(page.locator("#library input")).to_have_value("dots")
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
    page.locator("#generate").click()
    page.get_by_text("Reference: bad.png is not a picture that can be read").first.wait_for()
    shows(page, "It failed")


def test_two_users_wait_for_each_other_and_get_each_their_own(visit, hurry, tmp_path):
    one, other = visit(), visit()
    fill(one, "#prompt", "a ring")
    fill(other, "#prompt", "a square")
    set_steps(one, MANY)
    one.locator("#generate").click()
    shows(one, "Step")
    other.locator("#generate").click()
    other.get_by_text(re.compile(r"queue: \d+/\d+")).first.wait_for()
    hurry.set()
    assert made(one, tmp_path)["prompt"] == "a ring"
    assert made(other, tmp_path)["prompt"] == "a square"


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

    expect(first(other, "#prompt")).to_have_value("a ring")
    expect(other.get_by_label("Layout", exact=True)).to_be_checked()
    open_part(other, "sampling")
    expect(other.locator("#seed input")).to_have_value(str(found["seed"]))
    upload(other, "#reference", REFERENCE)
    other.get_by_role("tab", name="Pictures").click()
    other.locator("#generate").click()
    again = made(other, tmp_path)
    assert {**again, "versions": None} == {**found, "versions": None}


def test_a_part_is_repainted(page, tmp_path):
    open_part(page, "start")
    upload(page, "#start-editor", REFERENCE)
    page.locator("#start-editor button[aria-label='Brush']").click()
    paint_over(page)
    page.locator("#generate").click()
    found = made(page, tmp_path)
    assert found["pipeline"] == "StableDiffusionXLInstantStyleInpaintPipeline"
    assert found["mask"]["file"] == "painted"


def paint_over(page: Any) -> None:
    """Draw a line with the brush, again if the editor was not ready for it."""
    canvas = page.locator("#start-editor canvas").first
    canvas.wait_for()
    for _ in range(20):
        canvas.hover()  # in its middle, once it has stopped moving
        box = canvas.bounding_box()
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=8)
        page.mouse.up()
        if painted_pixels(canvas) > 1000:
            return


def painted_pixels(canvas: Any) -> int:
    """Count the pixels of the brush's colour."""
    with Image.open(io.BytesIO(canvas.screenshot())) as shown:
        return int((np.abs(np.asarray(shown.convert("RGB"), int) - BRUSH).max(-1) < 8).sum())


# Whoever is quick


def never(page: Any, name: str) -> None:
    """Break a function of the page: its answer does not come, as from a server that is far away."""
    page.evaluate("name => { studio[name] = () => new Promise(() => {}) }", name)


def slide_first(page: Any) -> None:
    """Move the slider of the first block from 0."""
    open_part(page, "blocks")
    page.locator("#sliders input[type=number]").first.fill("0.35")


@pytest.mark.parametrize("broken", [False, True], ids=["right", "broken"])
@pytest.mark.parametrize(
    ("choose", "name"),
    [(lambda page: page.get_by_label("Layout", exact=True).check(), "choose"), (slide_first, "slide")],
    ids=["preset", "slider"],
)
def test_a_run_takes_the_blocks_that_were_chosen_a_moment_before(
    page, studio, tmp_path, choose: Callable[[Any], None], name: str, broken: bool
):
    block = next(iter(studio.blocks))
    chosen = {"choose": {"layout": 1.0}, "slide": {block: 0.35} | {one: 1.0 for one in style_blocks(studio)}}[name]
    if broken:
        never(page, name)
    with held(page):
        choose(page)
        page.locator("#generate").click()
    assert made(page, tmp_path)["target_blocks"] == ({"style": 1.0} if broken else chosen)


def style_blocks(studio: Studio) -> list[str]:
    """Name the blocks of the preset "style"."""
    return [block for block, scale in studio.scales([("style", 1.0)]).items() if scale]


def take_example(page: Any, _: Path) -> None:
    """Take the second example."""
    page.locator("#examples button").nth(1).click()


def take_style(page: Any, _: Path) -> None:
    """Take a style from the library."""
    open_part(page, "styles")
    page.locator("#library input").click()
    page.get_by_role("option", name="kept").click()


def drop_picture(page: Any, path: Path) -> None:
    """Drop a picture with a recipe."""
    page.get_by_role("tab", name="Recipe").click()
    page.locator("#dropped input[type=file]").set_input_files(str(path))


@pytest.mark.parametrize("broken", [False, True], ids=["right", "broken"])
@pytest.mark.parametrize(
    ("choose", "is_taken"),
    [
        (take_example, lambda found: found["prompt"] == grid.PROMPTS[1]),
        (take_style, lambda found: found["style"]["file"] == "kept.safetensors"),
        (drop_picture, lambda found: found["steps"] == 3),
    ],
    ids=["example", "library", "recipe"],
)
def test_a_run_waits_for_what_is_on_its_way(
    page, picture, tmp_path, choose: Callable[[Any, Path], None], is_taken: Callable[[Any], bool], broken: bool
):
    if broken:
        page.evaluate("studio.settled = async () => {}")
    with held(page):
        choose(page, picture)
        page.locator("#generate").click()
        if broken and choose is not drop_picture:  # after an upload only, which Gradio waits for
            page.locator("#status .progress-text").wait_for(state="attached")
    assert is_taken(made(page, tmp_path)) != broken


def test_a_run_waits_for_an_upload(page, tmp_path):
    open_part(page, "references")
    with held(page):
        upload(page, "#references", REFERENCE)
        page.locator("#generate").click()
    (found,) = made(page, tmp_path)["references"]
    assert found["mask"]["file"] == REFERENCE.name


GIVE_A_FILE = """async (place) => {
    const input = document.createElement("input");
    const given = new DataTransfer();
    given.items.add(new File(["a picture"], "picture.png"));
    input.type = "file";
    input.files = given.files;
    document.querySelector(place).append(input);
    input.dispatchEvent(new Event("change", { bubbles: true }));
    const later = new Promise((done) => setTimeout(() => done("held"), 1000));
    const first = await Promise.race([studio.settled().then(() => "settled"), later]);
    studio.loaded();
    await studio.settled();
    return first;
}"""


@pytest.mark.parametrize(("place", "first"), [("#start-editor", "held"), ("#prompt", "settled")])
def test_a_run_waits_for_the_editor_to_read_a_file(page, place, first):
    open_part(page, "start")
    page.locator("#start-editor").wait_for()
    assert page.evaluate(GIVE_A_FILE, place) == first


def test_a_seed_that_is_typed_during_a_run_stays(page, hurry, tmp_path):
    from playwright.sync_api import expect

    set_steps(page, MANY)
    page.locator("#generate").click()
    shows(page, "Step")
    set_steps(page, FEW)
    page.get_by_label("Draw a seed").uncheck()
    page.locator("#seed input").fill("77")
    hurry.set()
    assert made(page, tmp_path)["seed"] != 77
    page.locator("#generate").click()
    shows(page, r"seed 77\b")
    expect(page.locator("#seed input")).to_have_value("77")
    page.get_by_label("Draw a seed").check()
    page.locator("#generate").click()
    shows(page, r"seed (?!77\b)")
    shown = page.locator("#status").inner_text()
    expect(page.locator("#seed input")).to_have_value(re.search(r"seed (\d+)", shown)[1])


# How it looks


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

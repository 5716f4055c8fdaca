"""What the demo's buttons do: from the values of its controls to what it shows."""

from __future__ import annotations

import html
import inspect
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from instantstyle.console import one_line
from instantstyle.demo.flow import follow
from instantstyle.demo.library import Library
from instantstyle.demo.reading import (
    FIELDS,
    WEIGHTS,
    label,
    missing,
    needed,
    open_recipe,
    read_recipe,
    read_request,
    read_requests,
    write_request,
)
from instantstyle.demo.studio import OURS, Step, Studio, Tell
from instantstyle.files import label_of
from instantstyle.inference.inputs import open_picture, open_style
from instantstyle.inference.request import Request, told
from instantstyle.inference.session import SEED_BITS, Painting
from instantstyle.inference.values import name_of, write_targets
from instantstyle.styles.describe import describe


# The controls that may be empty; to `gradio_client` their parameters are optional.
PICTURES = ("reference", "mask", "reference_2", "mask_2", "reference_3", "mask_3", "control_image", "start", "style")
# What a recipe clears, so that nothing acts that is out of sight; the first reference is in sight.
CLEARED = PICTURES[1:]
RESTORED = (
    *FIELDS,
    *("num_images", "randomise", "width", "height"),
    *WEIGHTS,
    *CLEARED,
)
HOUR, DAY = 60 * 60, 24 * 60 * 60


def optional(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show `PICTURES` as parameters that need not be given, of a function that takes the controls' values."""
    signature = inspect.signature(function)
    own, values = list(signature.parameters.values())[:-1], list(signature.parameters.values())[-1]
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in PICTURES]
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *added, values])
    return function


@contextmanager
def telling() -> Iterator[None]:
    """Tell a user's mistake in the browser, and to `gradio_client` as its error, in the words of the package."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(message(error), print_exception=False) from error


def message(error: Exception) -> str:
    """Write an error for the browser: in one line and in the page's words, as text, without where uploads are kept."""
    uploads = rf"{re.escape(get_upload_folder())}/[0-9a-f]+/"
    return html.escape(re.sub(uploads, "", one_line(ValueError(told(error, label)))), quote=False)


def bar(step: Step) -> str:
    """Draw how far a run has come."""
    text = f"Step {step.done} of {step.total}"
    return f'<progress max="{step.total}" value="{step.done}" aria-label="{text}"></progress> {text}'


class Actions:
    """What can be done with a studio and a library. Methods of the API's names are its actions.

    Args:
        studio: Paints.
        library: Keeps styles.
        folder: Where files to download are put.
    """

    def __init__(self, studio: Studio, library: Library, folder: Path) -> None:
        self.studio = studio
        self.library = library
        self.folder = folder

    @optional
    def generate(self, **values: Any) -> Iterator[Any]:
        """Paint. Gives the pictures, the recipe of the first and how far it is; meanwhile previews."""

        def show(paintings: list[Painting]) -> tuple[Any, ...]:
            return self._keep(paintings), paintings[0].recipe

        requests = self._read(values)
        work = partial(self.studio.paint, requests, preview=values["preview"])
        yield from self._run(work, requests[0], show, lambda step: (list(step.previews) or gr.skip(),))

    @optional
    def compare(self, **values: Any) -> Iterator[Any]:
        """Paint without reference, with a plain IP-Adapter and with InstantStyle, from one seed.

        Gives the labelled pictures, two of them for the slider, the last one's recipe and how far it is.
        """

        def show(compared: dict[str, Painting]) -> tuple[Any, ...]:
            files = self._keep(list(compared.values()))
            return list(zip(files, compared, strict=True)), (files[-2], files[-1]), compared[OURS].recipe

        request = self._read(values)[0]
        yield from self._run(partial(self.studio.compare, request), request, show, lambda _: (gr.skip(), gr.skip()))

    @optional
    def encode(self, **values: Any) -> str:
        """Encode the references as a style file, which then stands for them."""
        with telling():
            request = read_request(values | {"seed": None})
            style = self.studio.encode(request)
            path = self._scratch() / f"{Path(name_of(request.style[0].picture)).stem}.safetensors"
            style.save(path)
            return str(path)

    def describe(self, style: str | None) -> str:
        """Show what a style file is made of."""
        with telling():
            return describe(open_style(label("style"), style).style) if style else ""

    def save_style(self, style: str | None, name: str) -> Any:
        """Keep a style file in the library under a new name."""
        with telling():
            if not style:
                raise ValueError("`style`: there is none. Encode the reference, or give a file.")
            self.library.save(name, open_style(label("style"), style).style)
        return gr.Dropdown(choices=self.library.names(), value=name.strip())

    def load_style(self, name: str | None) -> str | None:
        """Take a style file from the library."""
        with telling():
            return str(shutil.copy(self.library.path(name), self._scratch())) if name else None

    def library_names(self) -> list[str]:
        """Name the styles of the library."""
        return self.library.names()

    def restore(self, file: str | None) -> list[Any]:
        """Set the controls as the recipe in a PNG file says; at last the preset and the scale of every block.

        Files are not in a recipe: it names those to be given again. What the demo cannot repeat is told.
        """
        if file is None:
            return [gr.skip()] * (2 + len(RESTORED) + len(self.studio.blocks))
        with telling():
            found = open_recipe(file)
            request = read_recipe(found)
            self._remark(found, request)
            values = dict.fromkeys(CLEARED) | write_request(request)
            where = self._where(request)
        return [found, *(values.get(name, gr.skip()) for name in RESTORED), *where]

    def _remark(self, found: dict[str, Any], request: Request) -> None:
        """Say what of a recipe the controls cannot hold."""
        if files := needed(request):
            gr.Info(f"Give these again, a recipe only names them: {html.escape(', '.join(files))}.")
        if others := missing(found, self._loaded()):
            gr.Warning(f"It was painted with what is not here: {html.escape(', '.join(others))}.")

    def _loaded(self) -> dict[str, str | None]:
        """Name what is loaded as recipes do."""
        session = self.studio.session
        machine = session.machine
        named = {"controlnet": machine.controlnet, "content_encoder": machine.content_encoder}
        labels = {name: label_of(text) if text else None for name, text in named.items()}
        return {"model": session.model.label, "adapter": session.adapter.label, **labels}

    def _where(self, request: Request) -> list[Any]:
        """The preset that a request names, if it is one, and the scale of every block."""
        if "target_blocks" not in request.given:
            return [gr.skip()] * (1 + len(self.studio.blocks))
        scales, preset = self.studio.scales(request.target_blocks), write_targets(request.target_blocks)
        return [preset if preset in self.studio.modes else None, *scales.values()]

    def pair(self, compared: Sequence[tuple[str, str]] | None, left: str, right: str) -> tuple[str, str] | None:
        """Choose the two sides of the slider."""
        found = {name: path for path, name in compared or []}
        return (found[left], found[right]) if left in found and right in found else None

    def check_picture(self, picture: str) -> None:
        """Say at once that a file is no picture."""
        try:
            open_picture("Picture", picture)
        except (ValueError, OSError) as error:
            gr.Warning(message(error))

    # How

    def _read(self, values: dict[str, Any]) -> list[Request]:
        """Read the controls, with a seed drawn where that is asked for, and say what is remarkable about them."""
        seed = secrets.randbits(SEED_BITS) if values["randomise"] or values["seed"] is None else values["seed"]
        with telling():
            requests = read_requests(values | {"seed": seed})
        for remark in self.remarks(values, requests[0]):
            gr.Warning(message(ValueError(remark)))
        return requests

    def remarks(self, values: dict[str, Any], request: Request) -> list[str]:
        """What a user should know about the controls and the request that they make, though they are no mistake."""
        remarks = [self.studio.session.unknown_words([request])]
        if request.style_file is not None and values["content"]:
            remarks.append("`content`: nothing is removed from a style file; that is done when it is encoded.")
        return [remark for remark in remarks if remark]

    def _run(
        self,
        work: Callable[[Tell, Event], Any],
        request: Request,
        show: Callable[[Any], tuple[Any, ...]],
        meanwhile: Callable[[Step], tuple[Any, ...]],
    ) -> Iterator[Any]:
        """Do what takes long: give a row of outputs for every step, and at last for the result.

        Args:
            work: What the studio does.
            request: What it does it for, or the first of them.
            show: Makes the outputs of the result, all but the last.
            meanwhile: Makes those of a step, all but the last two.
        """
        start = time.monotonic()
        with telling(), closing(follow(work)) as events:
            for event in events:
                if isinstance(event, Step):
                    yield *meanwhile(event), gr.skip(), bar(event)
                else:
                    seconds = time.monotonic() - start
                    yield *show(event), f"Done in {seconds:.1f} s, seed {request.seed}."

    def _keep(self, paintings: Sequence[Painting]) -> list[str]:
        """Write pictures with their recipes; return their paths."""
        folder, paths = self._scratch(), []
        for number, painting in enumerate(paintings):
            paths.append(str(folder / f"instantstyle-{painting.recipe['seed']}-{number}.png"))
            painting.save(paths[-1])
        return paths

    def _scratch(self) -> Path:
        """Make a folder, so that files of one name do not meet; remove those that nobody needs any more.

        Gradio shows copies of its own, and removes those alone.
        """
        for old in self.folder.glob("*/"):
            with suppress(FileNotFoundError):  # another call removed it
                if old.is_dir() and time.time() - old.stat().st_mtime > DAY:
                    shutil.rmtree(old)
        return Path(tempfile.mkdtemp(dir=self.folder))

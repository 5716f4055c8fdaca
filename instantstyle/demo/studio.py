"""The studio: a pipeline that is loaded once, and paints for one at a time. It knows nothing of browsers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from instantstyle.core import adapter_state, attention_blocks, presets, resolve_target_blocks
from instantstyle.demo.preview import previews
from instantstyle.demo.settings import CONTENT, EVERYTHING, Settings
from instantstyle.inference.models import TINY, knows_world
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import Painting, Session
from instantstyle.styles.style import Style


PRESETS = ("style", "layout", "style+layout", "all")
NO_REFERENCE, PLAIN, OURS = METHODS = ("no reference", "plain IP-Adapter", "InstantStyle")
SHOWN = 12  # previews of one run, at most


@dataclass(frozen=True)
class Step:
    """How far a run has come.

    Attributes:
        done, total: Steps.
        previews: What the pictures look like now; empty where that is not shown.
    """

    done: int
    total: int
    previews: Sequence[Image.Image] = ()

    def of_part(self, number: int, count: int) -> Step:
        """The same step, in a run of `count` such runs of which `number` are done."""
        return replace(self, done=self.done + number * self.total, total=self.total * count)


Tell = Callable[[Step], None]


class Studio:
    """A session that paints for one at a time. Everything that is painted shares its parts; nothing is loaded again.

    Attributes:
        session: What paints; its model, adapter and ControlNet are loaded.
        blocks: The UNet's attention blocks, each with its layers.
        presets: What names besides theirs `target_blocks` may have.

    Args:
        machine: What is loaded, and where; the embedded checkpoint brings its own ControlNet.

    Raises:
        ValueError, OSError: A model cannot be found or loaded.
    """

    def __init__(self, machine: Machine) -> None:
        own = machine.model == TINY and machine.controlnet is None
        self.session = Session(machine.but(controlnet=TINY) if own else machine)
        self.session.load([Request(prompt="", style="of any")])
        self._check_controlnet()
        self._lock = threading.Lock()
        # Read now: while something is painted, the UNet may look otherwise.
        unet = self.pipe.unet
        self.blocks = attention_blocks(unet)
        state: Any = adapter_state(unet)
        self.presets = presets(unet) | state.files[0].presets

    @property
    def pipe(self) -> Any:
        """The pipeline whose parts are shared."""
        return self.session.pipe

    def _check_controlnet(self) -> None:
        name = self.session.machine.controlnet
        if name is None:
            return
        width, own = (part.config.cross_attention_dim for part in (self.pipe.controlnet, self.pipe.unet))
        if width != own:
            raise ValueError(
                f"`controlnet`: {name} takes text embeddings of width {width}, but `model` "
                f"{self.session.model.label} has them of width {own}; name a ControlNet for that family."
            )

    # What there is to choose from

    @property
    def knows_world(self) -> bool:
        """Whether the model knows the drawn world alone."""
        return knows_world(self.session.model)

    @property
    def side(self) -> int:
        """Width and height in pixels that the model was made for."""
        return int(self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor)

    @property
    def modes(self) -> list[str]:
        """The usual presets, as far as this model and adapter have them."""
        return [name for name in PRESETS if name in self.presets]

    def scales(self, target_blocks: Sequence[tuple[str, float]]) -> dict[str, float]:
        """The scale of every attention block; of one whose layers differ, the largest.

        Raises:
            ValueError: A name is no block.
        """
        layers = [layer for inside in self.blocks.values() for layer in inside]
        found: Any = resolve_target_blocks(dict(target_blocks), layers, self.presets)
        return {block: max(found.get(layer, 0.0) for layer in inside) for block, inside in self.blocks.items()}

    def remarks(self, settings: Settings) -> list[str]:
        """What a user should know about these settings, though they are no mistake."""
        remarks = [self.session.unknown_words([settings.request])]
        if settings.style and settings.content:
            remarks.append(f"{CONTENT}: nothing is removed from a style file; that is done when it is encoded.")
        return [remark for remark in remarks if remark]

    # What it does

    def paint(
        self, settings: Settings, tell: Tell = lambda _: None, stop: threading.Event | None = None
    ) -> list[Painting]:
        """Paint.

        Args:
            settings: What to paint.
            tell: Is told of every step.
            stop: When it is set, the steps that are left are skipped; without any step there is no picture.

        Raises:
            ValueError, TypeError, OSError: A user's mistake. Nothing was painted then.
        """
        settings.check()
        request = settings.request
        requests = [request.but(seed=settings.seed + index) for index in range(settings.num_images)]
        with self._lock:
            if stop is not None and stop.is_set():
                return []
            return self.session.paint(requests, follower(settings.preview, tell, stop))

    def compare(
        self, settings: Settings, tell: Tell = lambda _: None, stop: threading.Event | None = None
    ) -> dict[str, Painting]:
        """Paint one picture with each of `METHODS`, from one seed; a style file has no plain IP-Adapter.

        Arguments and errors are those of `paint`.
        """
        ours = replace(settings, num_images=1)
        methods = {
            NO_REFERENCE: replace(ours, scale=0.0),
            PLAIN: replace(ours, target_blocks=EVERYTHING, content=None),
            OURS: ours,
        }
        if settings.style:
            del methods[PLAIN]
        found = {}
        for number, (name, chosen) in enumerate(methods.items()):
            part = partial(tell_part, tell, number, len(methods))
            painted = self.paint(chosen, part, stop)
            if not painted:
                break
            (found[name],) = painted
        return found

    def encode(self, settings: Settings) -> Style:
        """Encode the references, by their weights, as one style in float16.

        Raises:
            ValueError, TypeError: A user's mistake.
        """
        settings.check_style()
        if settings.style or settings.masked:
            came = "a style file, which is encoded already" if settings.style else "a reference with a mask"
            raise ValueError(f"Reference: a style is made of pictures alone, but there is {came}. Take it away.")
        with self._lock:
            return self.session.encode(settings.request).to(torch.float16)


def tell_part(tell: Tell, number: int, count: int, step: Step) -> None:
    """Tell of a step in one of several runs."""
    tell(step.of_part(number, count))


def follower(preview: bool, tell: Tell, stop: threading.Event | None) -> Callable[..., dict[str, Any]]:
    """Return what the pipeline calls after every step."""

    def follow(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if stop is not None and stop.is_set():
            pipe._interrupt = True  # as diffusers documents it
        total = pipe.num_timesteps
        shown = preview and step % -(-total // SHOWN) == 0
        tell(Step(step + 1, total, previews(pipe, tensors["latents"]) if shown else ()))
        return tensors

    return follow

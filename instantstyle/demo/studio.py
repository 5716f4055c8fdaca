"""The studio: a session that paints for one at a time, and tells how far it is. It knows nothing of browsers."""

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
from instantstyle.inference.grid import METHODS, WORDS
from instantstyle.inference.models import TINY
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import OnStep, Painting, Session
from instantstyle.styles.style import Style


PRESETS = ("style", "layout", "style+layout", "all")
NO_REFERENCE, PLAIN, OURS = METHODS
ANY = Request(prompt="", style="any.png")  # needs all that is loaded
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
    """A session for several users, who wait for each other. Everything that is painted shares its parts.

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
        self.session.load([ANY])
        self._check_controlnet()
        self._lock = threading.Lock()
        # Read now: while something is painted, the UNet may look otherwise.
        unet = self.session.pipe.unet
        self.blocks = attention_blocks(unet)
        state: Any = adapter_state(unet)
        self.presets = presets(unet) | state.files[0].presets

    def _check_controlnet(self) -> None:
        name, pipe = self.session.machine.controlnet, self.session.pipe
        if name is None:
            return
        width, own = (part.config.cross_attention_dim for part in (pipe.controlnet, pipe.unet))
        if width != own:
            raise ValueError(
                f"`controlnet`: {name} takes text embeddings of width {width}, but `model` "
                f"{self.session.model.label} has them of width {own}; name a ControlNet for that family."
            )

    # What there is to choose from

    @property
    def side(self) -> int:
        """Width and height in pixels that the model was made for."""
        pipe = self.session.pipe
        return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)

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

    # What it does

    def paint(
        self,
        requests: Sequence[Request],
        tell: Tell = lambda _: None,
        stop: threading.Event | None = None,
        *,
        preview: bool = False,
    ) -> list[Painting]:
        """Paint.

        Args:
            requests: What to paint.
            tell: Is told of every step.
            stop: When it is set, the steps that are left are skipped; without any step there is no picture.
            preview: Whether steps show what the pictures look like.

        Raises:
            ValueError, TypeError, OSError: A user's mistake. Nothing was painted then.
        """
        with self._lock:
            if stop is not None and stop.is_set():
                return []
            return self.session.paint(requests, follower(tell, stop, preview))

    def compare(
        self, request: Request, tell: Tell = lambda _: None, stop: threading.Event | None = None
    ) -> dict[str, Painting]:
        """Paint a request with each of `METHODS`, from one seed; a style file has no plain IP-Adapter.

        Arguments and errors are those of `paint`.
        """
        methods = {NO_REFERENCE: request.but(scale=0.0)}
        if request.style_file is None:
            methods[PLAIN] = request.but(target_blocks=WORDS[PLAIN], content=None)
        methods[OURS] = request
        found = {}
        for number, (name, chosen) in enumerate(methods.items()):
            painted = self.paint([chosen], partial(tell_part, tell, number, len(methods)), stop)
            if not painted:
                break
            (found[name],) = painted
        return found

    def encode(self, request: Request) -> Style:
        """Encode a request's references as one style in float16. Errors are those of `Session.encode`."""
        with self._lock:
            return self.session.encode(request).to(torch.float16)


def tell_part(tell: Tell, number: int, count: int, step: Step) -> None:
    """Tell of a step in one of several runs."""
    tell(step.of_part(number, count))


def follower(tell: Tell, stop: threading.Event | None, preview: bool) -> OnStep:
    """Return what the pipeline calls after every step."""

    def follow(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if stop is not None and stop.is_set():
            pipe._interrupt = True  # as diffusers documents it
        total = pipe.num_timesteps
        shown = preview and step % -(-total // SHOWN) == 0
        tell(Step(step + 1, total, previews(pipe, tensors["latents"]) if shown else ()))
        return tensors

    return follow

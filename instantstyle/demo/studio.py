"""The studio: a pipeline that is loaded once, and paints for one at a time. It knows nothing of browsers."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.utils import load_image
from PIL import Image, ImageOps

from instantstyle.core import adapter_state, attention_blocks, presets, resolve_target_blocks
from instantstyle.demo.edges import find_edges
from instantstyle.demo.preview import previews
from instantstyle.demo.settings import CONTENT, EVERYTHING, STYLE_FILE, Reference, Settings
from instantstyle.inference import calls, models, recipe, request, session
from instantstyle.inference.inputs import Picture, load_style
from instantstyle.inference.models import TINY
from instantstyle.inference.request import variant_name
from instantstyle.inference.session import sibling
from instantstyle.inference.values import changed
from instantstyle.styles.encoder import encode
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


@dataclass(frozen=True)
class Painting:
    """A picture and its recipe."""

    image: Image.Image
    recipe: dict[str, Any]


class Studio:
    """A model, its adapter and its ControlNet. Everything that is painted shares them; nothing is loaded again.

    Attributes:
        model, adapter, controlnet_name: What is loaded; without a ControlNet the last is None.
        blocks: The UNet's attention blocks, each with its layers.
        presets: What names besides theirs `target_blocks` may have.

    Args:
        options: `model`, `adapter`, `content_encoder`, `controlnet`, `device`, `dtype` and `offload` of the command
            line.

    Raises:
        ValueError, OSError: A model cannot be found or loaded.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = models.find_model(options.model)
        self.adapter = models.find_adapter(options.adapter, self.model)
        self.options = options
        # On all blocks, so that another choice of them reads no file.
        alone = {"image": None, "mask": None, "controlnet": None, "target_blocks": list(EVERYTHING), "scale": 1.0}
        self.pipe = session.load(changed(options, **alone), self.model, self.adapter)
        name = options.controlnet or (TINY if options.model == TINY else None)
        self.controlnet_name, self.controlnet = name, self._load_controlnet(name) if name else None
        self.pipe.set_progress_bar_config(disable=True)
        self._pipelines = {type(self.pipe).__name__: self.pipe}
        self._lock = threading.Lock()
        # Read now: while something is painted, the UNet may look otherwise.
        unet = self.pipe.unet
        self.blocks = attention_blocks(unet)
        state: Any = adapter_state(unet)
        self.presets = presets(unet) | state.files[0].presets

    def _load_controlnet(self, name: str) -> Any:
        controlnet = session.load_controlnet(name, self.pipe.dtype)
        width, own = controlnet.config.cross_attention_dim, self.pipe.unet.config.cross_attention_dim
        if width != own:
            raise ValueError(
                f"--controlnet: {name} takes text embeddings of width {width}, but --model "
                f"{self.model.label} has them of width {own}; name a ControlNet for that family."
            )
        return controlnet

    # What there is to choose from

    @property
    def knows_world(self) -> bool:
        """Whether the model knows the drawn world alone."""
        return models.knows_world(self.model)

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
        texts = [settings.prompt, settings.negative or "", settings.content or ""]
        remarks = [models.unknown_words(self.model, texts)]
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
        self._check_control(settings)
        options = self._options(settings)
        style, kept = load_style(settings.style, STYLE_FILE) if settings.style else (None, None)
        request.check_family(options, style, self.model, STYLE_FILE)
        if style is None:
            request.check_content_encoder(options, self.model, self.adapter, CONTENT)
        with self._lock:
            if stop is not None and stop.is_set():
                return []
            pipe = self._pipeline(options)
            arguments = self._arguments(settings, options, pipe, style)
            images = pipe(**arguments, callback_on_step_end=follower(settings.preview, tell, stop)).images
            adapter = None if style else self.adapter
            common = recipe.describe(options, pictures(settings), pipe, self.model, adapter, kept, arguments)
        return [Painting(image, common | own(settings, index, image)) for index, image in enumerate(images)]

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
        request.check_content_encoder(self._options(settings), self.model, self.adapter, CONTENT)
        with self._lock:
            return self._encode(settings, settings.references).to(torch.float16)

    # How

    def _options(self, settings: Settings) -> argparse.Namespace:
        """The settings in the form that `generate` has them."""
        chosen = {field.name: getattr(settings, field.name) for field in fields(settings)}
        chosen |= {"prompt": [settings.prompt], "controlnet": self.controlnet_name if settings.control_image else None}
        return changed(self.options, **chosen)

    def _check_control(self, settings: Settings) -> None:
        if settings.control_image and self.controlnet is None:
            raise ValueError("Layout picture: there is no ControlNet. Start the demo with --controlnet.")

    def _pipeline(self, options: argparse.Namespace) -> Any:
        """The pipeline for the pictures that were given, of the same parts as all others."""
        name = variant_name(options, self.model.family)
        if name not in self._pipelines:
            parts = {"controlnet": self.controlnet} if options.controlnet else {}
            self._pipelines[name] = session.place(sibling(self.pipe, name, **parts), self.options)
        return self._pipelines[name]

    def _arguments(self, settings: Settings, options: argparse.Namespace, pipe: Any, style: Any) -> dict[str, Any]:
        """The arguments of the pipeline's call."""
        given = fitted(settings)
        if settings.single:
            blocks = {name: weight * settings.scale for name, weight in settings.target_blocks}
            return calls.call_arguments(options, pipe, given, None) | {"target_blocks": blocks}
        # What a style is without was removed when it was encoded.
        encoded = style or self._styles(settings)
        arguments = calls.call_arguments(changed(options, content=None), pipe, given, encoded)
        return arguments | (masking(settings) if settings.masked else {})

    def _styles(self, settings: Settings) -> Style | tuple[Style, ...]:
        """The mean of the references; where one has a mask, a style of each."""
        if not settings.masked:
            return self._encode(settings, settings.references)
        return tuple(self._encode(settings, [replace(one, weight=1.0)]) for one in settings.references)

    def _encode(self, settings: Settings, references: Sequence[Reference]) -> Style:
        return encode(
            self.pipe,
            [reference.picture.image for reference in references],
            neg_content_prompt=settings.content,
            neg_content_scale=settings.content_scale,
            target_blocks=dict(settings.target_blocks),
            weights=[reference.weight for reference in references],
        )


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


def pictures(settings: Settings) -> dict[str, Picture]:
    """The pictures by the names that recipes give them; of several references, `own` tells."""
    named = {"style": settings.single, "image": settings.image, "mask": settings.mask}
    return {name: one for name, one in (named | {"control_image": settings.control_image}).items() if one}


def fitted(settings: Settings) -> dict[str, Image.Image]:
    """The pictures as the pipeline takes them: all but the reference upright and cropped to the result's size."""
    given = {name: one.image for name, one in pictures(settings).items()}
    given |= {name: cropped(image, settings.size) for name, image in given.items() if name != "style"}
    if settings.edges and "control_image" in given:
        given["control_image"] = find_edges(given["control_image"])
    return given


def cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring a picture to a size, upright; what does not fit is cut off on both sides alike."""
    return ImageOps.fit(load_image(image), size, Image.Resampling.LANCZOS)


def masking(settings: Settings) -> dict[str, Any]:
    """The arguments that keep each reference, as a style of its own, in its place."""
    width, height = settings.size
    everywhere = Image.new("L", settings.size, "white")
    processor = IPAdapterMaskProcessor()
    masks = [cropped(one.mask.image, settings.size) if one.mask else everywhere for one in settings.references]
    return {
        "style_scale": tuple(settings.scale * one.weight for one in settings.references),
        "cross_attention_kwargs": {
            "ip_adapter_masks": [processor.preprocess(mask, height=height, width=width) for mask in masks]
        },
    }


def own(settings: Settings, index: int, image: Image.Image) -> dict[str, Any]:
    """What the recipe of one picture says beside what all of the run share."""
    recipe: dict[str, Any] = {
        "size": list(image.size),
        "picture": {"index": index, "prompt": settings.prompt, "seed": settings.seed + index},
    }
    if settings.control_image:
        recipe["edges"] = settings.edges
    if not settings.single and not settings.style:
        recipe["references"] = [
            {
                **one.picture.written,
                "weight": one.weight,
                "mask": one.mask.written if one.mask else None,
            }
            for one in settings.references
        ]
    return recipe

"""A session: models that are loaded once, and the one way from requests to pictures with their recipes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from instantstyle.console import hushed
from instantstyle.inference import models, recipe
from instantstyle.inference.calls import (
    call_arguments,
    completed,
    encode,
    joined,
    kind,
    needs_adapter,
    result_size,
    second_pass,
    style_arguments,
    variant_name,
    way,
)
from instantstyle.inference.inputs import Reader, StyleFile, fitted
from instantstyle.inference.request import Machine, Request, check
from instantstyle.inference.values import Targets
from instantstyle.pipelines import hidiffusion, variants
from instantstyle.pipelines.distilled import DISTILLED, apply_distilled, find_weights
from instantstyle.styles.style import Style
from instantstyle.version import in_dtype, versions


SEED_BITS = 32  # of seeds that are drawn

OnStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""What diffusers calls `callback_on_step_end`: pipeline, step, timestep and tensors -> tensors."""


@dataclass(frozen=True)
class Painting:
    """A picture and its recipe."""

    image: Image.Image
    recipe: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file that holds its recipe. It appears whole or not at all."""
        recipe.write_recipe(self.image, path, self.recipe)


@dataclass(frozen=True)
class Order:
    """A request with everything at hand that its picture is made of.

    Attributes:
        asked: What was asked for.
        request: The same, completed and with its files opened.
        pictures: What is started from and steered by, as the pipeline takes it.
    """

    asked: Request
    request: Request
    pictures: Mapping[str, Image.Image]

    @property
    def kind(self) -> Hashable:
        """Equal orders' pictures can be made in one call."""
        return kind(self.request, self.pictures)


class Session:
    """Paints requests on one machine. Nothing is loaded before it is needed, and nothing twice.

    Args:
        machine: Which models, and where.
        bars: Whether the pipelines show progress.

    Attributes:
        model: What is known of the model, without its weights.

    Raises:
        ValueError, OSError: The model or the device is not there, or they do not go together.

    Example:
        >>> (painting,) = Session(Machine()).paint([Request(prompt="a heart", style="reference.png")])
        >>> painting.save("heart.png")
    """

    def __init__(self, machine: Machine, bars: bool = False) -> None:
        self.machine = machine
        self.model = models.find_model(machine.model)
        self.device = find_device(machine.device)
        check_place(machine, self.device, self.model)
        self.reader = Reader()
        self._bars = bars
        self._pipes: dict[str, Any] = {}
        self._adapted = False
        self._aim: Any = None  # the target blocks and the scale that the adapter was given

    @cached_property
    def adapter(self) -> models.Adapter:
        """What is known of the adapter, without its weights."""
        return models.find_adapter(self.machine.adapter, self.model)

    # What is known before anything is loaded

    def complete(self, request: Request) -> Request:
        """Return a request that says what it left open, but for a seed. No file is opened and nothing loaded.

        Raises:
            ValueError: This machine cannot paint it. Names of fields stand between backticks.
        """
        check(request, self.machine)
        if request.hires:
            with about("hires", self.model.label):
                hidiffusion.table(self.model.unet)
                hidiffusion.load_library()
        if request.content is not None and needs_adapter(request):
            check_content_encoder(self.machine, self.model, self.adapter)
        return completed(request, self.machine, variant_class(variant_name(request, self.model.family)))

    def order(self, request: Request) -> Order:
        """Check a request, and open its files.

        Raises:
            ValueError, OSError: It cannot be painted here, or a file cannot be read.
        """
        opened = self.reader.opened(self.complete(request))
        check_family(opened, self.model)
        return Order(request, opened, fitted(opened))

    def describe(self, request: Request) -> dict[str, Any]:
        """Write what the recipe of a request's picture must say. Its files are named, and not opened."""
        return self._describe(self.reader.named(self.complete(request)))

    def _describe(self, request: Request) -> dict[str, Any]:
        return recipe.describe(request, self.machine, self.model, self.adapter if needs_adapter(request) else None)

    def unknown_words(self, requests: Iterable[Request]) -> str | None:
        """Say which words of requests a model of the drawn world has never seen; of other models say nothing."""
        texts = (text for one in requests for text in (one.prompt, one.negative, one.content) if text)
        return models.unknown_words(self.model, list(dict.fromkeys(texts)))

    # Painting

    def paint(self, requests: Sequence[Request], on_step: OnStep | None = None) -> list[Painting]:
        """Paint. Requests of one kind are painted in one call; those without a seed get one.

        Args:
            requests: What to paint.
            on_step: Called after every step. Where it sets the pipeline's `_interrupt`, the steps left are skipped.

        Returns:
            A painting for each request, in their order.

        Raises:
            ValueError, TypeError, OSError: A user's mistake. Those that can be known before are found before anything
                is loaded.
        """
        orders = [self.order(seeded(request)) for request in requests]
        kinds: dict[Hashable, list[int]] = {}
        for place, order in enumerate(orders):
            kinds.setdefault(order.kind, []).append(place)
        painted: dict[int, Painting] = {}
        for places in kinds.values():
            painted |= zip(places, self._paint([orders[place] for place in places], on_step), strict=True)
        return [painted[place] for place in range(len(orders))]

    def _paint(self, orders: Sequence[Order], on_step: OnStep | None) -> list[Painting]:
        pipe = self.pipeline(orders[0].request)
        images = self._call(pipe, orders, on_step)
        if orders[0].request.upscale is not None:
            second = [self._second(order, image) for order, image in zip(orders, images, strict=True)]
            images = self._call(self.pipeline(second[0].request), second, on_step)
        each = zip(orders, images, strict=True)
        return [Painting(image, self._recipe(order.request, pipe, image)) for order, image in each]

    def _second(self, order: Order, image: Image.Image) -> Order:
        # How strong a ControlNet is by default, is each pipeline's own.
        again = second_pass(order.request, image).but(controlnet_scale=order.asked.controlnet_scale)
        request = completed(again, self.machine, variant_class(variant_name(again, self.model.family)))
        return Order(again, request, fitted(request))

    def _call(self, pipe: Any, orders: Sequence[Order], on_step: OnStep | None) -> list[Image.Image]:
        first = orders[0]
        if needs_adapter(first.request):
            self.aim_at(first.request.target_blocks, first.request.scale if way(first.request) == "picture" else 1.0)
        (hidiffusion.enable_hidiffusion if first.request.hires else hidiffusion.disable_hidiffusion)(pipe)
        call = joined([call_arguments(order.request, order.pictures, pipe, self.machine) for order in orders])
        style = style_arguments([order.request for order in orders], pipe, result_size(first.request, first.pictures))
        return pipe(**call, **style, callback_on_step_end=on_step).images

    def _recipe(self, request: Request, pipe: Any, image: Image.Image) -> dict[str, Any]:
        return {
            "versions": versions(),
            **self._describe(request),
            "size": list(image.size),
            "device": pipe._execution_device.type,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "offload": self.machine.offload,
        }

    def encode(self, request: Request) -> Style:
        """Encode a request's references, by their weights and its content, as one style.

        Raises:
            ValueError, OSError: They cannot be encoded: a style file is already, and a mask is of the result.
        """
        if way(request) not in ("picture", "mean"):
            raise ValueError("`style`: a style is made of pictures alone, without masks; give one or several.")
        opened = self.reader.opened(self.complete(request))
        pipe = self.pipeline(opened)
        self.aim_at(opened.target_blocks, 1.0)
        return encode(opened, opened.style, pipe)

    def aim_at(self, target_blocks: Targets, scale: float = 1.0) -> None:
        """Let these blocks see the reference, at these scales times `scale`."""
        if (target_blocks, scale) != self._aim:
            # It counts for all that share the UNet, and only the first one knows how the model is spread or offloaded.
            self.pipe.set_target_blocks(dict(target_blocks), scale=scale)
            self._aim = target_blocks, scale

    # Pipelines

    @property
    def pipe(self) -> Any:
        """The pipeline that was loaded; the others share its parts."""
        self.load([])
        return next(iter(self._pipes.values()))

    def pipeline(self, request: Request) -> Any:
        """Return the pipeline for a request; the first is loaded, and the others share its parts."""
        self.load([request])
        name = variant_name(request, self.model.family)
        if name not in self._pipes:
            self._pipes[name] = sibling(self.pipe, name)
        return self._pipes[name]

    def load(self, requests: Sequence[Request]) -> None:
        """Load what requests need and is not loaded yet; for none, the model itself."""
        adapted = any(map(needs_adapter, requests))
        if not self._pipes:
            first = requests[0] if requests else Request(prompt="")
            controlled = self.machine.controlnet is not None
            name = variant_name(first, self.model.family, controlled)
            self._pipes[name] = place(self._loaded(name, adapted), self.machine, self.device)
        elif adapted and not self._adapted:
            self._load_adapter(self.pipe)
            for name in list(self._pipes)[1:]:
                del self._pipes[name]  # it lacks the image encoder

    def _loaded(self, name: str, adapted: bool) -> Any:
        machine, variant = self.machine, variant_class(name)
        weights = find_distilled(machine, self.model.family)
        dtype = getattr(torch, machine.dtype or ("float16" if self.device.type == "cuda" else "float32"))
        parts = {"controlnet": load_controlnet(machine.controlnet, dtype)} if machine.controlnet else {}
        if machine.device_map is not None:
            parts["device_map"] = machine.device_map
        from_source = variant.from_single_file if self.model.single_file else variant.from_pretrained
        with about("model", self.model.label):
            pipe = from_source(self.model.source, **in_dtype(dtype), **parts)
        pipe.set_progress_bar_config(disable=not self._bars)
        if machine.fast is not None:
            with about("fast", machine.fast):
                apply_distilled(pipe, DISTILLED[machine.fast], weights)
        if machine.vae_tiling:
            pipe.vae.enable_tiling()
        if adapted:
            self._load_adapter(pipe)
        return pipe

    def _load_adapter(self, pipe: Any) -> None:
        adapter, encoder = self.adapter, self.machine.content_encoder
        pipe.load_ip_adapter(
            adapter.source,
            subfolder=adapter.subfolder,
            weight_name=adapter.weight_name,
            image_encoder_folder=adapter.image_encoder_folder,
        )
        if encoder is not None:
            with about("content_encoder", encoder):
                pipe.load_content_encoder(encoder)
        self._adapted = True


def seeded(request: Request) -> Request:
    """Give a request without a seed a random one."""
    return request if request.seed is not None else request.but(seed=secrets.randbits(SEED_BITS))


# Checks


def check_family(request: Request, model: models.Model) -> None:
    """Refuse a style that was encoded for another family."""
    file = request.style_file
    if isinstance(file, StyleFile) and file.style.recipe.family != model.family:
        raise ValueError(
            f"`style`: {file.file} is of the family {file.style.recipe.family}, but `model` {model.label} is of the "
            f"family {model.family}; encode the reference with a model of that family."
        )


def check_content_encoder(machine: Machine, model: models.Model, adapter: models.Adapter) -> None:
    """Refuse to remove content where the model has no text tower that matches the adapter."""
    if machine.content_encoder is None and (model.family == "sd15" or adapter.uses_vit_h):
        raise ValueError(
            f"`content` with {adapter.label} needs `content_encoder`, the text tower of its image encoder; for the "
            f"published ViT-H adapters: {models.CONTENT_ENCODER}"
        )


def check_place(machine: Machine, device: torch.device, model: models.Model) -> None:
    """Refuse offloading where there is nothing to offload from, and spreading what cannot be spread."""
    if machine.offload != "none" and device.type == "cpu":
        raise ValueError(f"`offload` {machine.offload} needs an accelerator, but `device` is cpu.")
    if machine.device_map is not None and model.single_file:
        raise ValueError(
            "`device_map`: diffusers cannot spread `model`, which is a single file; leave `device_map` out, or see "
            "`offload`."
        )


@contextmanager
def about(name: str, value: str) -> Iterator[None]:
    """Put a field and its value before an error that speaks of neither."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        # ImportError: a folder that holds nothing makes transformers ask for packages that other formats need.
        raise ValueError(f"`{name}`: {value}: {error}") from error


# Loading


def variant_class(name: str) -> Any:
    """Return a variant by its name."""
    return getattr(variants, name)


def sibling(pipe: Any, name: str) -> Any:
    """Make another variant of a pipeline's parts; nothing is loaded or copied."""
    with hushed():  # diffusers remarks on every cast, also to what is there
        other = variant_class(name).from_pipe(pipe, **in_dtype(pipe.dtype))
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other


def find_device(name: str | None) -> torch.device:
    """Return the device of this name, or the best one there is.

    Raises:
        ValueError: There is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"`device`: {name!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    return device


def place(pipe: Any, machine: Machine, device: torch.device) -> Any:
    """Bring a pipeline to its device, or have it brought there part by part."""
    if machine.device_map is not None:
        return pipe  # it is where it belongs
    if machine.offload == "none":
        return pipe.to(device)
    getattr(pipe, f"enable_{machine.offload}_cpu_offload")(device=device)
    return pipe


def load_controlnet(text: str, dtype: Any) -> Any:
    """Load a ControlNet from a folder, the Hub, or the embedded checkpoint."""
    from diffusers import ControlNetModel

    with about("controlnet", text):
        return ControlNetModel.from_pretrained(models.find_controlnet(text), **in_dtype(dtype))


def find_distilled(machine: Machine, family: str) -> Path | None:
    """Find the weights of the distilled model."""
    if machine.fast is None:
        return None
    with about("fast", machine.fast):
        return find_weights(DISTILLED[machine.fast], family, machine.fast_weights)

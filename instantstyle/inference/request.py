"""What to paint, and where: two typed, frozen values, and what in them contradicts each other.

A field's name, type, default and words stand here alone. The command line, a manifest's columns, the demo's controls
and the recipe in a picture are notations of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from instantstyle.inference.values import (
    ContentScale,
    Count,
    Enlargement,
    File,
    Fraction,
    Kind,
    Number,
    Seed,
    Size,
    Source,
    Switch,
    Targets,
    Text,
    Where,
    Words,
    is_style_file,
    read_source,
)
from instantstyle.pipelines.distilled import DISTILLED


STEPS, GUIDANCE = 30, 5.0  # of a model that is not distilled
PAINTED_OVER = 0.3  # of an enlarged picture
STYLE = (("style", 1.0),)

# Each of these says nothing without the other.
NEEDS = {
    "mask": "image",
    "strength": "image",
    "edges": "control_image",
    "controlnet_scale": "control_image",
    "upscale_strength": "upscale",
}
ENCODED = ("content", "content_scale", "target_blocks", "reference_fit")  # what a style file has behind it


def read_distilled(name: str) -> str:
    """Take the name of a distilled model."""
    if name not in DISTILLED:
        raise ValueError
    return name


Distilled = Annotated[str, AfterValidator(read_distilled), Kind(f"one of {', '.join(DISTILLED)}", "NAME")]


@dataclass(frozen=True)
class Reference:
    """A picture whose style is taken.

    Attributes:
        picture: The picture.
        weight: How much it counts among several.
        mask: Where in the result it acts (white); None for everywhere.
    """

    picture: Source
    weight: float = 1.0
    mask: Source | None = None


def read_references(value: Any) -> tuple[Reference, ...]:
    """Take one reference or several: files, pictures, or such with weights and masks."""
    several = [] if value is None else value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    found = tuple(one if isinstance(one, Reference) else Reference(read_source(one)) for one in several)
    if len(found) > 1 and any(is_style_file(one.picture) for one in found):
        raise ValueError("expected one style file alone, or pictures")
    return found


References = Annotated[tuple[Reference, ...], PlainValidator(read_references), Kind("a picture or style file", "FILE")]


class Value(BaseModel):
    """What requests and machines have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # built when the first value is

    @property
    def given(self) -> dict[str, Any]:
        """What was said and not left to the defaults, by field."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def but(self, **changes: Any) -> Any:
        """Return the same with changes, checked anew."""
        return type(self)(**{**self.given, **changes})


class Request(Value):
    """What decides a picture, whoever asks for it.

    Files are paths or pictures; texts such as "64x48" and "style,layout=0.5" are read as the command line reads them.

    Example:
        >>> Request(prompt="a heart", style="reference.png", content="a star", target_blocks={"style": 1.0}, seed=7)
    """

    prompt: Text = Field(description="what to show")
    style: References = Field(
        (), title="Style file", description="the reference picture, or a style file (.safetensors)"
    )
    reference_fit: Literal["crop", "pad", "squash", "tiles"] = Field(
        "crop", description="what becomes of a reference that is not square"
    )
    content: Words | None = Field(
        None, title="Leave out", description='what the reference shows and must not return, as in "a star"'
    )
    content_scale: ContentScale = Field(1.0, title="Amount", description='how much of that: a number or "auto"')
    target_blocks: Targets = Field(
        STYLE, description="presets or attention blocks that see the reference; may be repeated"
    )
    scale: Number = Field(1.0, title="Strength", description="strength of the reference")
    negative: Text | None = Field(None, title="Negative prompt", description="negative prompt")
    steps: Count | None = Field(None, description=f"default: {STEPS}, or what `fast` says")
    guidance: Number | None = Field(None, description=f"default: {GUIDANCE}, or what `fast` says")
    seed: Seed | None = Field(None, description="default: a random one")
    size: Size | None = Field(None, description="in pixels, or one number for a square; default: the model's")
    image: File | None = Field(
        None, title="Start", description="start from this picture, cropped to the size of the result"
    )
    mask: File | None = Field(None, description="repaint only the white part of this mask of the picture")
    strength: Fraction | None = Field(
        None, title="How much to change", description="how much of the picture to change, 0 to 1"
    )
    control_image: File | None = Field(None, title="Layout picture", description="the ControlNet's picture")
    edges: Switch = Field(
        False, title="Find its edges first (Canny)", description="find the edges of the ControlNet's picture first"
    )
    controlnet_scale: Number | None = Field(
        None, title="ControlNet strength", description="strength of the ControlNet"
    )
    hires: Switch = Field(False, description="paint a large picture in one pass, by HiDiffusion")
    upscale: Enlargement | None = Field(
        None, description="paint, enlarge by this factor, and paint over in the same style"
    )
    upscale_strength: Fraction | None = Field(
        None, description=f"how much is painted over, 0 to 1; default: {PAINTED_OVER}"
    )

    @property
    def style_file(self) -> Source | None:
        """The style file, where the style is one."""
        return next((one.picture for one in self.style if is_style_file(one.picture)), None)

    if TYPE_CHECKING:  # fields take what their kinds read, texts above all

        def __init__(self, **given: Any) -> None: ...

    @model_validator(mode="after")
    def _agrees(self) -> Request:
        for name, other in NEEDS.items():
            if getattr(self, name) not in (None, False) and getattr(self, other) is None:
                raise ValueError(f"`{name}` needs `{other}`.")
        if self.style_file is not None:
            refuse_encoded([name for name, value in self.given.items() if name in ENCODED and value is not None])
        if self.hires and self.upscale is not None:
            raise ValueError("`hires` and `upscale` are two ways to a large picture; choose one.")
        if self.hires and not (self.size or self.image or self.control_image):
            raise ValueError("`hires` needs a `size` larger than the model's own, or a picture of such a size.")
        return self


class Machine(Value):
    """Which models paint, and where.

    Example:
        >>> Machine(model="stabilityai/stable-diffusion-xl-base-1.0", device="cuda", dtype="float16")
    """

    model: Where = Field(
        "tiny", description="a folder, a .safetensors file, a Hub repository, or the embedded checkpoint"
    )
    adapter: Where | None = Field(
        None,
        description="IP-Adapter: a file, or FOLDER_OR_REPOSITORY[:SUBFOLDER/FILE]; default: the model's, or its "
        "family's",
    )
    content_encoder: Where | None = Field(
        None, description="text tower for `content`, where the model's own does not match the adapter"
    )
    controlnet: Where | None = Field(None, description='ControlNet: a folder, a Hub repository, or "tiny"')
    fast: Distilled | None = Field(
        None, description=f"paint in few steps, with the weights and settings of {', '.join(DISTILLED)}"
    )
    fast_weights: Where | None = Field(
        None,
        description="a LoRA or a UNet in place of the published one: a file, or FOLDER_OR_REPOSITORY[:SUBFOLDER/FILE]",
    )
    vae_tiling: Switch = Field(False, description="decode in tiles, which takes less memory")
    device: Where | None = Field(None, description="default: cuda or mps where there is one, else cpu")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="default: float16 on cuda, else float32"
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none", description="keep what is not running out of the accelerator's memory"
    )
    device_map: Literal["balanced"] | None = Field(
        None, description="spread a model that is too large for one device over all"
    )

    if TYPE_CHECKING:  # fields take what their kinds read, texts above all

        def __init__(self, **given: Any) -> None: ...

    @model_validator(mode="after")
    def _agrees(self) -> Machine:
        if self.fast_weights is not None and self.fast is None:
            raise ValueError("`fast_weights` needs `fast`.")
        if self.device_map is None:
            return self
        for name in ("device", "offload"):
            if getattr(self, name) not in (None, "none"):
                raise ValueError(f"`device_map` {self.device_map} places the model itself; leave `{name}` out.")
        if self.controlnet is not None:
            raise ValueError("`device_map`: diffusers cannot spread `controlnet`; leave `device_map` out.")
        return self


# What contradicts each other


def refuse_encoded(names: Sequence[str]) -> None:
    """Refuse, beside a style file, what steers the encoding of a picture."""
    if names:
        raise ValueError(
            f"`{names[0]}` is for a reference picture, but `style` is encoded already; say `{names[0]}` where it is "
            "encoded."
        )


def laid_over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the fields that are given over others that stand in where nothing is said.

    A style file is encoded already, so what steers the encoding is not for requests that name one.
    """
    found = {**defaults, **given}
    if any(is_style_file(one.picture) for one in read_references(found.get("style"))):
        return {name: value for name, value in found.items() if name not in ENCODED or name in given}
    return found


def sampling(request: Request, machine: Machine) -> tuple[int, float]:
    """Steps and guidance: what was asked for, else what the distilled model says, else the usual."""
    distilled = DISTILLED[machine.fast] if machine.fast else None
    steps, guidance = (distilled.steps, distilled.guidance) if distilled else (STEPS, GUIDANCE)
    return request.steps or steps, guidance if request.guidance is None else request.guidance


def check(request: Request, machine: Machine) -> None:
    """Refuse a request that a machine cannot paint, before anything is read.

    Raises:
        ValueError: Why, with the names of fields between backticks.
    """
    steps, guidance = sampling(request, machine)
    if request.control_image is not None and machine.controlnet is None:
        raise ValueError("`control_image` needs `controlnet`.")
    if request.hires and machine.offload == "sequential":
        raise ValueError(
            "`hires` changes parts of the UNet, which `offload` sequential takes apart; use `offload` model."
        )
    if machine.fast is not None:
        _check_distilled(request, machine.fast, guidance)
    check_part("strength", request.strength, steps)
    check_part("upscale_strength", painted_over(request), steps)


def _check_distilled(request: Request, fast: str, guidance: float) -> None:
    if "timesteps" in DISTILLED[fast].more and (request.steps or request.image or request.upscale):
        raise ValueError(f"`fast` {fast} is one step from noise; leave `steps`, `image` and `upscale` out.")
    if request.negative is not None and guidance <= 1:
        raise ValueError(
            f"`negative` says nothing at guidance {guidance:g}, which is what `fast` {fast} has; leave it out, or "
            "give a `guidance` above 1."
        )


def painted_over(request: Request) -> float | None:
    """How much of an enlarged picture is painted over; None where it is not enlarged."""
    if request.upscale is None:
        return None
    return PAINTED_OVER if request.upscale_strength is None else request.upscale_strength


def check_part(name: str, part: float | None, steps: int) -> None:
    """Refuse a strength that leaves no step to a pass that starts from a picture."""
    if part is not None and int(steps * part) < 1:
        raise ValueError(f"`{name}` {part:g} of {steps} steps leaves none; give more of either.")


# In the words of who asks


FIELD = re.compile(r"`(\w+)`")


def told(error: Exception, name: Callable[[str], str] = "`{}`".format) -> str:
    """Write an error's message in the caller's words.

    Args:
        error: What was raised.
        name: Writes a field as the caller knows it: an option, a column, a control. By default the argument in Python.
    """
    return worded(_first(error) if isinstance(error, ValidationError) else str(error), name)


def worded(text: str, name: Callable[[str], str]) -> str:
    """Write the fields that a text names between backticks as the caller knows them."""
    fields = Request.model_fields.keys() | Machine.model_fields.keys()
    return FIELD.sub(lambda found: name(found[1]) if found[1] in fields else found[0], text)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    said = first["msg"].replace("Input should be", "expected")
    text = str(first.get("ctx", {}).get("error", "")) or f"{said}, got {first['input']!r}"
    return f"`{first['loc'][0]}`: {text}" if first["loc"] else text

"""What `instantstyle evaluate` compares: the conditions, the pairs they are tried on, and the pictures they make."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from instantstyle.tiny import world


METHODS = ("none", "adapter", "prompt", "img2img")
SPLITS = ("selection", "reporting")
PHRASING = "a {}"
POOL = 4096  # pairs drawn per split; the first n are used, so that pair i is the same however many are asked for

# SDXL's attention groups in the order in which they run, which is how ComfyUI numbers them.
COMFYUI_GROUPS = (
    "down_blocks.1.attentions.0",
    "down_blocks.1.attentions.1",
    "down_blocks.2.attentions.0",
    "down_blocks.2.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
    "up_blocks.0.attentions.2",
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
    "up_blocks.1.attentions.2",
)
COMFYUI_PRESETS = {
    "style transfer": (6,),
    "composition": (3,),
    "strong style transfer": (0, 1, 2, 4, 5, 6, 7, 8, 9, 10),
    "style and composition": (3, 6),
}
"""The presets of ComfyUI_IPAdapter_plus, by the groups that see the reference.

"Style transfer precise" and "composition precise" are left out: they also give image tokens to the unconditional
branch, which no scale of a block can express.
"""


@dataclass(frozen=True)
class Condition:
    """One way to use a reference.

    Attributes:
        name: What tables and plots call it.
        method: "none" (the prompt alone), "adapter", "prompt" (the reference's style named in the prompt, and no
            reference) or "img2img" (starting from the reference, without the adapter).
        target_blocks: Which blocks see the reference, as `set_target_blocks` takes them. Like the next two, for the
            method "adapter".
        scale: The adapter's strength.
        content: How much of the reference's shape to remove, a number or "auto"; None removes nothing.
        phrasing: How the shape that is removed is put in words; "{}" stands for it.
        strength: How much of the reference "img2img" changes, above 0 and up to 1.

    Raises:
        ValueError: The method is unknown, or does not go with the others.
    """

    name: str
    method: str = "adapter"
    target_blocks: Any = "all"
    scale: float = 1.0
    content: float | str | None = None
    phrasing: str = PHRASING
    strength: float | None = None

    def __post_init__(self) -> None:
        about = f"condition {self.name!r}"
        if self.method not in METHODS:
            raise ValueError(f"{about}: `method` must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if not _is_number(self.scale):
            raise ValueError(f"{about}: `scale` must be a number, got {self.scale!r}.")
        if self.content is not None and self.content != "auto" and not _is_number(self.content):
            raise ValueError(f'{about}: `content` must be a number, "auto" or null, got {self.content!r}.')
        if self.content is not None and self.method != "adapter":
            raise ValueError(f'{about}: `content` is removed from what the adapter sees; expected `method` "adapter".')
        if not isinstance(self.phrasing, str) or "{}" not in self.phrasing:
            raise ValueError(f'{about}: `phrasing` must be a text with "{{}}" in it, got {self.phrasing!r}.')
        if self.phrasing != PHRASING and self.content is None:
            raise ValueError(f"{about}: `phrasing` is of what `content` removes; expected `content` beside it.")
        if (self.strength is not None) != (self.method == "img2img"):
            raise ValueError(f'{about}: `strength` is what `method` "img2img" needs, and no other.')
        if self.strength is not None and not (_is_number(self.strength) and 0 < self.strength <= 1):
            raise ValueError(f"{about}: `strength` must be above 0 and at most 1, got {self.strength!r}.")

    def __hash__(self) -> int:
        return hash((self.name, self.key()))

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Condition:
        """Make a condition from an object of JSON.

        Raises:
            ValueError: It is no object, has no name, or has an attribute that is unknown or wrong.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(f'A condition must be an object with a "name", got {value!r}.')
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in value if name not in known]
        if unknown:
            raise ValueError(
                f"condition {value['name']!r}: {unknown[0]!r} is unknown; expected some of {', '.join(known)}."
            )
        return cls(**value)

    def settings(self) -> dict[str, Any]:
        """Return what decides the pictures: the attributes that the method uses, without the name."""
        if self.method == "img2img":
            return {"method": self.method, "strength": float(self.strength or 0)}
        if self.method != "adapter":
            return {"method": self.method}
        content = self.content if self.content is None or self.content == "auto" else float(self.content)
        blocks = self.target_blocks
        if isinstance(blocks, Mapping):
            blocks = {name: float(scale) if _is_number(scale) else scale for name, scale in blocks.items()}
        phrasing = None if content is None else self.phrasing
        return {
            "method": self.method,
            "target_blocks": blocks,
            "scale": float(self.scale),
            "content": content,
            "phrasing": phrasing,
        }

    def key(self) -> str:
        """Return a name for the settings, the same on every machine."""
        return digest(self.settings())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def digest(value: Any) -> str:
    """Name a value that JSON can hold by its content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Curve:
    """One method at several strengths, the weakest first.

    Attributes:
        name: What the plot calls it.
        points: The strength in words, and the condition.
        against: The curve that it is compared with at equal style.
    """

    name: str
    points: tuple[tuple[str, Condition], ...]
    against: str | None


NO_REFERENCE = Condition("no reference", "none")
PLAIN = Condition("plain")
STYLE = Condition("style blocks", target_blocks="style")
NAMED = Condition("style named in the prompt", "prompt")


def headline_conditions() -> list[Condition]:
    """Return the conditions that are compared by default."""
    return [
        NO_REFERENCE,
        PLAIN,
        STYLE,
        without(STYLE, 0.5),
        without(STYLE, "auto"),
        without(PLAIN, 0.5),
        without(PLAIN, 1.0),
        without(PLAIN, "auto"),
        NAMED,
    ]


def quick_conditions() -> list[Condition]:
    """Return the few conditions that show the effect."""
    return [NO_REFERENCE, PLAIN, STYLE, without(STYLE, 0.5)]


def curves() -> list[Curve]:
    """Return every method at several strengths.

    The adapter's curves start where nothing of it is left: without a reference, or without subtraction.
    """
    return [
        scale_curve(PLAIN, (0.25, 0.5, 0.75, 1.0, 1.25), against=None),
        scale_curve(STYLE, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5), against=PLAIN.name),
        content_curve(PLAIN, (0.25, 0.5, 0.75, 1.0, 1.5, "auto")),
        *(content_curve(PLAIN, (0.25, 0.5, 1.0, "auto"), phrasing) for phrasing in ("{}", "a drawing of a {}")),
        content_curve(STYLE, (0.25, 0.5, 0.75, 1.0, 1.5, "auto")),
        *(comfyui_curve(preset, (0.5, 1.0, 1.5)) for preset in COMFYUI_PRESETS),
        Curve("img2img", tuple((f"{s:g}", img2img(s)) for s in (0.9, 0.8, 0.7, 0.6, 0.5)), PLAIN.name),
        Curve(NAMED.name, (("", NAMED),), PLAIN.name),
    ]


def scale_curve(condition: Condition, scales: Sequence[float], against: str | None) -> Curve:
    """Try a condition at several scales."""
    points = [(f"{scale:g}", scaled(condition, scale)) for scale in scales]
    return Curve(condition.name, (("0", NO_REFERENCE), *points), against)


def content_curve(condition: Condition, strengths: Sequence[float | str], phrasing: str = PHRASING) -> Curve:
    """Remove content from a condition at several strengths, against the condition at several scales."""
    points = [(_written(content), without(condition, content, phrasing)) for content in strengths]
    return Curve(f"{condition.name} - content{_quoted(phrasing)}", (("0", condition), *points), condition.name)


def comfyui_curve(preset: str, weights: Sequence[float]) -> Curve:
    """Try one of ComfyUI's presets at several weights."""
    name, groups = f"ComfyUI {preset}", [COMFYUI_GROUPS[number] for number in COMFYUI_PRESETS[preset]]
    points = [
        (f"{weight:g}", Condition(f"{name} {weight:g}", target_blocks=dict.fromkeys(groups, weight)))
        for weight in weights
    ]
    return Curve(name, tuple(points), PLAIN.name)


def scaled(condition: Condition, scale: float) -> Condition:
    """Return the condition at another scale."""
    return dataclasses.replace(condition, name=f"{condition.name} {scale:g}", scale=scale)


def without(condition: Condition, content: float | str, phrasing: str = PHRASING) -> Condition:
    """Return the condition with content removed."""
    name = f"{condition.name} - content {_written(content)}{_quoted(phrasing)}"
    return dataclasses.replace(condition, name=name, content=content, phrasing=phrasing)


def img2img(strength: float) -> Condition:
    """Return image-to-image from the reference."""
    return Condition(f"img2img {strength:g}", "img2img", strength=strength)


def _written(content: float | str) -> str:
    return content if isinstance(content, str) else f"{content:g}"


def _quoted(phrasing: str) -> str:
    return "" if phrasing == PHRASING else f' "{phrasing.replace("{}", "...")}"'


@dataclass
class Pairs:
    """Prompts with a reference each; the reference never shows what the prompt asks for.

    Attributes:
        split: Where they come from, one of `SPLITS`.
        numbers: Place of each in its split, int64 of shape (n,).
        prompts_shape: Index into `world.SHAPES`, int64 of shape (n,).
        references: The scenes of the references.
    """

    split: str
    numbers: Tensor
    prompts_shape: Tensor
    references: world.Scenes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Pairs:
        return Pairs(self.split, self.numbers[rows], self.prompts_shape[rows], self.references[rows])

    def prompt(self, row: int) -> str:
        """Return the prompt of one pair."""
        return world.caption(world.SHAPES[int(self.prompts_shape[row])])

    def content(self, row: int) -> str:
        """Return what the reference of one pair shows, in a word."""
        return self.references.words(row)["shape"]

    def named(self, row: int) -> str:
        """Return the prompt of one pair with its reference's style named in it."""
        words = self.references.words(row)
        shape = world.SHAPES[int(self.prompts_shape[row])]
        return world.caption(shape, words["palette"], words["background"], words["texture"])


def sample_pairs(count: int, split: str) -> Pairs:
    """Return the first pairs of a split.

    Args:
        count: How many, at most `POOL`.
        split: "selection" to choose by, "reporting" to report on: new draws of the same world, which neither meet each
            other nor what anything was trained on.

    Raises:
        ValueError: `count` or `split` is none of these.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    if not 1 <= count <= POOL:
        raise ValueError(f"`count` must be from 1 to {POOL}, got {count}.")
    return pool(split)[:count]


@cache
def pool(split: str) -> Pairs:
    """Draw all pairs of a split."""
    generator = torch.Generator().manual_seed(make_seed(split, "pairs"))
    references = world.sample(POOL, generator)
    shapes = len(world.SHAPES)
    others = torch.randint(1, shapes, (POOL,), generator=generator)
    return Pairs(split, torch.arange(POOL), (references.shape + others) % shapes, references)


def make_seed(*parts: str | int) -> int:
    """Make a seed from what it is for."""
    text = "/".join(("instantstyle evaluate", *map(str, parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63


def make_pictures(
    pipe: Any,
    condition: Condition,
    pairs: Pairs,
    seeds: Sequence[int],
    *,
    steps: int = 16,
    guidance: float = 3.5,
    batch: int = 32,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Make the pictures of one condition.

    A pair's picture depends on the pair, the seed and the condition alone, not on what else is in the batch; its noise
    depends on the pair and the seed alone, so that conditions can be compared picture by picture.

    Args:
        pipe: A `StableDiffusionXLInstantStylePipeline` with an IP-Adapter. For the method "adapter" its target blocks
            and scale are set to the condition's, and stay so.
        condition: How to use the references.
        pairs: What to show, and in whose style.
        seeds: Each pair is painted once with each.
        steps: Sampling steps that are run, also where "img2img" skips the first part of the schedule.
        guidance: The guidance scale.
        batch: Pictures at a time.
        progress: Is told after each batch how many pictures it had.

    Returns:
        Float tensor of shape (pairs, seeds, 3, height, width) in [0, 1].
    """
    if condition.method == "adapter":
        pipe.set_target_blocks(condition.target_blocks, scale=condition.scale)
    if condition.method == "img2img":
        pipe = image_to_image(pipe)
    rows = [(row, seed) for row in range(len(pairs)) for seed in seeds]
    parts = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        arguments = call_arguments(pipe, condition, pairs, [row for row, _ in part], steps)
        noise = [torch.Generator().manual_seed(make_seed(pairs.split, int(pairs.numbers[r]), s)) for r, s in part]
        parts.append(pipe(**arguments, guidance_scale=guidance, generator=noise, output_type="pt").images.float())
        if progress is not None:
            progress(len(part))
    return torch.cat(parts).unflatten(0, (len(pairs), len(seeds)))


def image_to_image(pipe: Any) -> Any:
    """Return the image-to-image pipeline of the same parts."""
    import instantstyle

    # Not `from_pipe`, which warns of a conversion to the precision that the parts already have.
    other = instantstyle.StableDiffusionXLInstantStyleImg2ImgPipeline(
        **pipe.components,
        force_zeros_for_empty_prompt=pipe.config.force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    other.set_progress_bar_config(disable=True)
    return other


def call_arguments(pipe: Any, condition: Condition, pairs: Pairs, rows: list[int], steps: int) -> dict[str, Any]:
    """Put a condition and some of its pairs in the words of the pipeline's call."""
    write = pairs.named if condition.method == "prompt" else pairs.prompt
    arguments: dict[str, Any] = {"prompt": [write(row) for row in rows], "num_inference_steps": steps}
    if condition.method == "img2img":
        assert condition.strength is not None
        arguments |= {
            "image": world.draw(pairs.references[rows], picture_size(pipe)),
            "strength": condition.strength,
            # The pipeline runs the last `strength` of its steps.
            "num_inference_steps": math.ceil(steps / condition.strength - 1e-6),
        }
    if condition.method == "adapter":
        pictures = reference_pictures(pairs.references[rows], picture_size(pipe))
        arguments |= {"ip_adapter_image": [pictures], "ip_adapter_image_per_prompt": True}
    if condition.content is not None:
        content = [[condition.phrasing.replace("{}", pairs.content(row)) for row in rows]]
        arguments |= {"neg_content_prompt": content, "neg_content_scale": condition.content}
    return arguments


def picture_size(pipe: Any) -> int:
    """Return the width and height in pixels of what the pipeline makes."""
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def reference_pictures(references: world.Scenes, pixels: int) -> list[Image.Image]:
    """Draw references as a user would give them: pictures of eight bits."""
    return [to_picture(drawing) for drawing in world.draw(references, pixels)]


def to_picture(pixels: Tensor) -> Image.Image:
    """Turn a tensor of shape (3, height, width) in [0, 1] into a picture of eight bits."""
    return Image.fromarray(pixels.permute(1, 2, 0).mul(255).round().byte().numpy())

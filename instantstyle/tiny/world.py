"""The world of the embedded checkpoint: pictures of one shape each, whose content, style and layout are known.

A scene is a row of numbers. Its content is the shape; its style is the palette, the background, the texture and the
line weight, the last of which no caption names; its layout is the position, the size and the rotation.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


PIXELS = 64
SUPERSAMPLING = 2

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "ring")
PALETTES = {
    "red": (214, 40, 40),
    "orange": (244, 130, 32),
    "yellow": (248, 212, 38),
    "lime": (150, 214, 52),
    "green": (38, 140, 62),
    "teal": (22, 158, 158),
    "blue": (48, 88, 218),
    "purple": (128, 58, 176),
    "pink": (240, 104, 172),
    "brown": (126, 74, 38),
}
BACKGROUNDS = {
    "white": (250, 250, 250),
    "gray": (168, 168, 172),
    "black": (22, 22, 26),
    "navy": (24, 34, 92),
    "cream": (250, 232, 186),
    "mint": (186, 240, 208),
    "sky": (172, 218, 250),
    "lilac": (214, 192, 246),
    "peach": (252, 194, 164),
}
DARK_BACKGROUNDS = ("black", "navy")
TEXTURES = ("plain", "striped", "dotted", "checked", "netted", "shaded")
NAMES = {
    "shape": SHAPES,
    "palette": tuple(PALETTES),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}
"""The attributes that words name, and those words."""

LINE_WEIGHTS = (0.5, 2.8)  # pixels
SIZES = (16.0, 23.0)  # pixels from the centre to the edge
ANGLES = (-0.4, 0.4)  # radians
MARGIN = 2.0  # pixels between the shape's circle and the frame
TEXTURE_PERIOD = 9.0  # pixels

PICTURE_WORDS = ("picture", "drawing", "painting", "photo")
OTHER_WORDS = ("a", "an", "of", "on", "in", "the", "and", "with", "background", "style", "shape", ",", ".")


@dataclass
class Scenes:
    """A batch of scenes: what is in each picture.

    Attributes:
        shape, palette, background, texture: Index into `NAMES`, int64 of shape (n,).
        line: Weight of the outline in pixels, float of shape (n,).
        x, y: Centre in pixels from the upper left corner.
        size: Pixels from the centre to the edge.
        angle: Rotation in radians.
    """

    shape: Tensor
    palette: Tensor
    background: Tensor
    texture: Tensor
    line: Tensor
    x: Tensor
    y: Tensor
    size: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Scenes:
        return Scenes(**{name: value[rows] for name, value in self.columns().items()})

    def columns(self) -> dict[str, Tensor]:
        """Return every attribute under its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def replace(self, **columns: Tensor) -> Scenes:
        """Return these scenes with some attributes changed."""
        return Scenes(**{**self.columns(), **columns})

    @staticmethod
    def cat(parts: Sequence[Scenes]) -> Scenes:
        """Return the scenes of all parts, one after another."""
        return Scenes(
            **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Scenes)}
        )

    def words(self, row: int) -> dict[str, str]:
        """Return the words for one scene's named attributes."""
        return {name: words[int(getattr(self, name)[row])] for name, words in NAMES.items()}


def sample(count: int, generator: torch.Generator) -> Scenes:
    """Draw `count` scenes, every attribute independently and evenly; the frame cuts off tips of corners at most."""

    def even(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def choice(words: Sequence[str]) -> Tensor:
        return torch.randint(len(words), (count,), generator=generator)

    named = {name: choice(words) for name, words in NAMES.items()}
    size = even(*SIZES)
    low, high = size + MARGIN, PIXELS - size - MARGIN
    return Scenes(
        **named, line=even(*LINE_WEIGHTS), x=even(low, high), y=even(low, high), size=size, angle=even(*ANGLES)
    )


def draw(scenes: Scenes, pixels: int = PIXELS) -> Tensor:
    """Draw scenes.

    Args:
        scenes: What to draw.
        pixels: Width and height of the pictures; the scenes' lengths are for 64 and are scaled along.

    Returns:
        Float tensor of shape (n, 3, pixels, pixels) in [0, 1], on the device of the scenes.
    """
    x, y = places(scenes, pixels * SUPERSAMPLING)
    return F.avg_pool2d(paint(scenes, x, y, distance(scenes, x, y)), SUPERSAMPLING)


def places(scenes: Scenes, points: int) -> tuple[Tensor, Tensor]:
    """Return where points are relative to each scene's centre, in pixels: x and y, each (n, points, points)."""
    steps = (torch.arange(points, device=scenes.x.device) + 0.5) * (PIXELS / points)
    x, y = steps[None, None, :] - scenes.x[:, None, None], steps[None, :, None] - scenes.y[:, None, None]
    return torch.broadcast_tensors(x, y)


def paint(scenes: Scenes, x: Tensor, y: Tensor, outside: Tensor) -> Tensor:
    """Colour points by the scenes' style.

    Args:
        scenes: Whose palette, background, texture and line weight to use.
        x, y: Where the points are, as from `places`.
        outside: Each point's distance in pixels from the figure's outline, negative inside.

    Returns:
        Float tensor of shape (n, 3, points, points) in [0, 1].
    """
    softness = PIXELS / x.shape[-1]  # one point, over which an edge goes from nothing to full
    figure = edge(-outside, softness)[:, None]
    line = edge(scenes.line[:, None, None] - outside.abs() * 2, 2 * softness)[:, None]
    marks = texture(scenes, x, y, softness)[:, None]
    ground, colour, mark, outline = (part[:, :, None, None] for part in colours(scenes))
    picture = ground + (colour + (mark - colour) * marks - ground) * figure
    return picture + (outline - picture) * line


def colours(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the colours of the background, the figure, the marks on it and its outline, each (n, 3) in [0, 1].

    Marks are lighter than a dark figure and darker than a light one; outlines differ from the background likewise.
    """
    device = scenes.palette.device
    table = torch.tensor(list(PALETTES.values()), device=device) / 255
    grounds = torch.tensor(list(BACKGROUNDS.values()), device=device) / 255
    colour, ground = table[scenes.palette], grounds[scenes.background]
    light = colour @ torch.tensor([0.299, 0.587, 0.114], device=device) > 0.5
    mark = torch.where(light[:, None], colour * 0.45, colour * 0.25 + 0.75)
    dark = torch.tensor([name in DARK_BACKGROUNDS for name in BACKGROUNDS], device=device)[scenes.background]
    outline = torch.where(dark[:, None], colour * 0.35 + 0.65, colour * 0.3)
    return ground, colour, mark, outline


def edge(inside: Tensor, softness: float) -> Tensor:
    """Turn a distance in pixels, positive inside, into coverage in [0, 1]."""
    return (inside / softness + 0.5).clamp(0, 1)


def texture(scenes: Scenes, x: Tensor, y: Tensor, softness: float) -> Tensor:
    """Return how much of the mark colour each point has, given its place relative to the centre, in pixels."""
    period = TEXTURE_PERIOD
    marks = torch.zeros_like(x)
    for number, name in enumerate(TEXTURES):
        rows = scenes.texture == number
        u, v = x[rows], y[rows]
        if name == "striped":
            marks[rows] = edge(ripple((u + v) / math.sqrt(2), period), softness)
        elif name == "dotted":
            marks[rows] = edge(0.3 * period - torch.hypot(fold(u, period), fold(v, period)), softness)
        elif name == "checked":
            marks[rows] = edge(ripple(u, 1.3 * period) * ripple(v, 1.3 * period), softness)
        elif name == "netted":
            lines = torch.minimum(fold(u, period).abs(), fold(v, period).abs())
            marks[rows] = edge(0.13 * period - lines, softness)
        elif name == "shaded":
            marks[rows] = (0.5 + 0.45 * (u + v) / scenes.size[rows, None, None]).clamp(0, 1)
    return marks


def fold(x: Tensor, period: float) -> Tensor:
    """Return the signed distance to the nearest multiple of the period."""
    return x - period * torch.round(x / period)


def ripple(x: Tensor, period: float) -> Tensor:
    """Return a triangle wave of slope 1 that is positive in the half of each period around its multiples."""
    return period / 4 - fold(x, period).abs()


def distance(scenes: Scenes, x: Tensor, y: Tensor) -> Tensor:
    """Return the distance in pixels from each point to the shape's outline, negative inside."""
    cos, sin = (f(scenes.angle)[:, None, None] / scenes.size[:, None, None] for f in (torch.cos, torch.sin))
    places = torch.stack((x * cos + y * sin, y * cos - x * sin), dim=-1)
    field = distance_fields().to(x.device)[scenes.shape][:, None]
    found = F.grid_sample(field, places / FIELD_EXTENT, padding_mode="border", align_corners=True)[:, 0]
    return found * scenes.size[:, None, None]


FIELD_EXTENT = 2.0  # the distance fields reach this many times the size from the centre
FIELD_POINTS = 321


@cache
def distance_fields() -> Tensor:
    """Return the distance to the outline of every shape of size 1, negative inside: (shapes, points, points)."""
    steps = torch.linspace(-FIELD_EXTENT, FIELD_EXTENT, FIELD_POINTS)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack((x, y), dim=-1)
    fields = {name: polygon_distance(points, outline(name)) for name in SHAPES if name != "ring"}
    radius = points.norm(dim=-1)
    fields["ring"] = (radius - 0.72).abs() - 0.28
    return torch.stack([fields[name] for name in SHAPES])


def polygon_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Return the signed distance from points (..., 2) to a closed polygon (n, 2), negative inside."""
    nearest = torch.full(points.shape[:-1], math.inf)
    inside = torch.zeros(points.shape[:-1], dtype=torch.bool)
    for start, end in zip(corners, corners.roll(-1, 0), strict=True):
        side, offset = end - start, points - start
        along = ((offset * side).sum(-1) / (side * side).sum()).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - along[..., None] * side).norm(dim=-1))
        crosses = (start[1] > points[..., 1]) != (end[1] > points[..., 1])
        inside ^= crosses & (offset[..., 0] < side[0] * offset[..., 1] / side[1])
    return torch.where(inside, -nearest, nearest)


def outline(name: str) -> Tensor:
    """Return the corners of a shape of size 1, y downwards: (n, 2)."""
    turns = torch.arange(72) * (math.tau / 72)
    if name == "circle":
        return 0.9 * torch.stack((torch.cos(turns), torch.sin(turns)), dim=-1)
    if name == "square":
        return 0.8 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    if name == "triangle":
        return torch.tensor([[0.0, -0.95], [1, 0.8], [-1, 0.8]])
    if name == "star":
        turns = torch.arange(10) * (math.tau / 10) - math.pi / 2
        radius = torch.tensor([1.08, 0.45]).repeat(5)
        return radius[:, None] * torch.stack((torch.cos(turns), torch.sin(turns)), dim=-1)
    if name == "heart":
        x = 16 * torch.sin(turns) ** 3
        y = 13 * torch.cos(turns) - 5 * torch.cos(2 * turns) - 2 * torch.cos(3 * turns) - torch.cos(4 * turns)
        return torch.stack((x, -y - 2), dim=-1) / 16
    if name == "cross":
        w = 0.34
        right = [[w, -1.0], [w, -w], [1, -w], [1, w], [w, w], [w, 1]]
        return torch.tensor(right + [[-x, -y] for x, y in right])
    if name == "moon":
        half = torch.linspace(0.68, math.tau - 0.68, 48)
        outer = torch.stack((torch.cos(half), torch.sin(half)), dim=-1)
        hollow = outer.new_tensor([0.72, 0.0])
        radius = (outer[0] - hollow).norm()
        first = math.atan2(outer[-1, 1] - hollow[1], outer[-1, 0] - hollow[0])
        bend = torch.linspace(first, -math.tau - first, 34)[1:-1]
        inner = hollow + radius * torch.stack((torch.cos(bend), torch.sin(bend)), dim=-1)
        return torch.cat((outer, inner)) + outer.new_tensor([0.12, 0.0])
    raise ValueError(f"no outline is known for {name!r}")


def words() -> list[str]:
    """Return every word that captions use, and so that a prompt may use."""
    named = [word for words in NAMES.values() for word in words]
    return sorted({*named, *PICTURE_WORDS, *OTHER_WORDS})


def unknown_words(text: str) -> list[str]:
    """Return the words of a text that no caption of the world uses, in their order and once each."""
    known = set(words())
    return list(dict.fromkeys(word for word in re.findall(r"[^\W_]+", text.lower()) if word not in known))


def caption(shape: str = "shape", palette: str = "", background: str = "", texture: str = "") -> str:
    """Put the given words into the plainest sentence; what is left out is not mentioned.

    Args:
        shape: The content, "shape" for anything.
        palette, background, texture: The style, as far as it is to be named.
    """
    return sentence("", (palette, texture), shape, f" on {background}" if background else "")


def phrase(
    chance: random.Random, /, shape: str = "shape", palette: str = "", background: str = "", texture: str = ""
) -> str:
    """Put the given words, as for `caption`, into one of several sentences, picked by `chance`."""
    middle = (palette, texture) if chance.choice((True, False)) else (texture, palette)
    opening = chance.choice(("", "", f"a {chance.choice(PICTURE_WORDS)} of "))
    ending = chance.choice((f" on {background}", f" on a {background} background")) if background else ""
    return sentence(opening, middle, shape, ending)


def sentence(opening: str, middle: Sequence[str], shape: str, ending: str) -> str:
    """Put the parts of a caption together with the article they need."""
    noun = " ".join(word for word in (*middle, shape) if word)
    return f"{opening}{'an' if noun[0] in 'aeiou' else 'a'} {noun}{ending}"


def reference_pictures(references: Scenes, pixels: int) -> list[Image.Image]:
    """Draw references as a user would give them: pictures of eight bits."""
    return [to_picture(drawing) for drawing in draw(references, pixels)]


def to_picture(pixels: Tensor) -> Image.Image:
    """Turn a tensor of shape (3, height, width) in [0, 1] into a picture of eight bits."""
    return Image.fromarray(pixels.permute(1, 2, 0).mul(255).round().byte().numpy())

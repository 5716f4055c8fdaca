"""Draw `reference.png`: one star, in a style that is easy to recognise.

The picture is drawn by this file alone, so it may be used for anything. Four times too large and then shrunk, so that
edges are smooth; seeded, so that it is the same every time.

    python examples/make_reference.py
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter


SIZE = 256
OVERSAMPLING = 4
CANVAS = SIZE * OVERSAMPLING
SEED = 7

NIGHT = (24, 38, 92)
DUSK = (224, 108, 96)
WAVES = [(33, 62, 128), (48, 98, 164), (92, 150, 190), (246, 178, 122), (250, 214, 160)]
GOLD = [(255, 236, 150), (255, 212, 84), (250, 176, 48), (232, 132, 36)]
OUTLINE = (122, 48, 40)

Colour = tuple[int, int, int]
Point = tuple[float, float]


def main() -> None:
    """Draw the picture beside this file."""
    rng = random.Random(SEED)
    picture = gradient(NIGHT, DUSK)
    draw = ImageDraw.Draw(picture)
    brush_sky(draw, rng)
    swirl(draw, rng, centre=(0.5 * CANVAS, 0.5 * CANVAS))
    picture = picture.filter(ImageFilter.GaussianBlur(OVERSAMPLING / 2))
    paint_star(picture, rng)
    picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(
        Path(__file__).with_name("reference.png"), optimize=True
    )


def gradient(top: Colour, bottom: Colour) -> Image.Image:
    """Fill the canvas from `top` to `bottom`."""
    column = Image.new("RGB", (1, CANVAS))
    column.putdata([mix(top, bottom, row / CANVAS) for row in range(CANVAS)])
    return column.resize((CANVAS, CANVAS))


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """Blend two colours; `amount` 0 is the first."""
    return tuple(round(a + (b - a) * amount) for a, b in zip(first, second, strict=True))


def jitter(colour: Colour, rng: random.Random, amount: int) -> Colour:
    """Move a colour a little, as no two brush strokes carry the same paint."""
    shift = rng.randint(-amount, amount)
    return tuple(min(255, max(0, channel + shift + rng.randint(-4, 4))) for channel in colour)


def stroke(draw: ImageDraw.ImageDraw, points: list[Point], width: float, colour: Colour) -> None:
    """Draw a curved brush stroke with round ends."""
    draw.line(points, fill=colour, width=round(width), joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)


def brush_sky(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Cover the canvas with flowing strokes, cool above and warm below."""
    for _ in range(2600):
        x, y = rng.uniform(-80, CANVAS), rng.uniform(0, CANVAS)
        points = []
        for _ in range(9):
            points.append((x, y))
            x, y = x + 14, y + 9 * math.sin(x / 120 + y / 210)
        height = min(0.999, max(0, y / CANVAS + rng.gauss(0, 0.09)))
        stroke(draw, points, rng.uniform(5, 12), jitter(WAVES[int(height * len(WAVES))], rng, 18))


def swirl(draw: ImageDraw.ImageDraw, rng: random.Random, centre: Point) -> None:
    """Let strokes circle around the star, brighter the nearer they are."""
    for _ in range(900):
        radius, start = CANVAS * rng.uniform(0.2, 0.46), rng.uniform(0, math.tau)
        arc = [start + step * 0.035 for step in range(7)]
        points = [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in arc]
        glow = max(0.0, 1 - (radius / CANVAS - 0.2) / 0.2)
        colour = mix(WAVES[rng.choice((1, 2, 2))], WAVES[4], 0.75 * glow)
        stroke(draw, points, rng.uniform(4, 10), jitter(colour, rng, 14))


def star_points(centre: Point, radius: float) -> list[Point]:
    """Give the ten corners of a five-pointed star, the first on top."""
    corners = []
    for number in range(10):
        angle = -math.pi / 2 + number * math.pi / 5
        reach = radius if number % 2 == 0 else 0.45 * radius
        corners.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
    return corners


def paint_star(picture: Image.Image, rng: random.Random) -> None:
    """Paint the star: a dark outline, golden strokes inside it that run out from its middle."""
    centre = (0.5 * CANVAS, 0.52 * CANVAS)
    corners = star_points(centre, 0.34 * CANVAS)
    inside = Image.new("L", picture.size)
    ImageDraw.Draw(inside).polygon(corners, fill=255)

    paint = Image.new("RGB", picture.size, GOLD[1])
    draw = ImageDraw.Draw(paint)
    for _ in range(2200):
        angle, start = rng.uniform(0, math.tau), 0.34 * CANVAS * math.sqrt(rng.random())
        points = [
            (centre[0] + reach * math.cos(angle + 0.02 * step), centre[1] + reach * math.sin(angle + 0.02 * step))
            for step, reach in enumerate(start + 12 * number for number in range(5))
        ]
        shade = min(0.999, max(0, start / (0.34 * CANVAS) + rng.gauss(0, 0.16)))
        stroke(draw, points, rng.uniform(5, 11), jitter(GOLD[int(shade * len(GOLD))], rng, 12))

    edge = ImageDraw.Draw(picture)
    edge.line([*corners, *corners[:2]], fill=OUTLINE, width=7 * OVERSAMPLING, joint="curve")
    picture.paste(paint, mask=inside)
    edge.line([*corners, *corners[:2]], fill=OUTLINE, width=2 * OVERSAMPLING, joint="curve")


if __name__ == "__main__":
    main()

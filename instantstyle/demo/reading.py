"""From the values of the demo's controls to settings, and from a recipe back to values.

The controls' names are the parameters of the demo's API, see `docs/demo.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from PIL import Image, ImageChops

from instantstyle.demo.settings import AMOUNT, Reference, Settings
from instantstyle.inference import recipe
from instantstyle.inference import values as kinds
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.request import told
from instantstyle.inference.values import Picture, as_given, write_targets


REFERENCES = ("", "_2", "_3")  # what the names of a reference's controls end in
# What a slider holds, unless somebody empties it.
NUMBERS = (
    *("scale", "guidance", "steps", "num_images", "width", "height", "strength", "controlnet_scale"),
    *(f"weight{end}" for end in REFERENCES),
)
LACKING = ("fast", "hires", "upscale", "vae_tiling")  # options of `instantstyle generate` that the demo has not
GIVE = "drop a PNG file that this demo or `instantstyle generate` made."
Values = Mapping[str, Any]


def read_settings(said: Values) -> Settings:
    """Read what the controls say.

    Raises:
        ValueError, OSError: A number is missing, a text cannot be read, or a file is no picture.
    """
    check_numbers(said)
    image, mask = read_start(said["start"])
    control = said["control_image"]
    return Settings(
        prompt=said["prompt"] or "",
        size=read("Size", kinds.Size, f"{said['width']:g}x{said['height']:g}"),
        references=tuple(read_reference(said, end) for end in REFERENCES if said[f"reference{end}"]),
        style=said["style"],
        target_blocks=tuple(read("Target blocks", kinds.Targets, said["target_blocks"] or "")),
        scale=said["scale"],
        content=said["content"] or None,
        content_scale=read(AMOUNT, kinds.ContentScale, str(said["content_scale"])),
        negative=said["negative"] or None,
        guidance=said["guidance"],
        steps=int(said["steps"]),
        num_images=int(said["num_images"]),
        seed=read("Seed", kinds.Seed, str(said["seed"])),
        image=image,
        mask=mask,
        strength=said["strength"] if image else None,
        control_image=open_picture("Layout picture", control) if control else None,
        edges=said["edges"],
        controlnet_scale=said["controlnet_scale"] if control else None,
        preview=said["preview"],
    )


def check_numbers(values: Values) -> None:
    """Raise ValueError where a number is missing."""
    for name in NUMBERS:
        if values[name] is None:
            raise ValueError(f"{name}: expected a number, got none; leave it out for the usual one.")


def read(name: str, kind: Any, text: str) -> Any:
    """Read a text as the command line does. Raises ValueError with the control's name in front."""
    try:
        return kinds.read(kind, text)
    except ValueError as error:
        raise ValueError(f"{name}: {told(error)}.") from error


def read_reference(values: Values, end: str) -> Reference:
    """Read one reference with its weight and mask."""
    mask = values[f"mask{end}"]
    return Reference(
        open_picture("Reference", values[f"reference{end}"]),
        values[f"weight{end}"],
        open_picture("Mask", mask) if mask else None,
    )


def read_start(edited: Mapping[str, Any] | None) -> tuple[Picture | None, Picture | None]:
    """Read the picture to start from, and what is painted over: the part to repaint.

    Args:
        edited: An image editor's "background" and "layers", pictures in RGBA.
    """
    if not edited or edited["background"] is None:
        return None, None
    image = edited["background"]
    painted = [stroke(layer.resize(image.size)) for layer in edited["layers"]]
    mask = reduce(ImageChops.lighter, painted, Image.new("L", image.size))
    return as_given(image, "painted"), as_given(mask, "painted") if mask.getbbox() else None


def stroke(layer: Image.Image) -> Image.Image:
    """Say where a layer is painted on; of one without anything transparent, where it is light."""
    alpha = layer.getchannel("A")
    shade = layer.convert("L") if alpha.getextrema() == (255, 255) else alpha
    return shade.point(lambda value: 255 * (value > 127))


def open_recipe(path: str) -> dict[str, Any]:
    """Read the recipe in a PNG file. Raises ValueError where there is none."""
    try:
        return recipe.read_recipe(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"Recipe: there is none in {path}; {GIVE}") from error


def read_recipe(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that make a recipe's picture again, by the controls' names. Pictures are not in a recipe.

    Raises:
        ValueError: It is not the recipe of one picture.
    """
    try:
        (width, height), seed = found["size"], found["seed"]
        values = {
            "prompt": str(found["prompt"]),
            "seed": int(seed),
            "randomise": False,
            "num_images": 1,
            "width": int(width),
            "height": int(height),
            "negative": found["negative"] or "",
            "content": found["content"] or "",
            "content_scale": "1.0" if found["content_scale"] is None else str(found["content_scale"]),
            **weights(found.get("references") or []),
            **{name: float(found[name]) for name in ("scale", "guidance")},
            "steps": int(found["steps"]),
        }
        if found["target_blocks"]:
            values["target_blocks"] = write_targets(found["target_blocks"].items())
        if found.get("control_image"):
            values["edges"] = bool(found.get("edges"))  # the command line takes the picture as it is
        known = {"strength": float, "controlnet_scale": float}
        return values | {name: kind(found[name]) for name, kind in known.items() if found.get(name) is not None}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Recipe: it is not of one picture; {GIVE}") from error


def weights(references: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the weights of a recipe's references; 1.0 where there is none."""
    found = [float(one["weight"]) for one in references]
    return {f"weight{end}": found[place] if place < len(found) else 1.0 for place, end in enumerate(REFERENCES)}


def needed(found: Mapping[str, Any]) -> list[str]:
    """Name the files that went into a recipe's picture, which have to be given again; a mask after its reference."""
    references = [file for one in found.get("references") or [] for file in (one, one.get("mask"))]
    files = [*references, *(found.get(name) for name in ("style", "image", "mask", "control_image"))]
    return [str(one["file"]) for one in files if isinstance(one, Mapping) and "file" in one]


def option(name: str) -> str:
    """Write a field as the option of `instantstyle generate` that it is."""
    return "--" + name.replace("_", "-")


def missing(found: Mapping[str, Any], loaded: Mapping[str, str | None]) -> list[str]:
    """Name what went into a recipe's picture and is not here, by the options of `instantstyle generate`.

    Args:
        found: The recipe.
        loaded: What the demo has loaded, by the recipe's names.
    """
    others = [f"{option(name)} {found[name]}" for name in loaded if found.get(name) not in (None, loaded[name])]
    return others + [option(name) for name in LACKING if found.get(name)]

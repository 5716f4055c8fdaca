"""What the controls say as a request, and a request as what the controls say.

The controls' names are the parameters of the demo's API, see `docs/demo.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from PIL import Image, ImageChops

from instantstyle.inference import recipe
from instantstyle.inference.inputs import STARTS, StyleFile, open_picture, open_style
from instantstyle.inference.request import ENCODED, NEEDS, Machine, Reference, Request
from instantstyle.inference.values import Picture, as_given, name_of, write_targets


REFERENCES = ("", "_2", "_3")  # what the names of a reference's controls end in
WEIGHTS = tuple(f"weight{end}" for end in REFERENCES)
# Controls that are fields of a request.
FIELDS = (
    *("prompt", "content", "content_scale", "target_blocks", "scale", "reference_fit"),
    *("negative", "steps", "guidance", "seed", "strength", "edges", "controlnet_scale"),
)
TEXTS = ("negative", "content")  # empty where there is none
# What a slider holds, unless somebody empties it.
NUMBERS = (
    *("scale", "guidance", "steps", "num_images", "width", "height", "strength", "controlnet_scale"),
    *WEIGHTS,
)
LACKING = ("fast", "hires", "upscale", "vae_tiling")  # options of `instantstyle generate` that the demo has not
GIVE = "drop a PNG file that this demo or `instantstyle generate` made."
Values = Mapping[str, Any]


def label(field: str) -> str:
    """Write a field as the page calls it; one of the machine, as the option that the demo was started with."""
    if field in Machine.model_fields:
        return option(field)
    return Request.model_fields[field].title or field.replace("_", " ").capitalize()


def option(field: str) -> str:
    """Write a field as the option of `instantstyle generate` that it is."""
    return "--" + field.replace("_", "-")


# From the controls


def read_requests(values: Values) -> list[Request]:
    """Read what the controls ask for: a request for each picture, with one seed after another.

    Raises:
        ValueError, OSError: Something is missing, a value cannot be read, or a file is no picture. The message names
            controls, or fields between backticks.
    """
    request = read_request(values)
    if not request.prompt.strip():
        raise ValueError("`prompt`: it is empty. Say what to show, such as: a heart")
    return [request.but(seed=values["seed"] + index) for index in range(int(values["num_images"]))]


def read_request(values: Values) -> Request:
    """Read what the controls say of one picture, of which nothing may be said yet. Errors: see `read_requests`."""
    check_numbers(values)
    said = {name: values[name] for name in FIELDS if values[name] or name not in TEXTS}
    said |= {"prompt": values["prompt"] or "", "size": f"{values['width']:g}x{values['height']:g}"}
    return Request(**applicable({**said, "style": read_style(values), **read_starts(values)}))


def check_numbers(values: Values) -> None:
    """Raise ValueError where a number is missing."""
    for name in NUMBERS:
        if values[name] is None:
            raise ValueError(f"{name}: expected a number, got none; leave it out for the usual one.")


def applicable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing beside the other fields."""
    idle = {name for name, other in NEEDS.items() if fields.get(other) is None}
    if isinstance(fields.get("style"), StyleFile):
        idle |= set(ENCODED)
    return {name: value for name, value in fields.items() if name not in idle}


def read_style(values: Values) -> StyleFile | tuple[Reference, ...]:
    """Read the style file, which stands for whatever references there are, or else the references."""
    if values["style"]:
        return open_style(label("style"), values["style"])
    references = tuple(read_reference(values, end) for end in REFERENCES if values[f"reference{end}"])
    if not references:
        raise ValueError("Reference: there is neither a picture nor a style file. Give one of them.")
    return references


def read_reference(values: Values, end: str) -> Reference:
    """Read one reference with its weight and mask."""
    mask = values[f"mask{end}"]
    return Reference(
        open_picture("Reference", values[f"reference{end}"]),
        values[f"weight{end}"],
        open_picture("Mask", mask) if mask else None,
    )


def read_starts(values: Values) -> dict[str, Picture]:
    """Read what is started from and steered by, where it is given."""
    image, mask = read_start(values["start"])
    control = values["control_image"]
    steering = open_picture(label("control_image"), control) if control else None
    return {name: one for name, one in zip(STARTS, (image, mask, steering), strict=True) if one}


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


# To the controls


def write_request(request: Request) -> dict[str, Any]:
    """Return the values that ask for one picture again, by the controls' names. Files have to be given again."""
    said = applicable({"edges": request.edges, **request.given})
    values = {name: value for name, value in said.items() if name in FIELDS}
    values |= {name: values.get(name) or "" for name in TEXTS}
    values["content_scale"] = str(request.content_scale)  # a text to its control
    if "target_blocks" in values:
        values["target_blocks"] = write_targets(request.target_blocks)
    if request.size is not None:
        values["width"], values["height"] = request.size
    weights = [one.weight for one in request.style] + [1.0] * len(REFERENCES)
    return {**values, **dict(zip(WEIGHTS, weights, strict=False)), "randomise": False, "num_images": 1}


# Recipes


def open_recipe(path: str) -> dict[str, Any]:
    """Read the recipe in a PNG file. Raises ValueError where there is none."""
    try:
        return recipe.read_recipe(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"Recipe: there is none in {path}; {GIVE}") from error


def read_recipe(found: Mapping[str, Any]) -> Request:
    """Read what a recipe asks for, at its picture's size. Raises ValueError where it is not of one picture."""
    try:
        request, _ = recipe.read_request(found)
        return request.but(size=found["size"])
    except (ValueError, KeyError) as error:
        raise ValueError(f"Recipe: it is not of one picture; {GIVE}") from error


def needed(request: Request) -> list[str]:
    """Name the files that a request out of a recipe has, which have to be given again; a mask after its reference."""
    references = [file for one in request.style for file in (one.picture, one.mask)]
    starts = [getattr(request, name) for name in STARTS]
    return [name_of(file) for file in (*references, *starts) if file is not None]


def missing(found: Mapping[str, Any], loaded: Mapping[str, str | None]) -> list[str]:
    """Name what went into a recipe's picture and is not here, by the options of `instantstyle generate`.

    Args:
        found: The recipe.
        loaded: What the demo has loaded, by the recipe's names.
    """
    others = [f"{option(name)} {found[name]}" for name in loaded if found.get(name) not in (None, loaded[name])]
    return others + [option(name) for name in LACKING if found.get(name)]

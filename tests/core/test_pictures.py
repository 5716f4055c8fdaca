"""References come as people keep them: any mode, any size, turned by their camera, as arrays, as pixel values."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, Pair, differ, each_family, every_host, same
from hosts import CLIP_SIDE, HOSTS, feature_extractor, picture
from PIL import Image, ImageOps


SIZE = (40, 24)
# What happens to a picture before the image tower sees it is the same for both families.
sdxl_only = pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=lambda host: host.family)

RIGHT_IN_THE_HOST = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "HSV", "YCbCr", "1", "I", "F")


def in_mode(mode: str, seed: int = 1, size: tuple[int, int] = SIZE) -> Image.Image:
    """Paint a picture in a mode that PIL knows."""
    through = {"PA": "LA", "RGBa": "RGBA"}.get(mode)
    rgb = picture(seed, size)
    return rgb.convert(through).convert(mode) if through else rgb.convert(mode)


def sixteen_bits(mode: str, seed: int = 1) -> Image.Image:
    """Paint in 16 bits of grey: no two of the 65,536 levels are the same 256."""
    grey = np.asarray(picture(seed, SIZE, "L")).astype(np.uint16) * 256 + 255
    return Image.frombytes(mode, SIZE, grey.astype(">u2" if mode.endswith("B") else "<u2").tobytes())


def turned(orientation: int, format: str = "PNG") -> Image.Image:
    """Return a picture as it comes out of a camera held another way: the turn is a note in its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture(1, SIZE).save(file, format, exif=exif)
    return Image.open(file)


def pixel_values(seed: int = 1, pictures: int = 1) -> torch.Tensor:
    """Return what the image tower's preprocessing makes of pictures."""
    found = [picture(seed + number, SIZE) for number in range(pictures)]
    return feature_extractor()(found, return_tensors="pt").pixel_values


def paint(pair: Pair, reference: Any, **inputs: Any) -> np.ndarray:
    """Return what the variant paints with a reference."""
    return pair.paint(pair.variant, ip_adapter_image=reference, **inputs)


def paint_host(pair: Pair, reference: Any) -> np.ndarray:
    """Return what the host paints with a reference."""
    return pair.paint(pair.stock, ip_adapter_image=reference)


def skip_unless_the_host_takes(pair: Pair, reference: Any) -> None:
    """Older releases of transformers take arrays of three colours only, and no picture of one pixel."""
    try:
        paint_host(pair, reference)
    except ValueError as error:
        pytest.skip(f"The host refuses this picture: {error}")


# ---------------------------------------------------------------------------------------------------------------------
# Modes
# ---------------------------------------------------------------------------------------------------------------------


@sdxl_only
@pytest.mark.parametrize("mode", RIGHT_IN_THE_HOST)
def test_a_picture_in_any_mode_is_the_hosts(mode: str, pair: Pair) -> None:
    """The pixels are those of the host with the same picture; another picture of that mode gives others."""
    painted = paint(pair, in_mode(mode))
    assert same(painted, paint_host(pair, in_mode(mode)))
    assert differ(painted, paint(pair, in_mode(mode, seed=2)))


@sdxl_only
@pytest.mark.parametrize("mode", ["RGBA", "RGBX", "CMYK"])
def test_a_mode_that_holds_all_colours_paints_as_rgb(mode: str, pair: Pair) -> None:
    """How a picture is kept makes no difference, without its colours it does."""
    painted = paint(pair, in_mode(mode))
    assert same(painted, paint(pair, picture(1, SIZE)))
    assert differ(painted, paint(pair, in_mode("L")))


@each_family
@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_are_scaled(mode: str, pair: Pair) -> None:
    """The pixels are those of the same picture in eight bits; the host clips it to white."""
    painted = paint(pair, sixteen_bits(mode))
    assert same(painted, paint_host(pair, picture(1, SIZE, "L")))
    assert differ(painted, paint(pair, Image.new("RGB", SIZE, "white")))


@each_family
def test_modes_mix_in_a_list(pair: Pair) -> None:
    """Several pictures for one adapter may come in several modes and sizes."""
    mixed = [in_mode("L"), sixteen_bits("I;16", seed=2), in_mode("RGBA", seed=3, size=(16, 16)), turned(6)]
    plain = [in_mode("L"), picture(2, SIZE, "L"), picture(3, (16, 16)), ImageOps.exif_transpose(turned(6))]
    painted = paint(pair, [mixed])
    assert same(painted, paint_host(pair, [plain]))
    assert differ(painted, paint(pair, [mixed[:-1] + [picture(1, SIZE)]]))


@every_host
def test_every_variant_sees_a_difficult_picture_right(pair: Pair) -> None:
    """What is right in text to image is right elsewhere."""
    upright = [[picture(1, SIZE, "L"), ImageOps.exif_transpose(turned(6))]]
    painted = paint(pair, [[sixteen_bits("I;16"), turned(6)]])
    assert same(painted, paint_host(pair, upright), TOLERANCE)
    assert differ(painted, paint(pair, [[sixteen_bits("I;16"), picture(1, SIZE)]]))


# ---------------------------------------------------------------------------------------------------------------------
# Turned, tiny and long
# ---------------------------------------------------------------------------------------------------------------------


@sdxl_only
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_is_turned_back(orientation: int, pair: Pair) -> None:
    """The pixels are those of the upright picture, not those of the picture as it lies in the file."""
    painted = paint(pair, turned(orientation))
    assert same(painted, paint_host(pair, ImageOps.exif_transpose(turned(orientation))))
    assert differ(painted, paint_host(pair, turned(orientation)))


@each_family
def test_a_photograph_is_turned_back(pair: Pair) -> None:
    """Cameras write JPEG."""
    painted = paint(pair, turned(6, "JPEG"))
    assert same(painted, paint_host(pair, ImageOps.exif_transpose(turned(6, "JPEG"))))
    assert differ(painted, paint_host(pair, turned(6, "JPEG")))


@each_family
def test_an_upright_note_changes_nothing(pair: Pair) -> None:
    """A picture with EXIF that says "upright" is as one without."""
    assert same(paint(pair, turned(1)), paint(pair, picture(1, SIZE)))
    assert differ(paint(pair, turned(1)), paint(pair, turned(3)))


@sdxl_only
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 3), (20000, 10), (10, 20000)], ids=str)
def test_a_picture_of_any_size_is_the_hosts(size: tuple[int, int], pair: Pair) -> None:
    """One pixel is a picture, and so is a ribbon."""
    skip_unless_the_host_takes(pair, picture(1, size))
    painted = paint(pair, picture(1, size))
    assert same(painted, paint_host(pair, picture(1, size)))
    assert differ(painted, paint(pair, picture(4, size)))


# ---------------------------------------------------------------------------------------------------------------------
# Arrays and pixel values
# ---------------------------------------------------------------------------------------------------------------------

AS_ARRAYS: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "rows, columns, colours": np.asarray,
    "colours, rows, columns": lambda reference: np.asarray(reference).transpose(2, 0, 1).copy(),
    "a batch of one": lambda reference: np.asarray(reference)[None],
    "with alpha": lambda reference: np.asarray(reference.convert("RGBA")),
}


@sdxl_only
@pytest.mark.parametrize("form", AS_ARRAYS.values(), ids=AS_ARRAYS)
def test_an_array_paints_as_its_picture(form: Callable[[Image.Image], np.ndarray], pair: Pair) -> None:
    """The pixels are those of the picture whose bytes the array holds, also in a list."""
    skip_unless_the_host_takes(pair, form(picture(1, SIZE)))
    painted = paint(pair, form(picture(1, SIZE)))
    assert same(painted, paint_host(pair, picture(1, SIZE)))
    assert same(painted, paint(pair, [[form(picture(1, SIZE))]]))
    assert differ(painted, paint(pair, form(picture(2, SIZE))))


@each_family
def test_a_grey_array_paints_as_its_picture(pair: Pair) -> None:
    """One colour is grey."""
    skip_unless_the_host_takes(pair, np.asarray(picture(1, SIZE, "L"))[..., None])
    painted = paint(pair, np.asarray(picture(1, SIZE, "L"))[..., None])
    assert same(painted, paint_host(pair, picture(1, SIZE, "L")))
    assert differ(painted, paint(pair, picture(1, SIZE)))


@each_family
def test_pixel_values_paint_as_their_picture(pair: Pair) -> None:
    """A tensor of four dimensions has been through the preprocessing already."""
    painted = paint(pair, pixel_values())
    assert same(painted, paint_host(pair, pixel_values()))
    assert same(painted, paint(pair, picture(1, SIZE)), TOLERANCE)
    assert differ(painted, paint(pair, pixel_values(seed=2)))


@each_family
def test_pixel_values_of_several_pictures_paint_as_these(pair: Pair) -> None:
    """A tensor of two rows is two pictures for one adapter."""
    both = pixel_values(pictures=2)
    painted = paint(pair, [both])
    assert same(painted, paint_host(pair, [[picture(1, SIZE), picture(2, SIZE)]]), TOLERANCE)
    assert differ(painted, paint(pair, [both[:1]]))


@each_family
def test_content_leaves_pixel_values_too(pair: Pair) -> None:
    """Embeddings of content are removed from pixel values as from their picture, one content for each."""
    width = pair.variant.image_encoder.config.projection_dim
    content = [[torch.linspace(-0.2, 0.3, width), torch.linspace(0.1, -0.4, width)]]
    pictures = [[picture(1, SIZE), picture(2, SIZE)]]
    painted = paint(pair, [pixel_values(pictures=2)], neg_content_embeds=content)
    assert same(painted, paint(pair, pictures, neg_content_embeds=content), TOLERANCE)
    assert differ(painted, paint(pair, pictures, neg_content_embeds=[content[0][::-1]]))


# ---------------------------------------------------------------------------------------------------------------------
# Inputs stay as they are
# ---------------------------------------------------------------------------------------------------------------------

INPUTS: dict[str, Callable[[], Any]] = {
    **{mode: lambda mode=mode: in_mode(mode) for mode in RIGHT_IN_THE_HOST},
    "I;16": lambda: sixteen_bits("I;16"),
    "turned": lambda: turned(6),
    "long": lambda: picture(1, (2000, 10)),
    "array": lambda: np.array(picture(1, SIZE)),
    "pixel values": pixel_values,
}


def noted(reference: Any) -> Any:
    """Return all that a call could change in a reference."""
    if isinstance(reference, Image.Image):
        return reference.mode, reference.size, reference.tobytes(), dict(reference.getexif())
    if isinstance(reference, torch.Tensor):
        return reference._version, reference.shape, reference.tolist()
    return reference.dtype, reference.shape, reference.tolist()


@sdxl_only
@pytest.mark.parametrize("reference", INPUTS.values(), ids=INPUTS)
def test_references_are_not_modified(reference: Callable[[], Any], pair: Pair) -> None:
    """A reference is the same after two calls, alone and in lists that stay the same too."""
    given = reference()
    pictures = given if isinstance(given, torch.Tensor) else [given]  # pixel values are a list by themselves
    nested = [pictures]
    width = pair.variant.image_encoder.config.projection_dim
    content = torch.linspace(-0.2, 0.3, width)
    before = noted(given), noted(content)
    painted = paint(pair, given, neg_content_embeds=content)
    assert same(painted, paint(pair, nested, neg_content_embeds=content))
    assert (noted(given), noted(content)) == before
    assert len(nested) == 1 and nested[0] is pictures and (pictures is given or pictures[0] is given)


CHANGES: list[Callable[[Image.Image], Any]] = [
    lambda given: given.putpixel((0, 0), 7),
    lambda given: given.thumbnail((5, 5)),
    lambda given: given.getexif().update({1: "a"}),
]


def test_a_modified_reference_would_be_noted() -> None:
    """The breaking twin: each kind of change shows."""
    for change in CHANGES:
        given = in_mode("L")
        before = noted(given)
        change(given)
        assert noted(given) != before
    array, tensor = np.array(picture(1, SIZE)), pixel_values()
    before = noted(array), noted(tensor)
    array[0, 0, 0] += 1
    tensor[0, 0, 0, 0] *= 1
    assert noted(array) != before[0] and noted(tensor) != before[1]


def test_the_difficult_pictures_are_difficult() -> None:
    """The fixtures are what their names say."""
    assert turned(6).size == SIZE and ImageOps.exif_transpose(turned(6)).size == SIZE[::-1]
    assert min(sixteen_bits("I;16").getextrema()) > 255
    assert pixel_values(pictures=2).shape == (2, 3, CLIP_SIDE, CLIP_SIDE)

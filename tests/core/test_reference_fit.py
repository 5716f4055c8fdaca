"""References that are not square: each fit is what the host makes of squares that are made here in another way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, Pair, differ, each_family, every_host, same
from hosts import CLIP_SIDE, HOSTS, Host, content_encoder, picture, write_adapter
from PIL import Image

from instantstyle import Style
from instantstyle.core import FITS, squares
from instantstyle.core import fit as core_fit
from instantstyle.styles import provenance


Adapters = dict[str, tuple[str, str, str]]
WIDE, TALL = picture(5, (90, 30)), picture(6, (34, 50))
GREY = (123, 117, 104)  # CLIP's mean colour
each_fit = pytest.mark.parametrize("fit", FITS)


def padded(image: Image.Image) -> list[Image.Image]:
    """Put a picture in the middle of a grey square, as arrays."""
    pixels, side = np.asarray(image), max(image.size)
    square = np.full((side, side, 3), GREY, dtype=np.uint8)
    top, left = ((side - length) // 2 for length in pixels.shape[:2])
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return [Image.fromarray(square)]


def squashed(image: Image.Image) -> list[Image.Image]:
    """Resize a picture to a square, one axis at a time."""
    wide = image.resize((CLIP_SIDE, image.height), Image.Resampling.BICUBIC)
    return [wide.resize((CLIP_SIDE, CLIP_SIDE), Image.Resampling.BICUBIC)]


def tiled(image: Image.Image) -> list[Image.Image]:
    """Cut a picture into overlapping squares, as arrays; written out for the two pictures of these tests."""
    pixels, side = np.asarray(image), min(image.size)
    starts = {(90, 30): (0, 15, 30, 45, 60), (34, 50): (0, 16)}[image.size]
    if image.width > image.height:
        return [Image.fromarray(pixels[:, start : start + side]) for start in starts]
    return [Image.fromarray(pixels[start : start + side]) for start in starts]


ORACLES = {"crop": lambda image: [image], "pad": padded, "squash": squashed, "tiles": tiled}


def expected(stock: Any, fit: str, image: Image.Image, guided: bool = True) -> torch.Tensor:
    """Return the embeddings of a picture, by the host's own method, from squares that are made here."""
    every = [
        stock.prepare_ip_adapter_image_embeds([one], None, torch.device("cpu"), 1, guided)[0]
        for one in ORACLES[fit](image)
    ]
    return torch.cat([every[0][:-1], torch.stack([rows[-1:] for rows in every]).mean(0)])


@every_host
def test_every_fit_paints_what_its_formula_says(host: Host, pair: Pair) -> None:
    for fit in FITS:
        painted = pair.paint(pair.variant, ip_adapter_image=WIDE, reference_fit=fit)
        embeds = [expected(pair.stock, fit, WIDE, guided=pair.variant.do_classifier_free_guidance)]
        assert same(pair.paint(pair.stock, ip_adapter_image_embeds=embeds), painted, TOLERANCE)
        assert differ(
            painted, pair.paint(pair.variant, ip_adapter_image=WIDE, reference_fit=FITS[FITS.index(fit) - 1])
        )


@each_family
@each_fit
def test_it_goes_with_content_prompts_and_several_pictures(host: Host, pair: Pair, fit: str) -> None:
    """Content is removed from the mean; rows stay with their prompts, and each picture is fitted by itself."""
    if host.family == "sd15":
        pair.variant.load_content_encoder(content_encoder())
    asked = {"prompt": ["a red star", "a heart"], "num_images_per_prompt": 2, "reference_fit": fit}
    content = {"neg_content_prompt": "a star", "neg_content_scale": "auto"}
    rows = [
        torch.cat([expected(pair.stock, fit, one) for one in pictures], 1) for pictures in ((WIDE, TALL), (TALL,) * 2)
    ]
    embeds = torch.cat([torch.cat([each[:1] for each in rows]), torch.cat([each[1:] for each in rows])])
    references = {"ip_adapter_image": [[[WIDE, TALL], [TALL, TALL]]], "ip_adapter_image_per_prompt": True}
    painted = pair.paint(pair.variant, **asked, **content, **references)
    without = {name: value for name, value in asked.items() if name != "reference_fit"}
    encoded = pair.paint(pair.variant, **without, **content, ip_adapter_image_embeds=[embeds])
    assert same(painted, encoded, 2 * TOLERANCE)  # encoded one by one, and content is removed from that
    swapped = pair.paint(pair.variant, **without, **content, ip_adapter_image_embeds=[embeds[[0, 1, 3, 2]]])
    assert differ(painted, swapped)
    pair.variant.unload_content_encoder()


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
@pytest.mark.parametrize("kind", ["plus", "full"])
@each_fit
def test_adapters_that_see_patches_take_every_fit(host: Host, bare: Pair, kind: str, fit: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, host.family, kind)
    bare.stock.load_ip_adapter(*adapter)
    bare.variant.load_ip_adapter(*adapter, target_blocks="all")
    painted = bare.paint(bare.variant, ip_adapter_image=WIDE, reference_fit=fit)
    embeds = [expected(bare.stock, fit, WIDE)]
    assert same(bare.paint(bare.stock, ip_adapter_image_embeds=embeds), painted, TOLERANCE)
    assert differ(painted, bare.paint(bare.variant, ip_adapter_image=WIDE, reference_fit=FITS[FITS.index(fit) - 1]))


@each_family
@each_fit
def test_without_guidance_too(host: Host, pair: Pair, fit: str) -> None:
    embeds = [expected(pair.stock, fit, TALL, guided=False)]
    painted = pair.paint(pair.variant, ip_adapter_image=TALL, reference_fit=fit, guidance_scale=0.0)
    assert same(pair.paint(pair.stock, ip_adapter_image_embeds=embeds, guidance_scale=0.0), painted, TOLERANCE)


@each_family
@each_fit
def test_an_encoded_style_is_of_the_fitted_picture(host: Host, pair: Pair, fit: str, tmp_path: Path) -> None:
    style = pair.variant.encode_style([WIDE, TALL], reference_fit=fit)
    mean = torch.stack([expected(pair.stock, fit, one) for one in (WIDE, TALL)]).mean(0)
    painted = pair.paint(pair.variant, style=style)
    assert same(pair.paint(pair.stock, ip_adapter_image_embeds=[mean]), painted, TOLERANCE)
    other = pair.variant.encode_style([WIDE, TALL], reference_fit=FITS[FITS.index(fit) - 1])
    assert differ(painted, pair.paint(pair.variant, style=other))
    style.save(tmp_path / "style.safetensors")
    assert [source.fit for source in Style.load(tmp_path / "style.safetensors").recipe.sources] == [fit, fit]
    assert ('"fit"' in style.recipe.to_json()) == (fit != "crop")


def test_a_style_file_knows_the_same_fits() -> None:
    assert provenance.FITS == FITS


@each_family
@each_fit
def test_a_square_picture_needs_no_fit(host: Host, pair: Pair, fit: str) -> None:
    square = pair.paint(pair.variant, ip_adapter_image=picture(1))
    assert same(square, pair.paint(pair.variant, ip_adapter_image=picture(1), reference_fit=fit))


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (101, 100), (640, 360), (7, 1)])
def test_tiles_cover_the_picture_and_overlap_by_half(size: tuple[int, int], pair_towers: tuple[Any, Any]) -> None:
    """Every pixel is in a tile, all but those of the ends in two; twice the overlap is at least a side."""
    across, along = size[0] > size[1], max(size)
    ramp = np.tile(np.arange(along, dtype=np.int32)[:, None], (1, min(size)))
    pixels = np.stack([ramp // 256, ramp % 256, ramp * 0], -1).astype(np.uint8)
    image = Image.fromarray(pixels.transpose(1, 0, 2) if across else pixels)
    found = squares(image, "tiles", *pair_towers)
    corners = [np.asarray(tile, dtype=int)[0, 0] for tile in found]
    starts = [256 * high + low for high, low, _ in corners]
    assert {tile.size for tile in found} == {(min(size), min(size))}
    assert (starts[0], starts[-1]) == (0, along - min(size))
    assert all(0 < after - before <= -(-min(size) // 2) for before, after in zip(starts[:-1], starts[1:], strict=True))


@pytest.fixture(scope="module")
def pair_towers(pipe: Any) -> tuple[Any, Any]:
    """Give an image encoder and its feature extractor."""
    return pipe.image_encoder, pipe.feature_extractor


def test_edges_say_nothing(pipe: Any) -> None:
    """The colour of the edges is what the image encoder sees as zeros, but for the rounding to 8 bits."""
    (square,) = squares(Image.new("RGB", (8, 64), "red"), "pad", pipe.image_encoder, pipe.feature_extractor)
    seen = pipe.feature_extractor(square, return_tensors="pt").pixel_values
    assert seen[..., :4].abs().max() < 0.01 < seen[..., seen.shape[-1] // 2].abs().max()


# --- What is said, and what is refused -------------------------------------------------------------------------------


@each_family
def test_the_log_says_once_what_is_cut_off(host: Host, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    core_fit._say_what_is_cut.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            pair.paint(pair.variant, ip_adapter_image=WIDE)
            pair.variant.encode_style(WIDE)
        pair.paint(pair.variant, ip_adapter_image=picture(1))
        pair.paint(pair.variant, ip_adapter_image=TALL, reference_fit="pad")
    said = [record.getMessage() for record in caplog.records if "cropped" in record.getMessage()]
    assert len(said) == 1
    assert "90 x 30 is cropped to its middle square: 67% of it" in said[0]
    assert all(name in said[0] for name in FITS[1:])


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ip_adapter_image": WIDE, "reference_fit": "stretch"}, ValueError, "must be one of 'crop', .* but is 'stretch'"),
    ({"ip_adapter_image": WIDE, "reference_fit": None}, ValueError, "must be one of 'crop', .* but is None"),
    ({"reference_fit": "pad"}, ValueError, "`reference_fit` is about `ip_adapter_image`, which is missing"),
    ({"ip_adapter_image": np.zeros((4, 8, 3), np.uint8), "reference_fit": "pad"}, TypeError, "needs PIL images"),
    ({"ip_adapter_image": torch.zeros(1, 3, 4, 8), "reference_fit": "tiles"}, TypeError, "it holds a Tensor"),
    ({"ip_adapter_image": WIDE, "reference_fits": "pad"}, TypeError, "Did you mean `reference_fit`"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), REFUSED, ids=[message for *_, message in REFUSED])
@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_what_does_not_fit_is_refused(
    host: Host, pair: Pair, wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        pair.paint(pair.variant, **wrong)


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion_xl"]], ids=["sdxl"])
def test_beside_a_style_it_is_refused(host: Host, pair: Pair) -> None:
    style = pair.variant.encode_style(picture(1))
    with pytest.raises(ValueError, match="`reference_fit` cannot go with a style"):
        pair.paint(pair.variant, style=style, reference_fit="pad")
    with pytest.raises(ValueError, match="`reference_fit` must be one of"):
        pair.variant.encode_style(WIDE, reference_fit="stretch")
    with pytest.raises(TypeError, match="needs PIL images in `image`"):
        pair.variant.encode_style(np.zeros((4, 8, 3), np.uint8), reference_fit="pad")

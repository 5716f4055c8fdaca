"""Law 2 for content: the same pixels as a host that is fed embeddings computed here, from the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TOLERANCE, Pair, differ, each_family, every_host, same
from hosts import HOSTS, Host, components, content_encoder, picture
from PIL import Image

from instantstyle import remove_content


TEXT, OTHER_TEXT = "a rabbit", "a blue heart"


def give_tower(pair: Pair) -> tuple[Any, Any]:
    """Return the text tower of the adapter's CLIP with its tokenizer; give it to a variant that has none."""
    if host_has_tower(pair):
        return pair.variant.text_encoder_2, pair.variant.tokenizer_2
    parts = components("sdxl")
    tower = (parts["text_encoder_2"], parts["tokenizer_2"]) if pair.host.family == "sdxl" else content_encoder()
    pair.variant.load_content_encoder(tower)
    return tower


def host_has_tower(pair: Pair) -> bool:
    """Whether the host has SDXL's second text encoder."""
    return getattr(pair.variant, "text_encoder_2", None) is not None


@torch.no_grad()
def text_embedding(tower: tuple[Any, Any], text: str) -> torch.Tensor:
    """Call the text tower: one projected, un-normalised embedding."""
    encoder, tokenizer = tower
    ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return encoder(ids).text_embeds[0]


@torch.no_grad()
def image_embedding(pair: Pair, image: Image.Image) -> torch.Tensor:
    """Call the image tower."""
    values = pair.stock.feature_extractor(image, return_tensors="pt").pixel_values
    return pair.stock.image_encoder(values).image_embeds[0]


def without(e: torch.Tensor, t: torch.Tensor, scale: float | str) -> torch.Tensor:
    """The formula, in float64: `e - s t`, with "auto" the projection onto `t` if it is positive."""
    e, t = e.double(), t.double()
    strength = max(0.0, float(e @ t / (t @ t))) if scale == "auto" else scale
    return (e - strength * t).float()


def host_format(conditional: list[torch.Tensor], guided: bool, unconditional: torch.Tensor | None = None) -> Any:
    """Return embeddings of pictures for one adapter as the host takes them: rows, pictures, width."""
    rows = torch.stack(conditional)[None]
    zeros = torch.zeros_like(rows) if unconditional is None else unconditional.expand_as(rows)
    return [torch.cat([zeros, rows]) if guided else rows]


def is_guided(host: Host, guidance_scale: float) -> bool:
    """Whether the host runs unconditional rows; a consistency model has none."""
    return guidance_scale > 1 and host.name != "latent_consistency"


@every_host
def test_content_is_removed_by_the_formula(host: Host, pair: Pair) -> None:
    removed_by_the_formula(host, pair, 5.0)


@pytest.mark.parametrize("host", HOSTS.values(), ids=lambda host: host.name)
def test_content_is_removed_by_the_formula_without_guidance(host: Host, pair: Pair) -> None:
    removed_by_the_formula(host, pair, 1.0)


def removed_by_the_formula(host: Host, pair: Pair, guidance_scale: float) -> None:
    """Compare with the host fed by the formula, and break the content, its strength, and the unconditional row."""
    tower, guided = give_tower(pair), is_guided(host, guidance_scale)
    e, t = image_embedding(pair, picture(1)), text_embedding(tower, TEXT)
    asked = {"ip_adapter_image": picture(1), "neg_content_prompt": TEXT, "guidance_scale": guidance_scale}
    for scale in (0.8, "auto") if guided else ("auto",):
        embeds = host_format([without(e, t, scale)], guided)
        oracle = pair.paint(pair.stock, ip_adapter_image_embeds=embeds, guidance_scale=guidance_scale)
        ours = pair.paint(pair.variant, **asked, neg_content_scale=scale)
        assert same(oracle, ours, TOLERANCE)
    other = pair.paint(pair.variant, **{**asked, "neg_content_prompt": OTHER_TEXT}, neg_content_scale="auto")
    assert differ(oracle, other)
    if guided:
        assert differ(oracle, pair.paint(pair.variant, **asked, neg_content_scale=0.8))
        touched = host_format([without(e, t, "auto")], True, unconditional=-t)
        assert differ(ours, pair.paint(pair.stock, ip_adapter_image_embeds=touched))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.8, "auto"])
def test_remove_content_is_the_formula_row_by_row_in_new_tensors(dtype: torch.dtype, scale: float | str) -> None:
    e, t = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(0)).to(dtype), torch.linspace(-1, 2, 40)
    before = (e.clone(), t.clone())
    rows = torch.stack([without(row, t, scale) for row in e.flatten(0, 1)]).view_as(e).to(dtype)
    removed = remove_content(e, t, scale)
    assert removed.dtype == dtype
    assert torch.allclose(removed.float(), rows.float(), atol=1e-6 if dtype == torch.float32 else 2e-3)
    assert torch.equal(e, before[0]) and torch.equal(t, before[1])
    assert not torch.allclose(removed.float(), e.float(), atol=0.2)


@each_family
def test_the_default_strength_is_one_and_zero_keeps_all(host: Host, pair: Pair) -> None:
    give_tower(pair)
    inputs = {"ip_adapter_image": picture(1), "neg_content_prompt": TEXT}
    default = pair.paint(pair.variant, **inputs)
    assert same(default, pair.paint(pair.variant, **inputs, neg_content_scale=1.0))
    kept = pair.paint(pair.variant, **inputs, neg_content_scale=0.0)
    assert same(kept, pair.paint(pair.stock, ip_adapter_image=picture(1)))
    assert differ(default, kept)


@each_family
def test_auto_never_adds_content(host: Host, pair: Pair) -> None:
    """Where the picture points away from the text, "auto" removes nothing."""
    e = image_embedding(pair, picture(1))
    inputs = {"ip_adapter_image": picture(1), "neg_content_embeds": -e}
    kept = pair.paint(pair.stock, ip_adapter_image=picture(1))
    assert same(kept, pair.paint(pair.variant, **inputs, neg_content_scale="auto"))
    assert differ(kept, pair.paint(pair.variant, **inputs, neg_content_scale=-1.0))


@each_family
@pytest.mark.parametrize("form", ["pictures", "embeds"])
def test_each_picture_loses_its_own_content(host: Host, pair: Pair, form: str) -> None:
    """Three pictures of one adapter, of which the second keeps everything."""
    tower, images = give_tower(pair), [picture(seed) for seed in (1, 2, 3)]
    embeddings = [image_embedding(pair, image) for image in images]
    texts = [TEXT, None, OTHER_TEXT]
    removed = [
        e if text is None else without(e, text_embedding(tower, text), 0.8)
        for e, text in zip(embeddings, texts, strict=True)
    ]
    references = (
        {"ip_adapter_image": [images]}
        if form == "pictures"
        else {"ip_adapter_image_embeds": host_format(embeddings, True)}
    )
    oracle = pair.paint(pair.stock, ip_adapter_image_embeds=host_format(removed, True))
    ours = pair.paint(pair.variant, **references, neg_content_prompt=[texts], neg_content_scale=0.8)
    assert same(oracle, ours, TOLERANCE)
    vectors = [None if text is None else text_embedding(tower, text) for text in texts]
    given = pair.paint(pair.variant, **references, neg_content_embeds=[vectors], neg_content_scale=0.8)
    assert same(ours, given, TOLERANCE)
    for wrong in (TEXT, [texts[::-1]], [[TEXT, OTHER_TEXT, None]]):
        assert differ(oracle, pair.paint(pair.variant, **references, neg_content_prompt=wrong, neg_content_scale=0.8))


@each_family
def test_each_adapter_loses_its_own_content(host: Host, bare: Pair, adapters: dict[str, tuple[str, str, str]]) -> None:
    folder, subfolder, name = adapters[host.family]
    bare.stock.load_ip_adapter(folder, [subfolder] * 2, [name] * 2)
    bare.stock.set_ip_adapter_scale([0.7, 0.7])
    bare.variant.load_ip_adapter(folder, [subfolder] * 2, [name] * 2, target_blocks="all")
    bare.variant.set_ip_adapter_scale(0.7)
    tower = give_tower(bare)
    e, t = image_embedding(bare, picture(1)), text_embedding(tower, TEXT)
    two = host_format([e], True) + host_format([without(e, t, 1.0)], True)
    oracle = bare.paint(bare.stock, ip_adapter_image_embeds=two)
    # Of equal weights, so that the second adapter's image can only be told by its content.
    images = [picture(1), picture(1)]
    assert same(oracle, bare.paint(bare.variant, ip_adapter_image=images, neg_content_prompt=[None, TEXT]), TOLERANCE)
    assert differ(oracle, bare.paint(bare.variant, ip_adapter_image=images, neg_content_prompt=TEXT))


@each_family
def test_only_the_targeted_blocks_hear_what_is_left(host: Host, pair: Pair) -> None:
    tower = give_tower(pair)
    style = {"sdxl": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "sd15": {"up": {"block_1": 1.0}}}[host.family]
    pair.stock.set_ip_adapter_scale(style)
    e, t = image_embedding(pair, picture(1)), text_embedding(tower, TEXT)
    oracle = pair.paint(pair.stock, ip_adapter_image_embeds=host_format([without(e, t, 1.0)], True))
    pair.variant.set_target_blocks("style")
    inputs = {"ip_adapter_image": picture(1), "neg_content_prompt": TEXT}
    assert same(oracle, pair.paint(pair.variant, **inputs), TOLERANCE)
    assert differ(oracle, pair.paint(pair.variant, **inputs, target_blocks="all"))
    assert differ(oracle, pair.paint(pair.variant, ip_adapter_image=picture(1)))


@each_family
def test_a_content_tower_of_the_users_goes_first_until_it_is_unloaded(host: Host, bare: Pair, adapters: Any) -> None:
    bare.variant.load_ip_adapter(*adapters[host.family], target_blocks="all")
    bare.stock.load_ip_adapter(*adapters[host.family])
    own = give_tower(bare)
    given = (components("sdxl", seed=5)["text_encoder_2"] if host.family == "sdxl" else content_encoder(5)[0], own[1])
    names = set(bare.variant.components)
    inputs = {"ip_adapter_image": picture(1), "neg_content_prompt": TEXT}

    def oracle(tower: tuple[Any, Any]) -> Any:
        removed = without(image_embedding(bare, picture(1)), text_embedding(tower, TEXT), 1.0)
        return bare.paint(bare.stock, ip_adapter_image_embeds=host_format([removed], True))

    assert same(oracle(own), bare.paint(bare.variant, **inputs), TOLERANCE)
    bare.variant.load_content_encoder(given)
    assert same(oracle(given), bare.paint(bare.variant, **inputs), TOLERANCE)
    assert set(bare.variant.components) == names
    assert differ(oracle(own), oracle(given))
    bare.variant.unload_content_encoder()
    if host.family == "sdxl":
        assert same(oracle(own), bare.paint(bare.variant, **inputs), TOLERANCE)
    else:
        with pytest.raises(ValueError, match="load_content_encoder"):
            bare.paint(bare.variant, **inputs)

"""The fixtures themselves: every tiny host repeats its pictures, and hears its adapter and its input pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hosts import (
    FAMILIES,
    HOSTS,
    OTHER_HOSTS,
    SIDE,
    Host,
    adapter_state,
    components,
    feature_extractor,
    image_encoder,
    make,
    picture,
    pixels,
    write_adapter,
    write_checkpoint,
)
from PIL import Image


STYLE = {"sdxl": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "sd15": {"up": {"block_1": [1.0, 1.0, 1.0]}}}
GROUPS = {"sdxl": 11, "sd15": 16}

every_host = pytest.mark.parametrize("host", [*HOSTS.values(), *OTHER_HOSTS.values()], ids=lambda host: host.name)
both_families = pytest.mark.parametrize("family", FAMILIES)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two pictures."""
    assert first.shape == second.shape
    return float(np.abs(first - second).max())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, str]]:
    """Write one adapter per family."""
    return {family: write_adapter(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def test_the_twelve_and_the_others() -> None:
    """The everyday hosts are twelve."""
    assert len(HOSTS) == 12
    assert not HOSTS.keys() & OTHER_HOSTS.keys()


@every_host
def test_building_and_running_repeat(host: Host) -> None:
    """The same pixels come out twice, and the global random state is neither used nor moved."""
    torch.manual_seed(1)
    first = pixels(make(host), **host.inputs())
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    assert distance(first, pixels(make(host), **host.inputs())) < 1e-5
    assert first.std() > 0.1


@every_host
def test_adapter_and_style_block_are_heard(host: Host, adapters: dict[str, tuple[str, str, str]]) -> None:
    """A reference moves the pixels, also through the style block alone, and another one moves them elsewhere."""
    pipe = make(host)
    plain = pixels(pipe, **host.inputs())
    folder, subfolder, weight_name = adapters[host.family]
    pipe.load_ip_adapter(folder, subfolder=subfolder, weight_name=weight_name)
    assert distance(plain, pixels(pipe, **host.inputs(), ip_adapter_image=picture(1))) > 1e-2
    pipe.set_ip_adapter_scale(STYLE[host.family])
    styled = pixels(pipe, **host.inputs(), ip_adapter_image=picture(1))
    assert distance(plain, styled) > 1e-2
    assert distance(styled, pixels(pipe, **host.inputs(), ip_adapter_image=picture(2))) > 2e-3


@every_host
def test_every_picture_is_heard(host: Host) -> None:
    """Any other input picture moves the pixels."""
    pipe, inputs = make(host), host.inputs()
    plain = pixels(pipe, **inputs)
    for name, image in inputs.items():
        if isinstance(image, Image.Image):
            other = {name: picture(2, image.size, image.mode)}
            assert distance(plain, pixels(pipe, **{**host.inputs(), **other})) > 1e-2, name


@pytest.mark.parametrize("name", ["stable_diffusion_xl_pag", "stable_diffusion_pag"])
def test_perturbed_attention_is_heard(name: str) -> None:
    """Perturbed-attention guidance moves the pixels."""
    host = OTHER_HOSTS[name]
    pipe = make(host)
    assert distance(pixels(pipe, **host.inputs()), pixels(pipe, **host.inputs(), pag_scale=0.0)) > 1e-2


@both_families
@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_every_kind_of_adapter_is_heard(family: str, kind: str, format: str, tmp_path: Path) -> None:
    """Stock diffusers loads each published layout, and a reference moves the pixels."""
    host = HOSTS["stable_diffusion_xl" if family == "sdxl" else "stable_diffusion"]
    pipe = make(host)
    plain = pixels(pipe, **host.inputs())
    folder, subfolder, weight_name = write_adapter(tmp_path, family, kind, format)
    pipe.load_ip_adapter(folder, subfolder=subfolder, weight_name=weight_name)
    assert distance(plain, pixels(pipe, **host.inputs(), ip_adapter_image=picture(1))) > 1e-2


@both_families
def test_topology_and_widths(family: str) -> None:
    """The UNet has the family's real attention groups; no two widths that could be mixed up agree."""
    unet = components(family)["unet"]
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    assert len({name.split(".transformer_blocks")[0] for name in layers}) == GROUPS[family]
    assert len(adapter_state(family)["ip_adapter"]) == 2 * len(layers)
    vision = image_encoder(family).config
    widths = [*set(unet.config.block_out_channels), unet.config.cross_attention_dim]
    widths += [vision.hidden_size, vision.projection_dim]
    assert len(set(widths)) == len(widths)


def test_style_and_layout_have_two_layers() -> None:
    """Like the real SDXL UNet, the tiny one has more than one layer per group where style and layout live."""
    layers = [name for name in components("sdxl")["unet"].attn_processors if name.endswith("attn2.processor")]
    for group in ("up_blocks.0.attentions.1.", "down_blocks.2.attentions.1.", "mid_block.attentions.0."):
        assert sum(name.startswith(group) for name in layers) == 2


@both_families
def test_checkpoint_loads(family: str, tmp_path: Path) -> None:
    """A checkpoint on disk makes the pixels of the pipeline that it was written from."""
    host = HOSTS["stable_diffusion_xl" if family == "sdxl" else "stable_diffusion"]
    pipe = host.cls.from_pretrained(write_checkpoint(tmp_path, family), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert distance(pixels(pipe, **host.inputs()), pixels(make(host), **host.inputs())) < 1e-5


def test_texts_and_pictures_are_told_apart() -> None:
    """Prompts have their own ids within the vocabulary, and seeds their own pictures."""
    parts = components("sdxl")
    for name in ("tokenizer", "tokenizer_2"):
        prompts = ["a red star", "a blue heart", "a rabbit", "Ein süßer Hase, 3 Stück!"]
        ids = parts[name](prompts, padding="max_length", max_length=77, truncation=True).input_ids
        assert len({tuple(row) for row in ids}) == len(prompts)
        assert max(map(max, ids)) < parts["text_encoder_2"].config.vocab_size
    assert picture(1).tobytes() != picture(2).tobytes()
    assert picture(1, (SIDE, SIDE), "L").mode == "L"
    assert feature_extractor()(picture(1), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)

"""Where to inject: target blocks are the host's own dict of scales, read back as set, and hold only their weights."""

from __future__ import annotations

import copy
import os
import shutil
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Pair, differ, each_family, every_host, most_hosts, same, variant_class
from diffusers import DiffusionPipeline, UNet2DConditionModel
from hosts import (
    HOSTS,
    Host,
    adapter_state,
    components,
    feature_extractor,
    image_encoder,
    picture,
    pixels,
    write_adapter,
)

from instantstyle import core
from instantstyle.core import blocks


Adapters = dict[str, tuple[str, str, str]]

# Target blocks beside what the host's `set_ip_adapter_scale` takes for the same.
STYLE = {"sdxl": {"up": {"block_0": [0.0, 1.0, 0.0]}}, "sd15": {"up": {"block_1": 1.0}}}
LAYOUT = {"sdxl": {"down": {"block_2": [0.0, 1.0]}}, "sd15": {"down": {"block_2": 1.0}, "mid": 1.0}}
BLOCKS = {
    "sdxl": {"style": ["up_blocks.0.attentions.1"], "layout": ["down_blocks.2.attentions.1"]},
    "sd15": {
        "style": [f"up_blocks.1.attentions.{i}" for i in range(3)],
        "layout": ["down_blocks.2.attentions.0", "down_blocks.2.attentions.1", "mid_block.attentions.0"],
    },
}
TARGETS: dict[str, list[tuple[Any, Any]]] = {
    "sdxl": [
        ("style", STYLE["sdxl"]),
        ("layout", LAYOUT["sdxl"]),
        ("style+layout", {**STYLE["sdxl"], **LAYOUT["sdxl"]}),
        ({"style": 0.5, "layout": 1.5}, {"up": {"block_0": [0.0, 0.5, 0.0]}, "down": {"block_2": [0.0, 1.5]}}),
        (
            ["mid_block", "up_blocks.1", "down_blocks.1.attentions.0"],
            {"mid": 1.0, "up": {"block_1": 1.0}, "down": {"block_1": [1.0, 0.0]}},
        ),
        (
            {"up_blocks": 0.6, "up_blocks.0.attentions.2": 0, "up_blocks.0": 1.4},
            {"up": {"block_0": [1.4, 1.4, 0.0], "block_1": 0.6}},
        ),
        (["block"], 1.0),
    ],
    "sd15": [
        ("style", STYLE["sd15"]),
        ("layout", LAYOUT["sd15"]),
        ("style+layout", {**STYLE["sd15"], **LAYOUT["sd15"]}),
        ({"style": 0.5, "layout": 1.5}, {"up": {"block_1": 0.5}, "down": {"block_2": 1.5}, "mid": 1.5}),
        (
            ["mid_block", "up_blocks.3", "down_blocks.0.attentions.1"],
            {"mid": 1.0, "up": {"block_3": 1.0}, "down": {"block_0": [0.0, 1.0]}},
        ),
        (
            {"up_blocks": 0.6, "up_blocks.2.attentions.1": 0, "up_blocks.2": 1.4},
            {"up": {"block_1": 0.6, "block_2": [1.4, 0.0, 1.4], "block_3": 0.6}},
        ),
        ("all", 1.0),
    ],
}
BOTH = [HOSTS["stable_diffusion_xl"], HOSTS["stable_diffusion"]]
REFERENCE = {"ip_adapter_image": picture(1)}


def layers(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the text cross-attentions in the order of the checkpoint's keys."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return {name: unet.get_submodule(name) for name in names if "motion_modules" not in name}


def adapter_bytes(unet: torch.nn.Module) -> int:
    """Return what the adapter's parameters and buffers take in the attention layers."""
    processors = [layer.processor for layer in layers(unet).values()]
    modules = [p for p in processors if isinstance(p, torch.nn.Module)]
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


@cache
def file_sizes(family: str) -> dict[str, int]:
    """Return the bytes of every key and value in the adapter's file."""
    return {key: tensor.nbytes for key, tensor in adapter_state(family)["ip_adapter"].items()}


def checkpoint_bytes(host: Host, unet: torch.nn.Module, blocks: list[str]) -> int:
    """Return what the keys and values of these blocks take in the adapter's file."""
    sizes = file_sizes(host.family)
    numbers = [2 * i + 1 for i, name in enumerate(layers(unet)) if any(name.startswith(b + ".") for b in blocks)]
    return sum(sizes[f"{n}.to_{kind}_ip.weight"] for n, kind in product(numbers, "kv"))


def every_picture(pictures: list[np.ndarray], others: list[np.ndarray]) -> None:
    """Assert that pictures equal those of the same number, and differ from all others."""
    for (i, first), (j, second) in product(enumerate(pictures), enumerate(others)):
        assert same(first, second) if i == j else differ(first, second), f"{i} and {j}"


# --- Names and scales ------------------------------------------------------------------------------------------------


@most_hosts
def test_target_blocks_are_the_hosts_dict_of_scales(host: Host, pair: Pair) -> None:
    """Set for good and for one call in turn; each case is told apart from all others."""
    cases = TARGETS[host.family]
    ours, theirs = [], []
    for number, (target_blocks, scales) in enumerate(cases if host in BOTH else cases[:2]):
        pair.stock.set_ip_adapter_scale(scales)
        theirs.append(pair.paint(pair.stock, **REFERENCE))
        if number % 2:
            pair.variant.set_target_blocks(target_blocks)
            ours.append(pair.paint(pair.variant, **REFERENCE))
        else:
            ours.append(pair.paint(pair.variant, **REFERENCE, target_blocks=target_blocks))
    every_picture(ours, theirs)


@each_family
def test_loading_targets_style_unless_told_otherwise(host: Host, bare: Pair, adapters: Adapters) -> None:
    bare.stock.load_ip_adapter(*adapters[host.family])
    ours, theirs = [], []
    for kwargs, scales in (({}, STYLE), ({"target_blocks": {"layout": 0.8}}, LAYOUT)):
        bare.variant.load_ip_adapter(*adapters[host.family], **kwargs)
        bare.stock.set_ip_adapter_scale(scales[host.family])
        theirs.append(bare.paint(bare.stock, **REFERENCE))
        bare.variant.set_ip_adapter_scale(1.25 if kwargs else 1.0)
        ours.append(bare.paint(bare.variant, **REFERENCE))
    every_picture(ours, theirs)


@each_family
def test_one_transformer_layer_can_be_targeted(host: Host, pair: Pair) -> None:
    """The oracle is the host with the scales of its processors set by hand."""
    stage = {"sdxl": "up_blocks.0.attentions.1", "sd15": "up_blocks.2.attentions.1"}[host.family]
    names = [name for name in layers(pair.stock.unet) if name.startswith(("mid_block", "down_blocks.2", stage))]
    ours, theirs = [], []
    for chosen in names:
        for name, layer in layers(pair.stock.unet).items():
            layer.processor.scale = [0.9 if name == chosen else 0.0]
        theirs.append(pair.paint(pair.stock, **REFERENCE))
        pair.variant.set_target_blocks({chosen.removesuffix(".attn2"): 0.9})
        assert pair.variant.target_blocks == {readable(pair, chosen): 0.9}
        ours.append(pair.paint(pair.variant, **REFERENCE))
    every_picture(ours, theirs)


def readable(pair: Pair, layer: str) -> str:
    """Return the group's name if the layer is alone in it, else the layer's."""
    group = layer.partition(".transformer_blocks")[0]
    alone = sum(name.startswith(group + ".") for name in layers(pair.stock.unet)) == 1
    return group if alone else layer.removesuffix(".attn2")


@each_family
def test_what_is_in_force_reads_back_as_names_and_scales(host: Host, pair: Pair) -> None:
    style = BLOCKS[host.family]["style"]
    expected: list[tuple[Any, float, dict[str, float]]] = [
        ("style", 1.0, dict.fromkeys(style, 1.0)),
        ("style", 0.5, dict.fromkeys(style, 0.5)),
        ({"layout": 0.5}, 0.5, dict.fromkeys(BLOCKS[host.family]["layout"], 0.25)),
        ({"style": 0.5, "mid_block": 2}, 2.0, {"mid_block.attentions.0": 4, **dict.fromkeys(style, 1.0)}),
        ({"style": 1.0, style[0]: 0.0}, 1.0, dict.fromkeys(style[1:], 1.0)),
        ("style", 0.0, {}),
    ]
    for target_blocks, scale, read in expected:
        pair.variant.set_target_blocks(target_blocks, scale=scale)
        assert pair.variant.target_blocks == read
    pair.variant.set_target_blocks("all")
    assert set(pair.variant.target_blocks.values()) == {1.0}
    assert len(pair.variant.target_blocks) == {"sdxl": 11, "sd15": 16}[host.family]


@each_family
def test_what_reads_back_can_be_set_again(host: Host, pair: Pair) -> None:
    pair.variant.set_target_blocks(
        {"style+layout": 0.5, "up_blocks.1.attentions.0.transformer_blocks.0": 1.5}, scale=0.8
    )
    read, painted = pair.variant.target_blocks, pair.paint(pair.variant, **REFERENCE)
    pair.variant.set_target_blocks("layout")
    assert differ(painted, pair.paint(pair.variant, **REFERENCE))
    pair.variant.set_target_blocks(read)
    assert pair.variant.target_blocks == read
    assert same(painted, pair.paint(pair.variant, **REFERENCE))


@every_host
def test_a_number_goes_back_to_what_was_chosen_before_a_dict(host: Host, pair: Pair) -> None:
    """For all blocks that is what the host does. A dict is not a choice; even one of zeros is only a dict."""
    layout = {"up": {"block_1": [0.3, 0.0, 0.9]}, "mid": 0.7}
    style = scaled(STYLE[host.family], 0.5)
    ours, theirs = [], []
    cases = (
        ("all", [layout, 0.6, {"up": 0.0}, 0.9]),
        ({"style": 0.5}, [1.6, layout, 0.4]),
    )
    for chosen, scales in cases:
        pair.variant.set_target_blocks(chosen)
        for scale in scales:
            pair.variant.set_ip_adapter_scale(scale)
            is_theirs = chosen == "all" or isinstance(scale, dict)
            pair.stock.set_ip_adapter_scale(scale if is_theirs else scaled(style, scale))
            ours.append(pair.paint(pair.variant, **REFERENCE))
            theirs.append(pair.paint(pair.stock, **REFERENCE))
    every = zip(ours, theirs, strict=True)
    assert all(same(first, second) for first, second in every)
    state = core.adapter_state(pair.variant.unet)
    pair.variant.set_ip_adapter_scale(layout)
    state.chosen = state.targets  # as if the dict had been a choice
    pair.variant.set_ip_adapter_scale(0.4)
    assert differ(ours[-1], pair.paint(pair.variant, **REFERENCE))


@each_family
def test_a_number_after_a_dict_reads_nothing(host: Host, bare: Pair, adapters: Adapters, tmp_path: Path) -> None:
    """What was chosen stays in memory while a dict leaves it out, as in the host, so its file may be gone."""
    folder = Path(shutil.copytree(adapters[host.family][0], tmp_path / "adapter"))
    bare.stock.load_ip_adapter(*adapters[host.family])
    bare.variant.load_ip_adapter(str(folder), *adapters[host.family][1:], target_blocks="all")
    shutil.rmtree(folder)
    for scale in (STYLE[host.family], 0.7):
        bare.stock.set_ip_adapter_scale(scale)
        bare.variant.set_ip_adapter_scale(scale)
    assert same(bare.paint(bare.stock, **REFERENCE), bare.paint(bare.variant, **REFERENCE))
    bare.variant.set_target_blocks("style")
    with pytest.raises(ValueError, match="is gone or has changed"):
        bare.variant.set_ip_adapter_scale({"down": 1.0})


@each_family
def test_a_number_after_a_dict_for_one_of_two_adapters(
    host: Host, bare: Pair, adapters: Adapters, tmp_path: Path
) -> None:
    folders, subfolders, names = zip(adapters[host.family], write_adapter(tmp_path, host.family, seed=1), strict=True)
    arguments, images = (list(folders), list(subfolders), list(names)), {"ip_adapter_image": [picture(1), picture(2)]}
    bare.stock.load_ip_adapter(*arguments)
    bare.variant.load_ip_adapter(*arguments, target_blocks="all")
    found = []
    for scales in ([STYLE[host.family], LAYOUT[host.family]], [1.0, STYLE[host.family]]):
        for pipe in (bare.stock, bare.variant):
            pipe.set_ip_adapter_scale(scales)
        assert same(bare.paint(bare.stock, **images), bare.paint(bare.variant, **images))
        found.append(bare.paint(bare.variant, **images))
    assert differ(*found)


def scaled(scales: Any, factor: float) -> Any:
    """Multiply all numbers of a nested dict."""
    if isinstance(scales, dict):
        return {key: scaled(inner, factor) for key, inner in scales.items()}
    return [scaled(inner, factor) for inner in scales] if isinstance(scales, list) else scales * factor


@each_family
def test_several_adapters_have_their_own_targets_and_one_number_scales_both(
    host: Host, bare: Pair, adapters: Adapters, tmp_path: Path
) -> None:
    folders, subfolders, names = zip(adapters[host.family], write_adapter(tmp_path, host.family, seed=1), strict=True)
    stock, variant, images = bare.stock, bare.variant, {"ip_adapter_image": [picture(1), picture(2)]}
    arguments = (list(folders), list(subfolders), list(names))
    stock.load_ip_adapter(*arguments)
    variant.load_ip_adapter(*arguments, target_blocks=["layout", "style"])
    style, layout = BLOCKS[host.family]["style"], BLOCKS[host.family]["layout"]
    assert variant.target_blocks == [dict.fromkeys(layout, 1.0), dict.fromkeys(style, 1.0)]
    ours, theirs = [], []
    for factors, set_scale in (
        ((1.0, 1.0), lambda: None),
        ((0.5, 0.5), lambda: variant.set_ip_adapter_scale(0.5)),
        ((0.2, 0.9), lambda: variant.set_ip_adapter_scale([0.2, 0.9])),
        ((0.9, 0.2), lambda: variant.set_target_blocks([{"layout": 0.9}, {"style": 0.2}])),
    ):
        set_scale()
        both = [scaled(s[host.family], f) for s, f in zip((LAYOUT, STYLE), factors, strict=True)]
        stock.set_ip_adapter_scale(both)
        theirs.append(bare.paint(stock, **images))
        ours.append(bare.paint(variant, **images))
    variant.set_target_blocks("style", scale=0.5)
    assert variant.target_blocks == [dict.fromkeys(style, 0.5)] * 2
    stock.set_ip_adapter_scale([scaled(STYLE[host.family], 0.5)] * 2)
    theirs.append(bare.paint(stock, **images))
    ours.append(bare.paint(variant, **images))
    every_picture(ours, theirs)


@each_family
def test_an_adapter_that_another_loader_put_there_is_all(host: Host, bare: Pair, adapters: Adapters) -> None:
    bare.stock.load_ip_adapter(*adapters[host.family])
    variant = variant_class(host).from_pipe(bare.stock)
    assert set(variant.target_blocks.values()) == {1.0}
    assert same(bare.paint(bare.stock, **REFERENCE), bare.paint(variant, **REFERENCE))
    assert same(bare.paint(bare.variant), bare.paint(variant))
    bare.stock.set_ip_adapter_scale(STYLE[host.family])
    styled = bare.paint(bare.stock, **REFERENCE)
    bare.stock.set_ip_adapter_scale(1.0)
    variant.set_target_blocks("style")
    assert same(styled, bare.paint(variant, **REFERENCE))
    assert differ(styled, bare.paint(variant, **REFERENCE, target_blocks="all"))
    variant.unload_ip_adapter()
    assert same(bare.paint(bare.variant), bare.paint(variant))


# --- Presets ---------------------------------------------------------------------------------------------------------


@each_family
def test_presets_that_the_file_carries_win(host: Host, bare: Pair, tmp_path: Path) -> None:
    presets = {"style": ["up_blocks.1.attentions.2"], "mine": {"mid_block": 0.5, "up_blocks.1": 0.7}}
    arguments = write_adapter(tmp_path, host.family, presets=presets)
    bare.stock.load_ip_adapter(*arguments)
    bare.variant.load_ip_adapter(*arguments)
    ours, theirs = [], []
    cases = [
        ("style", {"up": {"block_1": [0.0, 0.0, 1.0]}}),
        ({"mine": 2.0}, {"up": {"block_1": 1.4}, "mid": 1.0}),
        ("layout", LAYOUT[host.family]),
    ]
    for target_blocks, scales in cases:
        bare.stock.set_ip_adapter_scale(scales)
        theirs.append(bare.paint(bare.stock, **REFERENCE))
        ours.append(bare.paint(bare.variant, **REFERENCE, target_blocks=target_blocks))
    every_picture(ours, theirs)
    assert same(ours[0], bare.paint(bare.variant, **REFERENCE))  # the default is the file's "style"


@each_family
def test_presets_of_one_file_are_not_those_of_the_next(
    host: Host, bare: Pair, adapters: Adapters, tmp_path: Path
) -> None:
    bare.variant.load_ip_adapter(
        *write_adapter(tmp_path, host.family, presets={"mine": "mid_block"}), target_blocks="mine"
    )
    assert bare.variant.target_blocks == {"mid_block.attentions.0": 1.0}
    bare.variant.load_ip_adapter(*adapters[host.family])
    with pytest.raises(ValueError, match="mine"):
        bare.variant.set_target_blocks("mine")


def shallow(host: Host) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """Return a UNet with two levels, and the components of a pipeline around it."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 12),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=20,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    towers = {"image_encoder": image_encoder(host.family), "feature_extractor": feature_extractor()}
    return unet, {**components(host.family), "unet": unet, **towers}


@every_host
def test_loading_on_an_unknown_topology_does_what_the_host_does(
    host: Host, bare: Pair, adapters: Adapters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All blocks, and a line in the log; where style blocks are known, those, and none."""
    bare.stock.load_ip_adapter(*adapters[host.family])
    painted = bare.paint(bare.stock, **REFERENCE)
    bare.variant.load_ip_adapter(*adapters[host.family])
    assert differ(painted, bare.paint(bare.variant, **REFERENCE))
    assert "attention blocks" not in caplog.text
    monkeypatch.setattr(blocks, "FAMILY_PRESETS", {})
    bare.variant.load_ip_adapter(*adapters[host.family])
    assert same(painted, bare.paint(bare.variant, **REFERENCE))
    assert caplog.text.count("All attention blocks see the reference, as in diffusers") == 1
    with pytest.raises(ValueError, match="names 'style', which is neither a preset"):
        bare.variant.load_ip_adapter(*adapters[host.family], target_blocks="style")
    assert same(painted, bare.paint(bare.variant, **REFERENCE))


@pytest.mark.parametrize("host", [HOSTS["stable_diffusion"]], ids=["sd15"])
def test_an_unknown_topology_has_names_and_all_only(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, parts = shallow(host)
    stock, variant = host.cls(**parts), variant_class(host)(**{**parts, "unet": copy.deepcopy(unet)})
    arguments = (adapter_state(host.family, unet=unet), "", "", None)
    plain, processors = pixels(variant, **host.inputs()), dict(variant.unet.attn_processors)
    for preset in ("style", "layout", "style+layout"):
        with pytest.raises(ValueError, match=preset.replace("+", r"\+")) as refused:
            variant.load_ip_adapter(*arguments, target_blocks=preset)
        assert "all" in str(refused.value)
    assert variant.unet.attn_processors == processors
    with caplog.at_level("WARNING"):
        variant.load_ip_adapter(*arguments)
    (record,) = caplog.records
    assert record.getMessage().startswith("All attention blocks see the reference")
    stock.load_ip_adapter(*arguments[:3], image_encoder_folder=None)
    ours, theirs = [plain], [pixels(variant, **host.inputs())]
    cases = [
        ("all", {"down": 1.0, "mid": 1.0, "up": 1.0}),
        ("up_blocks.1", {"up": 1.0}),
        ({"down_blocks": 1.0, "mid_block.attentions.0": 0.5}, {"down": 1.0, "mid": 0.5}),
    ]
    for target_blocks, scales in cases:
        stock.set_ip_adapter_scale(scales)
        theirs.append(pixels(stock, **host.inputs(), **REFERENCE))
        ours.append(pixels(variant, **host.inputs(), **REFERENCE, target_blocks=target_blocks))
    every_picture(ours, theirs)


# --- Small -----------------------------------------------------------------------------------------------------------


@every_host
def test_muted_blocks_hold_no_weights(host: Host, pair: Pair) -> None:
    unet = pair.variant.unet
    every = list(layers(unet))
    assert (
        adapter_bytes(unet)
        == adapter_bytes(pair.stock.unet)
        == checkpoint_bytes(host, unet, ["down_blocks", "mid_block", "up_blocks"])
    )
    for preset in ("style", "layout"):
        pair.variant.set_target_blocks(preset)
        blocks = BLOCKS[host.family][preset]
        assert 0 < adapter_bytes(unet) == checkpoint_bytes(host, unet, blocks) < adapter_bytes(pair.stock.unet) / 2
        muted = [name for name in every if not any(name.startswith(block + ".") for block in blocks)]
        assert muted
        assert not any(list(unet.get_submodule(name).processor.parameters()) for name in muted)


@each_family
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_block_targeted_later_brings_its_own_weights_only(
    host: Host, bare: Pair, tmp_path: Path, format: str
) -> None:
    arguments, blocks = write_adapter(tmp_path, host.family, format=format), BLOCKS[host.family]
    bare.stock.load_ip_adapter(*arguments)
    bare.variant.load_ip_adapter(*arguments)
    unet, ours, theirs = bare.variant.unet, [], []
    kept = {name: id(module) for name, module in unet.named_modules()}
    held = adapter_bytes(unet)
    assert held == checkpoint_bytes(host, unet, blocks["style"])
    for target_blocks, scales in (
        ("style+layout", {**STYLE[host.family], **LAYOUT[host.family]}),
        ("layout", LAYOUT[host.family]),
    ):
        bare.stock.set_ip_adapter_scale(scales)
        theirs.append(bare.paint(bare.stock, **REFERENCE))
        ours.append(bare.paint(bare.variant, **REFERENCE, target_blocks=target_blocks))
        assert adapter_bytes(unet) == held
        assert kept == {name: id(module) for name, module in unet.named_modules()}
    bare.variant.set_target_blocks("style+layout")
    assert adapter_bytes(unet) == held + checkpoint_bytes(host, unet, blocks["layout"])
    assert same(ours[0], bare.paint(bare.variant, **REFERENCE))
    after = {name: id(module) for name, module in unet.named_modules()}
    style = [name for name in kept if any(name.startswith(block + ".") for block in blocks["style"])]
    assert [kept[name] for name in style] == [after[name] for name in style]
    assert kept["encoder_hid_proj"] == after["encoder_hid_proj"]
    bare.variant.set_target_blocks("layout")
    assert adapter_bytes(unet) == checkpoint_bytes(host, unet, blocks["layout"])
    assert same(ours[1], bare.paint(bare.variant, **REFERENCE))
    every_picture(ours, theirs)


def replace_file(path: Path) -> None:
    """Write something else in the file's place."""
    path.write_bytes(path.read_bytes() + b"x")


@each_family
@pytest.mark.parametrize("spoil", [os.remove, replace_file, None], ids=["deleted", "replaced", "state dict"])
def test_weights_that_cannot_be_read_again_are_refused_by_name(
    host: Host, bare: Pair, tmp_path: Path, spoil: Any
) -> None:
    folder, subfolder, name = write_adapter(tmp_path, host.family)
    bare.variant.register_modules(image_encoder=image_encoder(host.family), feature_extractor=feature_extractor())
    if spoil is None:
        bare.variant.load_ip_adapter(adapter_state(host.family), "", "", None)
    else:
        bare.variant.load_ip_adapter(folder, subfolder, name)
        bare.paint(bare.variant, **REFERENCE, target_blocks="layout")
        spoil(Path(folder, subfolder, name))
    before, held = bare.paint(bare.variant, **REFERENCE), adapter_bytes(bare.variant.unet)
    block = BLOCKS[host.family]["layout"][0].replace(".", r"\.")
    for attempt in (
        lambda: bare.variant.set_target_blocks("style+layout", scale=0.5),
        lambda: bare.variant.set_ip_adapter_scale(LAYOUT[host.family]),
        lambda: bare.paint(bare.variant, **REFERENCE, target_blocks="layout"),
    ):
        with pytest.raises(ValueError, match=f"{block}.*load_ip_adapter"):
            attempt()
        assert adapter_bytes(bare.variant.unet) == held
        assert same(before, bare.paint(bare.variant, **REFERENCE))
    bare.variant.set_target_blocks("style", scale=0.5)  # needs no weights
    assert differ(before, bare.paint(bare.variant, **REFERENCE))


@each_family
def test_a_stock_host_on_the_same_unet_is_stopped_by_a_muted_block(host: Host, pair: Pair) -> None:
    pair.variant.set_target_blocks("style")
    right = pair.paint(pair.variant, **REFERENCE)
    sharing = stock_on(pair)
    assert same(right, pair.paint(sharing, **REFERENCE))
    sharing.set_ip_adapter_scale(1.0)
    with pytest.raises(RuntimeError, match=r"(down|mid|up)_block.*set_target_blocks"):
        pair.paint(sharing, **REFERENCE)
    pair.variant.set_target_blocks("style")
    assert same(right, pair.paint(pair.variant, **REFERENCE))


def stock_on(pair: Pair) -> DiffusionPipeline:
    """Return a stock pipeline that shares the variant's UNet and image tower."""
    stock = copy.copy(pair.stock)
    for name in ("unet", "image_encoder", "feature_extractor"):
        object.__setattr__(stock, name, getattr(pair.variant, name))
    return stock

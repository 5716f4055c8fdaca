"""Bad calls are refused before anything is changed, with the argument, what came and what to do (law 8)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hosts import Host, picture, pixels
from refusals import (
    BLOCKS,
    INF,
    NAN,
    TEXT_TO_IMAGE,
    WIDTH,
    Bad,
    alone,
    assert_says,
    both_families,
    content,
    embeds,
    every_variant,
    good_call,
    loaded,
    masks,
    nothing_changes,
    refused,
    shown,
)


pytest_plugins = ["refusals"]
pytestmark = pytest.mark.usefixtures("offline")


CHANGES: dict[str, Callable[[DiffusionPipeline], Any]] = {
    "other blocks": lambda pipe: pipe.set_target_blocks("layout"),
    "another scale": lambda pipe: pipe.set_ip_adapter_scale(0.5),
    "no adapter": lambda pipe: pipe.unload_ip_adapter(),
    "another weight": lambda pipe: pipe.unet.conv_out.weight.data.mul_(1.1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_would_be_seen(change: Callable[[DiffusionPipeline], Any], written: Any) -> None:
    """The breaking twin of every test below: what changes something is caught, and moves pixels."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = loaded(host, written[host.family, "plain"])
    before = good_call(pipe, host)
    with pytest.raises(AssertionError), nothing_changes(pipe, host):
        change(pipe)
    assert np.abs(before - good_call(pipe, host)).max() > 1e-3


def test_a_run_would_be_seen(ready: Any) -> None:
    """An error that comes after the UNet has run is no refusal."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with pytest.raises(AssertionError, match="the UNet ran"), nothing_changes(pipe, host):
        good_call(pipe, host)


SCALES = [
    shown(
        f"the scale {scale!r}",
        {"target_blocks": {"style": scale}},
        error,
        "'style'",
        "`target_blocks`",
        expected,
        repr(scale),
    )
    for scale, error, expected in [
        (NAN, ValueError, "finite"),
        (INF, ValueError, "finite"),
        ("1.0", TypeError, "a number"),
        (True, TypeError, "a number"),
        (None, TypeError, "a number"),
        ([], TypeError, "a number"),
        ((1.0, 1.0), TypeError, "a number"),
    ]
] + [
    shown("nan in a list", {"target_blocks": {"style": [1.0, NAN]}}, ValueError, "`target_blocks`", "finite", "nan"),
    shown(
        "a list of scales without masks",
        {"target_blocks": {"style": [1.0, 0.5]}},
        ValueError,
        "2",
        "1 picture",
        "without `ip_adapter_masks`",
    ),
    shown(
        "a scale too many for the masked pictures",
        {
            "ip_adapter_image": [[picture(1), picture(2)]],
            "target_blocks": {"style": [1.0, 0.5, 0.2]},
            "cross_attention_kwargs": masks(1, 2, 16, 16),
        },
        ValueError,
        "3",
        "2 pictures",
        "with `ip_adapter_masks`",
    ),
]

CONTENT = [
    shown(
        "content in the form of one picture for two",
        content(["a star"]),
        ValueError,
        "`neg_content_prompt`",
        "[[*, *]]",
        "[*]",
    ),
    shown(
        "content for three pictures of two",
        content([["a star", "a heart", "a moon"]]),
        ValueError,
        "`neg_content_prompt`",
        "[[*, *]]",
        "[[*, *, *]]",
    ),
    shown(
        "content without the adapter's level",
        content(["a star", "a heart"]),
        ValueError,
        "`neg_content_prompt`",
        "[[*, *]]",
        "[*, *]",
    ),
    shown(
        "content deeper than the pictures",
        content([[["a star"], ["a heart"]]]),
        ValueError,
        "`neg_content_prompt`",
        "[[*, *]]",
        "[[[*], [*]]]",
    ),
    alone(
        "content nested differently from embeddings",
        {"ip_adapter_image_embeds": embeds(2, 2), "neg_content_prompt": ["a star", "a heart"]},
        ValueError,
        "`neg_content_prompt`",
        "[[*, *]]",
        "[*, *]",
        only=("sdxl",),
    ),
    alone("content without reference", {"neg_content_prompt": "a star"}, ValueError, "`neg_content_prompt`", "Pass"),
    alone(
        "content embeddings without reference",
        {"neg_content_embeds": torch.ones(WIDTH)},
        ValueError,
        "`neg_content_embeds`",
        "Pass `ip_adapter_image`",
    ),
    shown("empty content", {"neg_content_prompt": ""}, ValueError, "`neg_content_prompt`", "empty string", "None"),
    shown("blank content", {"neg_content_prompt": " "}, ValueError, "`neg_content_prompt`", "empty string", "None"),
    shown("a number as content", {"neg_content_prompt": 3}, TypeError, "`neg_content_prompt`", "str", "3"),
    shown("a number among content", content([["a star", 3]]), TypeError, "`neg_content_prompt`", "str", "3"),
    shown(
        "content twice",
        {"neg_content_prompt": "a star", "neg_content_embeds": torch.ones(WIDTH)},
        ValueError,
        "`neg_content_prompt`",
        "`neg_content_embeds`",
        "not both",
    ),
    shown(
        "content longer than its tower",
        {"neg_content_prompt": "a star" * 20},
        ValueError,
        "`neg_content_prompt`",
        "102 tokens",
        "77",
        "'a stara star",
    ),
    shown("the string foo as strength", {"neg_content_scale": "foo"}, TypeError, "`neg_content_scale`", "auto", "foo"),
    shown("nan as strength", {"neg_content_scale": NAN}, ValueError, "`neg_content_scale`", "finite", "nan"),
    shown("infinite strength", {"neg_content_scale": INF}, ValueError, "`neg_content_scale`", "finite", "inf"),
    shown("None as strength", {"neg_content_scale": None}, TypeError, "`neg_content_scale`", "a number", "None"),
    shown("True as strength", {"neg_content_scale": True}, TypeError, "`neg_content_scale`", "a number", "True"),
] + [
    shown(what, {"neg_content_embeds": value}, error, "`neg_content_embeds`", *says, only=("sdxl",))
    for what, value, error, says in [
        ("zero content embeddings", torch.zeros(WIDTH), ValueError, ("zero", "None")),
        ("nan content embeddings", torch.full((WIDTH,), NAN), ValueError, ("not finite", "None")),
        ("infinite content embeddings", torch.full((1, WIDTH), INF), ValueError, ("not finite", "None")),
        ("content embeddings one too wide", torch.ones(WIDTH + 1), ValueError, (f"({WIDTH},)", f"({WIDTH + 1},)")),
        ("two rows of content embeddings", torch.ones(2, WIDTH), ValueError, (f"(1, {WIDTH})", f"(2, {WIDTH})")),
        ("a string as content embeddings", "a star", TypeError, ("ensors", "a star")),
        ("a list of numbers as content embeddings", [1.0] * WIDTH, ValueError, ("[*, *", "[*]")),
    ]
]

NOT_PICTURES = [
    shown(what, {"ip_adapter_image": value}, ValueError, "`ip_adapter_image`", *says)
    for what, value, says in [
        ("a path as picture", "reference.png", ("pictures", "'reference.png'")),
        ("a pathlib path as picture", Path("reference.png"), ("pictures", "reference.png")),
        ("a number as picture", 3, ("pictures", "3")),
        ("bytes as picture", b"\x89PNG", ("pictures", "PNG")),
        ("None among the pictures", [[picture(1), None]], ("pictures", "None")),
        ("None as an adapter's picture", [None], ("pictures", "None")),
        ("no picture", [], ("one entry per IP-Adapter", "0 for 1")),
        ("an empty list of pictures", [[]], ("pictures", "[]")),
        (
            "two adapters' pictures for one",
            [picture(1), picture(2)],
            ("one entry per IP-Adapter", "2 for 1", "[[a, b]]"),
        ),
        ("pictures one level too deep", [[[picture(1)]]], ("pictures", "[*]")),
    ]
]

PER_PROMPT = [
    shown(
        what,
        {"prompt": ["a red star", "a blue star"], "ip_adapter_image_per_prompt": True, "ip_adapter_image": value},
        ValueError,
        "`ip_adapter_image_per_prompt`",
        "adapter -> prompt -> picture",
        "2 prompts",
        nesting,
        "[[a, b]]",
    )
    for what, value, nesting in [
        ("one picture for two prompts", [picture(1)], "*"),
        ("a list of one picture for two prompts", [[picture(1)]], "[*]"),
        ("three pictures for two prompts", [[picture(i) for i in range(3)]], "[*, *, *]"),
        ("one prompt with more pictures", [[[picture(1)], [picture(2), picture(3)]]], "[[*], [*, *]]"),
    ]
] + [
    alone(
        "a reference per prompt without references",
        {"ip_adapter_image_per_prompt": True},
        ValueError,
        "`ip_adapter_image_per_prompt`",
        "`ip_adapter_image`",
    )
]

EMBEDS = [
    alone(what, {"ip_adapter_image_embeds": value}, ValueError, "`ip_adapter_image_embeds`", *says, only=("sdxl",))
    for what, value, says in [
        ("nan embeddings", embeds(value=NAN), ("not finite",)),
        ("infinite embeddings", embeds(value=INF), ("not finite",)),
        ("embeddings of another width", embeds(width=7), (f"(rows, pictures, {WIDTH})", "(2, 1, 7)")),
        ("embeddings without the pictures' dimension", [torch.ones(2, WIDTH)], ("(rows, pictures", f"(2, {WIDTH})")),
        ("three rows of embeddings", embeds(3), ("1 prompt", "has 3")),
        ("one row of embeddings under guidance", embeds(1), ("1 prompt", "has 1")),
        ("embeddings for two prompts", embeds(4), ("1 prompt", "has 4")),
        ("a tensor that is no list", embeds()[0], ("a list of 1 tensors", "Tensor")),
        ("embeddings for two adapters", embeds() * 2, ("a list of 1 tensors", "2")),
        ("a number as embeddings", [3], (f"(rows, pictures, {WIDTH})", "int")),
    ]
] + [
    shown(
        "pictures and embeddings",
        {"ip_adapter_image_embeds": embeds()},
        ValueError,
        "`ip_adapter_image`",
        "`ip_adapter_image_embeds`",
        "not both",
    ),
]

MASKS = [
    shown(
        "masks for two adapters",
        {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 16, 16)] * 2}},
        ValueError,
        "`ip_adapter_masks`",
        "one entry per IP-Adapter",
        "2 for 1",
    ),
    shown(
        "masks for two pictures of one",
        {"cross_attention_kwargs": masks(1, 2, 16, 16)},
        ValueError,
        "`ip_adapter_masks`",
        "(1, 1, height, width)",
        "(1, 2, 16, 16)",
    ),
    shown(
        "masks without the pictures' dimension",
        {"cross_attention_kwargs": masks(1, 16, 16)},
        ValueError,
        "`ip_adapter_masks`",
        "(1, 1, height, width)",
        "(1, 16, 16)",
    ),
    shown(
        "pictures as masks",
        {"cross_attention_kwargs": {"ip_adapter_masks": [picture(1)]}},
        ValueError,
        "`ip_adapter_masks`",
        "(1, 1, height, width)",
        "Image",
    ),
    alone(
        "masks without reference",
        {"cross_attention_kwargs": masks(1, 1, 16, 16)},
        ValueError,
        "`ip_adapter_masks`",
        "Pass `ip_adapter_image`",
    ),
]

BAD_CALLS = [*BLOCKS, *SCALES, *CONTENT, *NOT_PICTURES, *PER_PROMPT, *EMBEDS, *MASKS]


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.what)
def test_a_call_is_refused(bad: Bad, ready: Any) -> None:
    """The message names the argument, what came and what was expected, and the next good call paints as before."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with refused(pipe, host, bad.error, *bad.says):
        pipe(**bad.arguments(host))


@every_variant
def test_every_variant_refuses_the_same_calls(host: Host, ready: Any) -> None:
    """The laws hold for the twelve."""
    pipe = ready(host)
    with nothing_changes(pipe, host):
        for bad in BAD_CALLS:
            if host.family in bad.only:
                with pytest.raises(bad.error) as caught:
                    pipe(**bad.arguments(host))
                assert_says(caught.value, bad.says)


NEEDS_AN_ADAPTER = [
    {"ip_adapter_image": picture(1)},
    {"ip_adapter_image_embeds": embeds()},
    {"target_blocks": "style"},
]


@both_families
@pytest.mark.parametrize("inputs", NEEDS_AN_ADAPTER, ids=lambda inputs: next(iter(inputs)))
def test_without_an_adapter_there_is_nothing_to_refer_to(inputs: dict[str, Any], family: str, ready: Any) -> None:
    """What needs an adapter asks for one."""
    host = TEXT_TO_IMAGE[family]
    pipe = ready(host, None)
    with refused(pipe, host, ValueError, f"`{next(iter(inputs))}`", "Call `load_ip_adapter` first"):
        pipe(**host.inputs(), **inputs)


@pytest.mark.parametrize("name", ["neg_content_promt", "neg_content_emb", "target_block"])
@both_families
def test_a_misspelt_argument_does_not_vanish(name: str, family: str, ready: Any) -> None:
    """The hosts swallow arguments that they do not know; ours are near enough to be recognised."""
    host = TEXT_TO_IMAGE[family]
    pipe = ready(host)
    with refused(pipe, host, TypeError, name):
        pipe(**host.inputs(), ip_adapter_image=picture(1), **{name: "a star"})


def test_rows_are_counted_with_the_prompts(ready: Any) -> None:
    """Two prompts without guidance take one row of embeddings or two, not three."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    inputs = {**host.inputs(), "prompt": ["a red star", "a blue star"], "guidance_scale": 1.0}
    with refused(pipe, host, ValueError, "`ip_adapter_image_embeds`", "2 prompts", "has 3"):
        pipe(**inputs, ip_adapter_image_embeds=embeds(3))
    assert len(pixels(pipe, **inputs, ip_adapter_image_embeds=embeds(2))) == 2

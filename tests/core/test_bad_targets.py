"""Bad targets and scales that stay are refused as those of a call are."""

from __future__ import annotations

from typing import Any

import pytest
from hosts import picture
from refusals import (
    BLOCKS,
    INF,
    NAN,
    TEXT_TO_IMAGE,
    Bad,
    alone,
    embeds,
    load,
    masks,
    refused,
    shown,
)


pytest_plugins = ["refusals"]
pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize("bad", BLOCKS, ids=lambda bad: bad.what)
def test_set_target_blocks_refuses_the_same_blocks(bad: Bad, ready: Any) -> None:
    """What a call refuses, `set_target_blocks` refuses."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with refused(pipe, host, bad.error, *bad.says):
        pipe.set_target_blocks(bad.inputs["target_blocks"])


@pytest.mark.parametrize("bad", BLOCKS, ids=lambda bad: bad.what)
@pytest.mark.parametrize("before", [False, True], ids=["fresh", "over another adapter"])
def test_load_ip_adapter_refuses_the_same_blocks(bad: Bad, before: bool, ready: Any, written: Any) -> None:
    """What a call refuses, `load_ip_adapter` refuses before it loads anything."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host, "plain" if before else None)
    with refused(pipe, host, bad.error, *bad.says):
        load(pipe, written["sdxl", "plain"], target_blocks=bad.inputs["target_blocks"])


BAD_SCALES = [
    (NAN, ValueError, ("finite", "nan")),
    (INF, ValueError, ("finite", "inf")),
    ("1.0", TypeError, ("a number", "'1.0'")),
    (True, TypeError, ("a number", "True")),
    (None, TypeError, ("a number", "None")),
    ([1.0, 1.0], ValueError, ("2 entries", "1 IP-Adapter")),
    ([], ValueError, ("0 entries", "1 IP-Adapter")),
    ([[]], TypeError, ("a number",)),
    ([NAN], ValueError, ("finite", "nan")),
    ([[1.0, NAN]], ValueError, ("finite", "nan")),
]


@pytest.mark.parametrize(("scale", "error", "says"), BAD_SCALES, ids=lambda value: repr(value)[:20])
def test_set_target_blocks_refuses_the_scale(scale: Any, error: Any, says: tuple[str, ...], ready: Any) -> None:
    """Scales are finite numbers, one for all adapters or one each."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with refused(pipe, host, error, "`scale`", *says):
        pipe.set_target_blocks("layout", scale=scale)


@pytest.mark.parametrize(("scale", "error", "says"), BAD_SCALES, ids=lambda value: repr(value)[:20])
def test_set_ip_adapter_scale_refuses_the_scale(scale: Any, error: Any, says: tuple[str, ...], ready: Any) -> None:
    """The host's method takes no other numbers; where the host itself refuses, its message is enough."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with refused(pipe, host, error):
        pipe.set_ip_adapter_scale(scale)


@pytest.mark.parametrize(
    ("scale", "error"),
    [({"cellar": 1.0}, ValueError), ({"up": {"block_0": [1.0, 1.0]}}, ValueError)],
    ids=["no part", "too few layers"],
)
def test_set_ip_adapter_scale_refuses_unknown_blocks(scale: Any, error: Any, ready: Any) -> None:
    """A dict of the host's that names nothing, or too few, changes nothing."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with refused(pipe, host, error):
        pipe.set_ip_adapter_scale(scale)


@pytest.mark.parametrize("number", [NAN, "1.0", True], ids=repr)
def test_set_ip_adapter_scale_refuses_a_wrong_number_in_a_dict(number: Any, ready: Any) -> None:
    """A number inside of the host's dict is checked as one outside."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host)
    with refused(pipe, host, (TypeError, ValueError), repr(number)):
        pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, number, 0.0]}})


@pytest.mark.parametrize(
    ("target_blocks", "scale", "says"),
    [
        (["style"], 1.0, ("`target_blocks`", "1 entries for 2 IP-Adapters")),
        (["style", "all", "all"], 1.0, ("`target_blocks`", "3 entries for 2 IP-Adapters")),
        ("style", [1.0], ("`scale`", "1 entries for 2 IP-Adapters")),
        ("style", [1.0, 1.0, 1.0], ("`scale`", "3 entries for 2 IP-Adapters")),
    ],
    ids=repr,
)
def test_two_adapters_are_counted(target_blocks: Any, scale: Any, says: tuple[str, ...], ready: Any) -> None:
    """With two adapters a list has two entries."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host, "two")
    with refused(pipe, host, ValueError, *says):
        pipe.set_target_blocks(target_blocks, scale=scale)


TWO_ADAPTERS = [
    shown(
        "one picture for two adapters",
        {"ip_adapter_image": picture(1)},
        ValueError,
        "`ip_adapter_image`",
        "one entry per IP-Adapter",
        "1 for 2",
    ),
    alone(
        "embeddings for one adapter of two",
        {"ip_adapter_image_embeds": embeds()},
        ValueError,
        "`ip_adapter_image_embeds`",
        "a list of 2 tensors",
    ),
    shown(
        "masks for one adapter of two",
        {"ip_adapter_image": [picture(1), picture(2)], "cross_attention_kwargs": masks(1, 1, 16, 16)},
        ValueError,
        "`ip_adapter_masks`",
        "1 for 2",
    ),
    shown(
        "content for one adapter of two",
        {"ip_adapter_image": [picture(1), picture(2)], "neg_content_prompt": ["a star"]},
        ValueError,
        "`neg_content_prompt`",
        "[*, *]",
        "[*]",
    ),
]


@pytest.mark.parametrize("bad", TWO_ADAPTERS, ids=lambda bad: bad.what)
def test_a_call_with_two_adapters_is_refused(bad: Bad, ready: Any) -> None:
    """With two adapters everything comes in pairs."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host, "two")
    with refused(pipe, host, bad.error, *bad.says):
        pipe(**bad.arguments(host))


def test_targets_without_an_adapter_are_refused(ready: Any) -> None:
    """There must be an adapter to aim."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = ready(host, None)
    with refused(pipe, host, ValueError, "`target_blocks`", "Call `load_ip_adapter` first"):
        pipe.set_target_blocks("style")

"""Bad input is refused before anything is loaded or changed, with the argument, what came and what to do (law 8)."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionSAGPipeline,
    UNet2DConditionModel,
)
from hosts import (
    CLIP_WIDTH,
    FAMILIES,
    HOSTS,
    VISION_WIDTH,
    Host,
    adapter_state,
    components,
    content_encoder,
    feature_extractor,
    image_encoder,
    make,
    picture,
    pixels,
    write_adapter,
)
from safetensors.torch import load_file, save_file

from instantstyle.core import with_instantstyle


Folder = tuple[str, str, Any]  # what `load_ip_adapter` is called with

TEXT_TO_IMAGE = {"sdxl": HOSTS["stable_diffusion_xl"], "sd15": HOSTS["stable_diffusion"]}
SDXL = TEXT_TO_IMAGE["sdxl"]
WIDTH = CLIP_WIDTH["sdxl"]
NAN, INF = float("nan"), float("inf")

both_families = pytest.mark.parametrize("family", FAMILIES)
every_variant = pytest.mark.parametrize("host", HOSTS.values(), ids=lambda host: host.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Folder]:
    """Write the adapters of every kind: (family, kind) -> what `load_ip_adapter` is called with."""
    kinds = [("sdxl", "plain"), ("sd15", "plain"), ("sd15", "plus"), ("sd15", "full")]
    found = {kind: write_adapter(tmp_path_factory.mktemp("adapter"), *kind) for kind in kinds}
    folder, subfolder, weight_name = found["sdxl", "plain"]
    return {**found, ("sdxl", "two"): (folder, subfolder, [weight_name] * 2)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask no server for what is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def load(pipe: DiffusionPipeline, adapter: Folder, **settings: Any) -> None:
    """Load an adapter as its user does."""
    folder, subfolder, weight_name = adapter
    pipe.load_ip_adapter(folder, subfolder=subfolder, weight_name=weight_name, **settings)


def bare(host: Host) -> DiffusionPipeline:
    """Build the host's variant without an adapter."""
    return make(host, with_instantstyle(host.cls))


def loaded(host: Host, adapter: Folder, **settings: Any) -> DiffusionPipeline:
    """Build the host's variant with an adapter, and with the content tower that SD1.5 lacks."""
    pipe = bare(host)
    load(pipe, adapter, **settings)
    if host.family == "sd15":
        pipe.load_content_encoder(content_encoder())
    return pipe


@pytest.fixture(scope="module")
def kept() -> dict[Any, DiffusionPipeline]:
    """Keep pipelines for the tests to come."""
    return {}


@pytest.fixture
def ready(kept: dict[Any, DiffusionPipeline], written: Any) -> Iterator[Callable[..., DiffusionPipeline]]:
    """Lend a pipeline, loaded or without adapter; it is kept for the next test if this one left it as it was."""
    lent = {}

    def lend(host: Host, kind: str | None = "plain") -> DiffusionPipeline:
        pipe = kept.pop((host.name, kind), None)
        if pipe is None:
            pipe = bare(host) if kind is None else loaded(host, written[host.family, kind])
            good_call(pipe, host)  # the first leaves the host's own attributes
        lent[host.name, kind] = pipe, snapshot(pipe)
        return pipe

    yield lend
    kept.update({key: pipe for key, (pipe, before) in lent.items() if snapshot(pipe) == before})


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is changed by a refused call
# ---------------------------------------------------------------------------------------------------------------------


def good_call(pipe: DiffusionPipeline, host: Host) -> np.ndarray:
    """Paint in one step, with a reference for each adapter that is loaded."""
    inputs = host.inputs()
    inputs["num_inference_steps"] = 2 if "strength" in inputs else 1
    if pipe.target_blocks is not None:
        inputs["ip_adapter_image"] = [picture(number) for number, _ in enumerate(adapters_on(pipe))]
    return pixels(pipe, **inputs)


def adapters_on(pipe: DiffusionPipeline) -> list[Any]:
    """Return one entry for each adapter in force."""
    return pipe.target_blocks if isinstance(pipe.target_blocks, list) else [pipe.target_blocks]


def snapshot(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Note everything that a refused call could leave behind, except for the pixels."""
    unet = pipe.unet
    return {
        "processors": {name: id(processor) for name, processor in unet.attn_processors.items()},
        "scales": {name: repr(getattr(p, "scale", None)) for name, p in unet.attn_processors.items()},
        "modules": {name: id(module) for name, module in unet.named_modules()},
        "weights": {name: (id(p), p._version, str(p.device)) for name, p in unet.named_parameters()},
        "unet config": dict(unet.config),
        "components": {name: id(component) for name, component in pipe.components.items()},
        "config": dict(pipe.config),
        "attributes": sorted(vars(pipe)),
        "targets": pipe.target_blocks,
        "random state": torch.get_rng_state().numpy().tobytes(),
    }


@contextmanager
def nothing_changes(pipe: DiffusionPipeline, host: Host) -> Iterator[None]:
    """Compare all that is on the pipeline, and the pixels of a good call, before and after; the UNet does not run."""
    painted, before = good_call(pipe, host), snapshot(pipe)
    runs = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: runs.append("the UNet ran"))
    try:
        yield
    finally:
        handle.remove()
    assert not runs
    after = snapshot(pipe)
    assert {name for name in before if before[name] != after[name]} == set()
    assert np.array_equal(painted, good_call(pipe, host))


@contextmanager
def refused(pipe: DiffusionPipeline, host: Host, error: Any, *says: str) -> Iterator[None]:
    """Expect an error of this very type whose message says all this, and nothing changed by it."""
    with nothing_changes(pipe, host):
        with pytest.raises(error) as caught:
            yield
        assert_says(caught.value, says)


def assert_says(error: BaseException, says: tuple[str, ...]) -> None:
    """Find every part in the message."""
    missing = [part for part in says if part not in str(error)]
    assert not missing, f"{missing} not in: {error}"


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


# ---------------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """Arguments that are refused, the type of the error, and what its message says."""

    what: str
    inputs: dict[str, Any]
    error: type[Exception]
    says: tuple[str, ...]
    only: tuple[str, ...] = FAMILIES
    references: dict[str, Any] = field(default_factory=lambda: {"ip_adapter_image": picture(1)})

    def arguments(self, host: Host) -> dict[str, Any]:
        """Return the call: the host's own arguments, a reference, and what is bad."""
        return {**host.inputs(), **self.references, **self.inputs}


def shown(what: str, inputs: dict[str, Any], error: type[Exception], *says: str, **settings: Any) -> Bad:
    """Describe a bad call that has a reference."""
    return Bad(what, inputs, error, says, **settings)


def alone(what: str, inputs: dict[str, Any], error: type[Exception], *says: str, **settings: Any) -> Bad:
    """Describe a bad call whose references, if any, are in the arguments given."""
    return Bad(what, inputs, error, says, references={}, **settings)


def embeds(rows: int = 2, pictures: int = 1, width: int = WIDTH, value: float = 1.0) -> list[torch.Tensor]:
    """Return embeddings in the host's form."""
    return [torch.full((rows, pictures, width), value)]


def masks(*shape: int) -> dict[str, Any]:
    """Return masks in the host's form."""
    return {"ip_adapter_masks": [torch.ones(*shape)]}


def content(value: Any) -> dict[str, Any]:
    """Return content for two pictures of one adapter."""
    return {"ip_adapter_image": [[picture(1), picture(2)]], "neg_content_prompt": value}


BLOCKS = [
    shown("an unknown block", {"target_blocks": "cellar"}, ValueError, "`target_blocks`", "'cellar'", "style, layout"),
    shown("a misspelt preset", {"target_blocks": "stlye"}, ValueError, "`target_blocks`", "'stlye'", "mean 'style'"),
    shown(
        "a misspelt block",
        {"target_blocks": ["style", "up_block.1.attentions.1"]},
        ValueError,
        "`target_blocks`",
        "'up_block.1.attentions.1'",
        "Did you mean",
        "'up_blocks.1.attentions.1'",
    ),
    shown(
        "half a block name", {"target_blocks": "up_block"}, ValueError, "`target_blocks`", "'up_block'", "'up_blocks"
    ),
    shown("an empty list", {"target_blocks": []}, ValueError, "`target_blocks`", "empty", "style, layout"),
    shown("an empty dict", {"target_blocks": {}}, ValueError, "`target_blocks`", "empty", "style, layout"),
    shown("an empty name", {"target_blocks": ""}, ValueError, "`target_blocks`", "''", "style, layout"),
    shown("a number", {"target_blocks": 3}, TypeError, "`target_blocks`", "a preset, a block name", "3"),
    shown("True", {"target_blocks": True}, TypeError, "`target_blocks`", "a preset, a block name", "True"),
    shown("a number in a list", {"target_blocks": ["style", 3]}, TypeError, "`target_blocks`", "strings", "3"),
    shown("a number as a name", {"target_blocks": {3: 1.0}}, TypeError, "`target_blocks`", "strings", "3"),
]

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


# ---------------------------------------------------------------------------------------------------------------------
# Targets and scales that stay
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Content that cannot be encoded, or removed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plus", "full"])
@pytest.mark.parametrize("name", ["neg_content_prompt", "neg_content_embeds"])
def test_patch_embeddings_have_no_content_to_remove(kind: str, name: str, ready: Any) -> None:
    """Subtraction works on one global embedding per picture only."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = ready(host, kind)
    value = "a star" if name == "neg_content_prompt" else torch.ones(CLIP_WIDTH["sd15"])
    with refused(pipe, host, ValueError, f"`{name}`", "global embedding", "Pass None"):
        pipe(**host.inputs(), ip_adapter_image=picture(1), **{name: value})


def no_tower(pipe: DiffusionPipeline) -> str:
    """Leave SD1.5 without a text tower for content."""
    pipe.unload_content_encoder()
    return "there is none"


def narrow_tower(pipe: DiffusionPipeline) -> str:
    """Give SD1.5 the text tower of SDXL's CLIP."""
    parts = components("sdxl")
    pipe.load_content_encoder((parts["text_encoder_2"], parts["tokenizer_2"]))
    return f" {CLIP_WIDTH['sdxl']}"


@pytest.mark.parametrize("tower", [no_tower, narrow_tower])
def test_content_needs_the_text_tower_of_the_adapters_clip(tower: Callable[..., str], written: Any) -> None:
    """Without it, the remedy is named."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = loaded(host, written[host.family, "plain"])
    at_hand = tower(pipe)
    width = f" {CLIP_WIDTH['sd15']}"
    with refused(pipe, host, ValueError, "`neg_content_prompt`", width, at_hand, "`load_content_encoder`"):
        pipe(**host.inputs(), ip_adapter_image=picture(1), neg_content_prompt="a star")


def test_sdxl_with_another_adapters_tower_is_refused(written: Any) -> None:
    """What `load_content_encoder` gave goes before SDXL's own, also when it does not fit."""
    host = TEXT_TO_IMAGE["sdxl"]
    pipe = loaded(host, written[host.family, "plain"])
    pipe.load_content_encoder(content_encoder())
    with refused(pipe, host, ValueError, f" {WIDTH}", f" {CLIP_WIDTH['sd15']}", "`load_content_encoder`"):
        pipe(**host.inputs(), ip_adapter_image=picture(1), neg_content_prompt="a star")


def content_sources(folder: Path) -> dict[str, tuple[Any, Any, tuple[str, ...]]]:
    """Return what cannot be a content encoder, the error's type and what it says."""
    parts = components("sd15")
    plain, tokenizer = parts["text_encoder"], parts["tokenizer"]
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "no projection": ((plain, tokenizer), TypeError, ("`source`", "CLIPTextModelWithProjection", "CLIPTextModel")),
        "no projection on disk": (str(folder), (TypeError, ValueError), ("CLIPTextModelWithProjection",)),
        "a missing folder": (str(folder / "nowhere"), OSError, ("nowhere",)),
        "one module": ((content_encoder()[0],), (TypeError, ValueError), ("`source`", "(text_encoder, tokenizer)")),
        "no modules": (3, (TypeError, ValueError), ("`source`", "3")),
        "swapped": (content_encoder()[::-1], TypeError, ("`source`", "CLIPTextModelWithProjection", "Tokenizer")),
    }


@pytest.mark.parametrize(
    "what", ["no projection", "no projection on disk", "a missing folder", "one module", "no modules", "swapped"]
)
def test_a_content_encoder_is_refused(what: str, written: Any, tmp_path: Path) -> None:
    """The one given before stays in force: the good call with content paints as before."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = loaded(host, written[host.family, "plain"])
    source, error, says = content_sources(tmp_path)[what]
    removed = {**host.inputs(), "ip_adapter_image": picture(1), "neg_content_prompt": "a star"}
    before = pixels(pipe, **removed)
    with refused(pipe, host, error, *says):
        pipe.load_content_encoder(source)
    removed["generator"] = host.inputs()["generator"]
    assert np.array_equal(before, pixels(pipe, **removed))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------

FORMATS = ("safetensors", "bin")


class Code:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def tensors(family: str = "sdxl", **settings: Any) -> dict[str, torch.Tensor]:
    """Return a good adapter in the flat form of safetensors."""
    state = adapter_state(family, **settings)
    return {f"{part}.{key}": value for part in state for key, value in state[part].items()}


def other_width() -> dict[str, torch.Tensor]:
    """Return an adapter for a UNet of SDXL's topology whose text is four numbers wider."""
    unet = components("sdxl")["unet"]
    config = {**unet.config, "cross_attention_dim": unet.config.cross_attention_dim + 4}
    return tensors(unet=UNet2DConditionModel.from_config(config))


def other_tokens() -> dict[str, torch.Tensor]:
    """Return an adapter whose image tokens are narrower than its own keys take."""
    flat, other = tensors(), tensors("sd15")
    return {**flat, **{key: value for key, value in other.items() if key.startswith("image_proj.")}}


def without(*fragments: str) -> dict[str, torch.Tensor]:
    """Return an adapter that lacks the keys with these fragments."""
    return {key: value for key, value in tensors().items() if not any(fragment in key for fragment in fragments)}


def with_value(fragment: str, value: float) -> dict[str, torch.Tensor]:
    """Return an adapter with one wrong value in the keys with this fragment."""
    flat = tensors()
    for key, tensor in flat.items():
        if fragment in key:
            tensor.view(-1)[-1] = value
    return flat


FIT = (
    "does not fit this UNet",
    "the shape",
    "has (",
    "layers",
    "Load an IP-Adapter made for",
)
BAD_TENSORS: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], tuple[str, ...]]] = {
    "the other family's": (lambda: tensors("sd15"), FIT),
    "another width": (other_width, FIT),
    "another width of tokens": (other_tokens, ("does not fit this UNet", "image_proj.norm.weight", "32", "20")),
    "no image projection": (lambda: without("image_proj."), ("IP-Adapter", "`image_proj`", "`ip_adapter`")),
    "no keys and values": (lambda: without("ip_adapter."), ("IP-Adapter", "`image_proj`", "`ip_adapter`")),
    "a layer missing": (lambda: without("ip_adapter.1."), ("'ip_adapter.1.to_k_ip.weight'", "is missing")),
    "a value projection missing": (lambda: without(".1.to_v_ip"), ("'ip_adapter.1.to_v_ip.weight'", "is missing")),
    "half an image projection": (lambda: without("image_proj.proj.weight"), ("image projection",)),
    "no norm": (lambda: without("image_proj.norm"), ("image projection",)),
    "nan in the image projection": (
        lambda: with_value("image_proj.proj.bias", NAN),
        ("not finite", "image_proj.proj.bias"),
    ),
    "nan in the style block": (lambda: with_value("to_k_ip", NAN), ("not finite", "to_k_ip.weight")),
    "infinity in the style block": (lambda: with_value("to_v_ip", INF), ("not finite", "to_v_ip.weight")),
    "another model": (lambda: {"lora.weight": torch.ones(2, 2)}, ("IP-Adapter", "`image_proj`", "`ip_adapter`")),
    "no tensors": (dict, ("IP-Adapter", "`image_proj`", "`ip_adapter`")),
}


def write(folder: Path, flat: dict[str, torch.Tensor], format: str, metadata: dict[str, str] | None = None) -> Folder:
    """Write a checkpoint in one of the published formats."""
    if format == "safetensors":
        save_file(flat, folder / "bad.safetensors", metadata)
    else:
        nested: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in flat.items():
            part, _, rest = key.partition(".")
            nested.setdefault(part, {})[rest] = value
        torch.save(nested, folder / "bad.bin")
    return str(folder), "", f"bad.{format}"


@pytest.fixture(params=[False, True], ids=["fresh", "over a good adapter"])
def pipe(request: pytest.FixtureRequest, ready: Any) -> DiffusionPipeline:
    """Build SDXL's variant, without and with a good adapter that stays in force."""
    return ready(SDXL, "plain" if request.param else None)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_checkpoint_is_refused(what: str, format: str, ready: Any, tmp_path: Path) -> None:
    """The message names the file and what is wrong with it; the adapter in force stays."""
    build, says = BAD_TENSORS[what]
    pipe = ready(SDXL, None if format == "bin" else "plain")
    adapter = write(tmp_path, build(), format)
    with refused(pipe, SDXL, ValueError, f"bad.{format}", *says):
        load(pipe, adapter, image_encoder_folder=None)


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_state_dict_is_refused(what: str, pipe: Any) -> None:
    """What is wrong in a file is wrong in memory."""
    build, says = BAD_TENSORS[what]
    nested: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in build().items():
        part, _, rest = key.partition(".")
        nested.setdefault(part, {})[rest] = value
    with refused(pipe, SDXL, ValueError, "the state dict", *says):
        pipe.load_ip_adapter(nested, subfolder="", weight_name="", image_encoder_folder=None)


def test_sdxls_adapter_does_not_fit_sd15(ready: Any, written: Any) -> None:
    """The families are told apart both ways."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = ready(host)
    with refused(pipe, host, ValueError, *FIT, "16"):
        load(pipe, written["sdxl", "plain"])


def truncated(good: Path) -> bytes:
    """Keep the first half of a file."""
    return good.read_bytes()[: good.stat().st_size // 2]


BAD_BYTES: dict[str, Callable[[Path], bytes]] = {
    "truncated": truncated,
    "empty": lambda good: b"",
    "text": lambda good: b"<html>404 not found</html>",
    "its first bytes": lambda good: good.read_bytes()[:4],
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("what", BAD_BYTES)
def test_a_broken_file_is_refused(what: str, format: str, pipe: Any, tmp_path: Path) -> None:
    """The message names the file, and says that it cannot be read."""
    adapter = write(tmp_path, tensors(), format)
    file = tmp_path / f"bad.{format}"
    file.write_bytes(BAD_BYTES[what](file))
    with refused(pipe, SDXL, ValueError, f"bad.{format}"):
        load(pipe, adapter, image_encoder_folder=None)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(legacy: bool, pipe: Any, tmp_path: Path) -> None:
    """Unpickling reads tensors only."""
    trace = tmp_path / "it ran"
    state = {**adapter_state("sdxl"), "extra": Code(trace)}
    torch.save(state, tmp_path / "bad.bin", _use_new_zipfile_serialization=not legacy)
    with refused(pipe, SDXL, ValueError, "bad.bin", "refused", "run code"):
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="bad.bin", image_encoder_folder=None)
    assert not trace.exists()
    torch.load(tmp_path / "bad.bin", weights_only=False)
    assert trace.exists()  # the twin: the code is there, and works


def test_a_bare_pickle_with_code_is_refused_and_not_run(pipe: Any, tmp_path: Path) -> None:
    """A file that torch did not write is no better."""
    trace = tmp_path / "it ran"
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(Code(trace)))
    with refused(pipe, SDXL, ValueError, "bad.bin"):
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="bad.bin", image_encoder_folder=None)
    assert not trace.exists()


BAD_PRESETS = {
    "not JSON": ("{style: up}", ("`instantstyle.presets`", "bad.safetensors", "not JSON")),
    "not an object": ('["style"]', ("`instantstyle.presets`", "bad.safetensors", "an object")),
    "an unknown block": ('{"style": ["cellar"]}', ("'cellar'",)),
    "an empty preset": ('{"style": []}', ("empty",)),
    "a number": ('{"style": 3}', ("3",)),
}


@pytest.mark.parametrize("what", BAD_PRESETS)
def test_presets_in_the_metadata_are_checked(what: str, pipe: Any, tmp_path: Path) -> None:
    """A checkpoint that brings its own presets brings good ones."""
    presets, says = BAD_PRESETS[what]
    adapter = write(tmp_path, tensors(), "safetensors", {"instantstyle.presets": presets})
    with refused(pipe, SDXL, (ValueError, TypeError), *says):
        load(pipe, adapter, image_encoder_folder=None)


def test_a_missing_file_is_named(pipe: Any, tmp_path: Path) -> None:
    """The message is the host's."""
    with refused(pipe, SDXL, OSError, "nothing.safetensors"):
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="nothing.safetensors")


def test_a_missing_image_encoder_is_named(tmp_path: Path) -> None:
    """An adapter without the encoder that it needs is not half loaded."""
    pipe = bare(SDXL)
    adapter = write(tmp_path, tensors(), "safetensors")
    with refused(pipe, SDXL, OSError, "image_encoder"):
        load(pipe, adapter)


def test_a_state_dict_brings_no_image_encoder() -> None:
    """The remedy is named."""
    pipe = bare(SDXL)
    with refused(pipe, SDXL, ValueError, "`image_encoder`", "state dict", "`image_encoder_folder=None`"):
        pipe.load_ip_adapter(adapter_state("sdxl"), subfolder="", weight_name="")


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_another_image_encoder_is_refused(kind: str, written: Any) -> None:
    """An adapter and the image encoder that the user gave must have one width."""
    host = TEXT_TO_IMAGE["sd15"]
    pipe = bare(host)
    pipe.register_modules(image_encoder=image_encoder("sdxl"), feature_extractor=feature_extractor())
    widths = CLIP_WIDTH if kind == "plain" else VISION_WIDTH
    says = (f" {widths['sd15']}", "`image_encoder`", f" {widths['sdxl']}")
    with refused(pipe, host, ValueError, *says):
        load(pipe, written["sd15", kind])


def test_the_second_of_two_adapters_is_checked_before_the_first_is_loaded(pipe: Any, tmp_path: Path) -> None:
    """All or nothing."""
    write(tmp_path, with_value("to_k_ip", NAN), "safetensors")
    save_file(tensors(), tmp_path / "good.safetensors")
    with refused(pipe, SDXL, ValueError, "bad.safetensors", "not finite"):
        names = ["good.safetensors", "bad.safetensors"]
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=names, image_encoder_folder=None)


def test_sources_and_names_are_counted(pipe: Any, written: Any) -> None:
    """One subfolder per weight name, or one for all."""
    folder, subfolder, weight_name = written["sdxl", "plain"]
    with refused(pipe, SDXL, ValueError, "`weight_name`", "`subfolder`", "3, 2"):
        pipe.load_ip_adapter(folder, subfolder=[subfolder] * 2, weight_name=[weight_name] * 3)


@pytest.mark.parametrize("source", [None, 3], ids=repr)
def test_a_source_of_another_type_is_refused(source: Any, pipe: Any) -> None:
    """A source is a folder, a repository or a state dict."""
    with refused(pipe, SDXL, (TypeError, ValueError), "`pretrained_model_name_or_path_or_dict`", repr(source)):
        pipe.load_ip_adapter(source, subfolder="", weight_name="bad.bin")


# ---------------------------------------------------------------------------------------------------------------------
# Weights that were not read at first
# ---------------------------------------------------------------------------------------------------------------------

LAYOUT = "down_blocks.2.attentions.1"
RETARGET: dict[str, Callable[[DiffusionPipeline], Any]] = {
    "set_target_blocks": lambda pipe: pipe.set_target_blocks("layout"),
    "set_ip_adapter_scale": lambda pipe: pipe.set_ip_adapter_scale({"down": {"block_2": [0.0, 1.0]}}),
    "a call": lambda pipe: pipe(**SDXL.inputs(), ip_adapter_image=picture(1), target_blocks="layout"),
}


def nan_outside_style(file: Path) -> None:
    """Spoil the weights that are not read at first, without a trace in the file's size or time."""
    flat = load_file(file)
    kept = style_keys()
    for key, tensor in flat.items():
        if "_ip.weight" in key and key not in kept:
            tensor.view(-1)[0] = NAN
    save_file(flat, file)


def style_keys() -> set[str]:
    """Return the keys of the style block, as checkpoints number them."""
    layers = [name for name in components("sdxl")["unet"].attn_processors if name.endswith("attn2.processor")]
    numbers = [2 * i + 1 for i, name in enumerate(layers) if name.startswith("up_blocks.0.attentions.1.")]
    assert len(numbers) == 2
    return {f"ip_adapter.{number}.to_{kind}_ip.weight" for number in numbers for kind in "kv"}


@pytest.fixture
def own_adapter(written: Any, tmp_path: Path) -> Folder:
    """Copy an adapter whose file a test may spoil."""
    folder, subfolder, weight_name = written["sdxl", "plain"]
    shutil.copytree(folder, tmp_path / "own")
    return str(tmp_path / "own"), subfolder, weight_name


@pytest.mark.parametrize("retarget", RETARGET.values(), ids=RETARGET)
def test_nan_in_a_muted_block_is_refused_when_it_is_aimed_at(retarget: Any, own_adapter: Folder) -> None:
    """Weights are checked when they are read."""
    nan_outside_style(Path(*own_adapter))
    pipe = loaded(SDXL, own_adapter)
    with refused(pipe, SDXL, ValueError, own_adapter[2], "not finite", "_ip.weight"):
        retarget(pipe)


@pytest.mark.parametrize("retarget", RETARGET.values(), ids=RETARGET)
@pytest.mark.parametrize("lost", ["gone", "replaced", "a state dict"])
def test_weights_that_cannot_be_read_again_are_refused(retarget: Any, lost: str, own_adapter: Folder) -> None:
    """The message names the block and the remedy."""
    file = Path(*own_adapter)
    pipe = loaded(SDXL, own_adapter)
    if lost == "gone":
        file.unlink()
    elif lost == "replaced":
        save_file({**tensors(seed=1), "more": torch.ones(1)}, file)
    else:
        pipe.load_ip_adapter(adapter_state("sdxl"), subfolder="", weight_name="")
    with refused(pipe, SDXL, ValueError, f"'{LAYOUT}.", "`load_ip_adapter`", "`target_blocks`"):
        retarget(pipe)


# ---------------------------------------------------------------------------------------------------------------------
# Hosts
# ---------------------------------------------------------------------------------------------------------------------

OTHERS = [
    StableDiffusionSAGPipeline,
    StableDiffusionInstructPix2PixPipeline,
    FluxPipeline,
    StableDiffusionAdapterPipeline,
]


@pytest.mark.parametrize("host", OTHERS, ids=lambda host: host.__name__)
def test_a_host_of_another_kind_is_refused_by_name(host: type) -> None:
    """A host that prepares image embeddings in its own way, or takes none, has no variant."""
    with pytest.raises(ValueError) as caught:
        with_instantstyle(host)
    assert_says(caught.value, (host.__name__, "cannot have InstantStyle", "IP-Adapter"))


def test_a_host_of_the_same_kind_is_taken() -> None:
    """The breaking twin: a host outside of the lists with the standard method."""
    assert issubclass(with_instantstyle(StableDiffusionLDM3DPipeline), StableDiffusionLDM3DPipeline)


@pytest.mark.parametrize("host", [None, 3, "StableDiffusionXLPipeline", torch.nn.Linear], ids=repr)
def test_what_is_no_host_is_refused(host: Any) -> None:
    """A host is a class of diffusers."""
    with pytest.raises((TypeError, ValueError)):
        with_instantstyle(host)

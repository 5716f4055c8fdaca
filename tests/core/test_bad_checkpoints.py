"""Bad checkpoints are refused before anything is changed, and so are weights that are read later."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from hosts import (
    CLIP_WIDTH,
    VISION_WIDTH,
    adapter_state,
    components,
    feature_extractor,
    image_encoder,
    picture,
)
from refusals import (
    INF,
    NAN,
    SDXL,
    TEXT_TO_IMAGE,
    Folder,
    bare,
    load,
    loaded,
    refused,
)
from safetensors.torch import load_file, save_file


pytest_plugins = ["refusals"]
pytestmark = pytest.mark.usefixtures("offline")


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

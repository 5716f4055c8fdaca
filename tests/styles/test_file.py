"""Style files: an exact round trip, and hostile files refused with the reason, before anything large is allocated."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub import redirect, serve
from safetensors import safe_open
from safetensors.torch import save_file

from instantstyle import Style
from instantstyle.styles import file as style_file
from instantstyle.styles.provenance import Provenance, Source


LAYERS = [f"up_blocks.0.attentions.1.transformer_blocks.{number}" for number in range(2)]
RECIPE = Provenance(
    family="sdxl",
    text_width=32,
    scales={LAYERS[0]: 1.0, LAYERS[1]: 0.1 + 0.2},
    sources=(Source((640, 480), 0.75, "a star", "auto"), Source((3, 5), 0.25)),
    adapter="0" * 64,
    image_encoder="f" * 64,
    dtype="float32",
    versions={"torch": torch.__version__},
)


def make(dtype: torch.dtype = torch.float32, recipe: Provenance = RECIPE, width: int = 24, seed: int = 0) -> Style:
    """Draw a style."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"{layer}.{part}" for layer in recipe.scales for part in ("keys", "values")]
    tensors = {name: torch.randn(2, 4, width, generator=generator) for name in names}
    tensors["embeds"] = torch.stack([torch.zeros(40), torch.randn(40, generator=generator)])
    return Style({name: tensor.to(dtype) for name, tensor in tensors.items()}, recipe)


def equal(first: Style, second: Style) -> bool:
    """Whether two styles are the same to the bit."""
    alike = first.tensors.keys() == second.tensors.keys() and first.recipe == second.recipe
    return alike and all(
        tensor.dtype == second.tensors[name].dtype and torch.equal(tensor, second.tensors[name])
        for name, tensor in first.tensors.items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file in a folder of its own."""
    (tmp_path / "styles").mkdir()
    return tmp_path / "styles" / "ukiyo-e.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_style_comes_back_as_it_was(path: Path, dtype: torch.dtype) -> None:
    style = make(dtype)
    style.save(path)
    assert equal(style, Style.load(path))
    assert equal(style, Style.load(str(path)))
    assert not equal(style, make(dtype, seed=1))
    assert not equal(style, make(dtype, replace(RECIPE, adapter="1" * 64)))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_style_can_be_copied_and_sent_to_another_process() -> None:
    style = make()
    for copied in (copy.deepcopy(style), pickle.loads(pickle.dumps(style))):
        assert equal(style, copied)
        assert copied.tensors["embeds"] is not style.tensors["embeds"]


def test_a_loaded_style_does_not_depend_on_its_file(path: Path) -> None:
    style = make()
    style.save(path)
    loaded = Style.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert equal(style, loaded)


def test_saving_replaces_a_file_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save(path)
    before = path.read_bytes()

    def failing(_: Any, scratch: str, *__: Any) -> None:
        Path(scratch).write_bytes(before[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(style_file, "save_file", failing)
        with pytest.raises(KeyboardInterrupt):
            make(seed=1).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    make(seed=1).save(path)
    assert equal(Style.load(path), make(seed=1))
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(ValueError, match="`path` must end in .safetensors, but is '.*style.bin'"):
        make().save(path.with_name("style.bin"))
    nowhere = path.parent / "none" / path.name
    with pytest.raises(OSError, match=f"No such file or directory: '{nowhere}'"):
        make().save(nowhere)


def test_the_style_of_sdxls_style_block_takes_450_kilobytes(path: Path) -> None:
    """10 layers of width 1280, 4 tokens, two rows, in float16; with the embedding and a long content prompt."""
    layers = [f"up_blocks.0.attentions.1.transformer_blocks.{number}" for number in range(10)]
    source = Source((4096, 4096), 1.0, "a woman with a parasol " * 10, 0.5)
    recipe = replace(RECIPE, scales=dict.fromkeys(layers, 1.0), sources=(source,))
    style = make(torch.float16, recipe, width=1280)
    style.save(path)
    assert 409_600 < path.stat().st_size <= 450_000
    make(torch.float32, recipe, width=1280).to(torch.float16).save(path)
    assert path.stat().st_size <= 450_000


class Touching:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_can_run(path: Path) -> None:
    touched = path.with_name("touched")
    for name in ("style.pt", "style.safetensors"):
        torch.save({"style": Touching(touched)}, path.with_name(name))
        with pytest.raises(ValueError, match="cannot be read as a style"):
            Style.load(path.with_name(name))
        assert not touched.exists()
    torch.load(path.with_name("style.pt"), weights_only=False)
    assert touched.exists()


# --- Hostile files ---------------------------------------------------------------------------------------------------


def raw(header: Any, body: bytes = b"") -> bytes:
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def rewritten(**changes: Any) -> Callable[[Path], None]:
    """Return what writes the style with other tensors, by name without layer, or another recipe."""

    def write(path: Path) -> None:
        tensors = dict(make().tensors)
        first = f"{LAYERS[0]}.keys"
        for name, value in changes.items():
            if name == "recipe":
                continue
            target = first if name == "first" else name
            if value is None:
                del tensors[target]
            else:
                tensors[target] = value(tensors[target]) if callable(value) else value
        recipe = changes.get("recipe", RECIPE.to_json())
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {style_file.KEY: recipe})

    return write


def recipe(**changes: Any) -> str:
    """Return the recipe's JSON with other fields; one that is ... is left out."""
    data = {**json.loads(RECIPE.to_json()), **changes}
    return json.dumps({name: value for name, value in data.items() if value is not ...})


def cut(size: int) -> Callable[[Path], None]:
    """Return what writes the first bytes of a style, or all but the last ones."""

    def write(path: Path) -> None:
        make().save(path)
        path.write_bytes(path.read_bytes()[:size])

    return write


def bytes_of(content: bytes) -> Callable[[Path], None]:
    """Return what writes these bytes."""
    return lambda path: path.write_bytes(content) and None


def sparse(path: Path) -> None:
    """Write ten gigabytes that take no room, with a header that is right for them."""
    size = 10 * 2**30
    header = raw({"a": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def claiming(path: Path) -> None:
    """Write a style whose first tensor claims ten gigabytes."""
    make().save(path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header[f"{LAYERS[0]}.keys"]["shape"] = [2, 4, 10 * 2**30 // 16]
    path.write_bytes(raw(header, content[8 + length :]))


def poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what puts a value in the middle of a tensor."""

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[1, 2, 3] = value
        return tensor

    return poison


DEEP = "[" * 100_000
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (bytes_of(b""), "cannot be read as a style"),
    "no safetensors": (bytes_of(b"not a style" * 100), "its header claims"),
    "truncated in the header": (cut(100), "cannot be read as a style"),
    "truncated in the tensors": (cut(-1), "cannot be read as a style"),
    "a header longer than the file": (bytes_of(struct.pack("<Q", 1000) + b"{}"), "cannot be read as a style"),
    "a header of an exabyte": (bytes_of(struct.pack("<Q", 2**60) + b"{}"), "its header claims 1152921504606846976"),
    "a header that is not JSON": (bytes_of(raw(b"{nonsense}")), "cannot be read as a style"),
    "a header without metadata": (bytes_of(raw({})), "its metadata lacks 'instantstyle.style'"),
    "a shape of ten gigabytes": (claiming, "cannot be read as a style"),
    "ten gigabytes": (sparse, "bytes, and a style at most"),
    "NaN": (rewritten(first=poisoned(float("nan"))), r"transformer_blocks\.0\.keys' holds values that are not finite"),
    "infinity": (rewritten(first=poisoned(float("inf"))), "not finite"),
    "NaN in the embedding": (rewritten(embeds=torch.full((2, 40), torch.nan)), "'embeds' holds values that are not"),
    "a tensor too many": (rewritten(more=torch.ones(1)), "it holds 'more', which the recipe does not name"),
    "a tensor too few": (rewritten(first=None), r"blocks\.0\.keys', which the recipe names, is missing"),
    "one row": (rewritten(first=lambda t: t[:1]), r"must have the shape \(2, 4, 24\), but has \(1, 4, 24\)"),
    "other tokens": (rewritten(first=lambda t: t[:, :3]), r"must have the shape \(2, 3, 24\), but has \(2, 4, 24\)"),
    "other width": (rewritten(first=lambda t: t[..., :5]), r"must have the shape \(2, 4, 5\), but has \(2, 4, 24\)"),
    "four dimensions": (rewritten(first=lambda t: t[None]), r"must have the shape .*, but has \(1, 2, 4, 24\)"),
    "no tokens": (
        rewritten(first=lambda t: t[:, :0]),
        r"must have the shape \(2, tokens, width\), but has \(2, 0, 24\)",
    ),
    "no dimensions": (rewritten(first=torch.tensor(1.0)), r"must have the shape \(2, tokens, width\), but has \(\)"),
    "whole numbers": (rewritten(first=lambda t: t.long()), "must be of one of the dtypes .*, but is of I64"),
    "mixed dtypes": (rewritten(first=lambda t: t.half()), "values' must .* all of the same, but is of torch.float32"),
    "an embedding of one row": (rewritten(embeds=torch.ones(40)), r"'embeds' must have the shape \(2, d\)"),
    "metadata that is not JSON": (rewritten(recipe="a star"), "its recipe is not JSON"),
    "metadata too deep": (rewritten(recipe=DEEP), "its recipe is not JSON"),
    "metadata that is no object": (rewritten(recipe="[]"), r"the recipe` must be an object, but is \[\]"),
    "a future version": (rewritten(recipe=recipe(version=3)), "it is of format 3, but .* reads 2: update"),
    "an older version": (rewritten(recipe=recipe(version=1)), "it is of format 1, but .* reads 2: encode .* again"),
    "no version": (rewritten(recipe=recipe(version=...)), "`version` must be a whole number"),
    "version 0": (rewritten(recipe=recipe(version=0)), "`version` must be a whole number above 0, but is 0"),
    "another family": (rewritten(recipe=recipe(family="flux")), "`family` must be one of sdxl, .*'flux'"),
    "a family that is a list": (rewritten(recipe=recipe(family=["sdxl"])), "`family` must be one of"),
    "an unknown field": (rewritten(recipe=recipe(more=1)), "its recipe has the unknown field 'more'"),
    "a missing field": (rewritten(recipe=recipe(adapter=...)), "its recipe lacks 'adapter'"),
    "another dtype": (rewritten(recipe=recipe(dtype="int8")), "`dtype` must be one of float32, .*'int8'"),
    "no layers": (rewritten(recipe=recipe(scales={})), "`scales` must be layers"),
    "a scale that is a string": (rewritten(recipe=recipe(scales={LAYERS[0]: "1"})), "must be a finite number"),
    "a scale that is NaN": (rewritten(recipe=recipe(scales={LAYERS[0]: float("nan")})), "NaN is no number"),
    "a scale beyond floats": (rewritten(recipe=recipe(scales={LAYERS[0]: 10**400})), "must be a finite number"),
    "a layer that is none": (rewritten(recipe=recipe(scales={"__class__": 1.0})), "`scales` must be layers that"),
    "sources that are no list": (rewritten(recipe=recipe(sources="mine")), "`sources` must be a list of pictures"),
    "no source": (rewritten(recipe=recipe(sources=[])), "`sources` must be pictures"),
    "a source that is a string": (rewritten(recipe=recipe(sources=["mine"])), "`sources` must be pictures"),
    "a source without a size": (rewritten(recipe=recipe(sources=[{"weight": 1}])), "`sources` must be pictures"),
    "a source without a weight": (
        rewritten(recipe=recipe(sources=[{"size": [1, 2], "content": None, "content_scale": 1}])),
        "a source in its recipe lacks 'weight'",
    ),
    "a size of strings": (
        rewritten(recipe=recipe(sources=[{"size": ["1", 2], "weight": 1, "content": None, "content_scale": 1}])),
        "`size` must be two whole numbers",
    ),
    "a hash that is none": (rewritten(recipe=recipe(adapter="../../etc")), "`adapter` must be a hash"),
    "versions that steer a terminal": (
        rewritten(recipe=recipe(versions={"torch": "\x1b[2J"})),
        "`versions` must be names",
    ),
    "versions that are numbers": (rewritten(recipe=recipe(versions={"torch": 2})), "`versions` must be names"),
}


NEEDS_READING = ("NaN", "infinity", "NaN in the embedding")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file and the reason; no tensor is read before everything else is checked."""
    write, says = HOSTILE[name]
    write(path)
    read: list[str] = []
    original = style_file.safe_open

    class Watching:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.file = original(*args, **kwargs)

        def __enter__(self) -> Any:
            self.file.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self.file.__exit__(*args)

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(key)
            return self.file.get_tensor(key)

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.file, attribute)

    monkeypatch.setattr(style_file, "safe_open", Watching)
    with pytest.raises(ValueError, match=says) as caught:
        Style.load(path)
    assert str(path) in str(caught.value)
    assert bool(read) == (name in NEEDS_READING)


def test_a_missing_file_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not asked for on the Hub, where "styles/ukiyo-e.safetensors" could be a stranger's repository."""
    with monkeypatch.context() as patch:
        patch.setattr("instantstyle.core.checkpoint.hf_hub_download", lambda *_, **__: pytest.fail("it was asked for"))
        patch.chdir(path.parent.parent)
        for missing in (path, "styles/ukiyo-e.safetensors"):
            with pytest.raises(FileNotFoundError, match=f"`path_or_repo_id` '{missing}': there is no such file"):
                Style.load(missing)
    with pytest.raises(OSError, match="style.safetensors"):
        Style.load(path.parent)


def test_a_style_is_checked_when_it_is_made() -> None:
    tensors = dict(make().tensors)
    with pytest.raises(ValueError, match="`tensors` make no style: .*missing"):
        Style({}, RECIPE)
    with pytest.raises(ValueError, match="`tensors` make no style: .*not finite"):
        Style(tensors | {"embeds": torch.full((2, 40), torch.nan)}, RECIPE)
    with pytest.raises(ValueError, match="overflow|not finite"):
        Style({name: tensor * 1e6 for name, tensor in tensors.items()}, RECIPE).to(torch.float16)
    with pytest.raises(TypeError):
        make().tensors["embeds"] = tensors["embeds"]  # type: ignore[index]


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def test_a_blend_is_the_weighted_mean_of_keys_and_values() -> None:
    """And the unconditional rows are those of the first, whose adapter is that of all."""
    one, other = make(), make(seed=1)
    blend = Style.blend([one, other], [3, 1])
    for name, tensor in blend.tensors.items():
        mean = 0.75 * one.tensors[name] + 0.25 * other.tensors[name]
        assert torch.allclose(tensor[1], mean[1], atol=1e-6)
        assert torch.equal(tensor[0], one.tensors[name][0])
        assert not torch.allclose(tensor[1], one.tensors[name][1], atol=1e-3)
    assert [source.weight for source in blend.recipe.sources] == [0.5625, 0.1875, 0.1875, 0.0625]
    assert equal(Style.blend([one]), one)
    assert equal(Style.blend([one, other]), Style.blend([one, other], [0.5, 0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_interpolation_goes_from_one_style_to_the_other(dtype: torch.dtype) -> None:
    one, other = make(dtype), make(dtype, seed=1)
    steps = Style.interpolate(one, other, 5)
    assert len(steps) == 5
    for name, tensor in one.tensors.items():
        assert torch.equal(steps[0].tensors[name], tensor)
        assert torch.equal(steps[-1].tensors[name][1], other.tensors[name][1])
        assert torch.equal(steps[2].tensors[name], Style.blend([one, other]).tensors[name])
    with pytest.raises(ValueError, match="`count` must be a whole number of at least 2, but is 1"):
        Style.interpolate(one, other, 1)


def test_styles_that_cannot_be_blended_are_refused() -> None:
    one = make()
    other = {"adapter": "1" * 64, "scales": {LAYERS[0]: 1.0, LAYERS[1]: 0.5}, "family": "sd15"}
    for name, value in other.items():
        with pytest.raises(ValueError, match=f"`styles` must be of one adapter.*differ in '{name}'.*as a tuple"):
            Style.blend([one, make(recipe=replace(RECIPE, **{name: value}))])
    with pytest.raises(ValueError, match="`styles` must have the same tensors"):
        Style.blend([one, Style({n: t for n, t in one.tensors.items() if n != "embeds"}, RECIPE)])
    with pytest.raises(ValueError, match="`styles` is empty"):
        Style.blend([])
    with pytest.raises(TypeError, match="`styles` must hold styles, but holds 'one'"):
        Style.blend(["one"])
    for weights, error in (
        ([1], ValueError),
        ([1, -1], ValueError),
        ([1, float("nan")], ValueError),
        ("11", TypeError),
    ):
        with pytest.raises(error, match="`weights`"):
            Style.blend([one, one], weights)


# --- The Hub ---------------------------------------------------------------------------------------------------------


def test_a_style_is_loaded_from_a_folder_and_a_repository(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style = make()
    style.save(path.with_name("style.safetensors"))
    style.save(path)
    assert equal(style, Style.load(path.parent))
    assert equal(style, Style.load(path.parent, filename=path.name))
    with serve({"someone/ukiyo-e": path.parent}) as hub:
        redirect(monkeypatch, hub.url)
        kwargs = {"cache_dir": str(path.parent.parent / "cache")}
        assert equal(style, Style.load("someone/ukiyo-e", **kwargs))
        with pytest.raises(OSError, match="someone/none"):
            Style.load("someone/none", **kwargs)
        with pytest.raises(OSError, match="a-la-mode.safetensors"):
            Style.load("someone/ukiyo-e", filename="a-la-mode.safetensors", **kwargs)


def test_a_style_is_pushed_to_a_repository(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Recorded at the Hub's client: the file that goes up is the style's."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def upload(_: Any, **kwargs: Any) -> str:
        path.write_bytes(Path(kwargs.pop("path_or_fileobj")).read_bytes())
        calls.append(("upload", kwargs))
        return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, repo, **kw: calls.append((repo, kw)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_file", upload)
    assert make().push_to_hub("someone/ukiyo-e", private=True) == "https://hub/commit"
    assert calls == [
        ("someone/ukiyo-e", {"private": True, "exist_ok": True}),
        ("upload", {"path_in_repo": "style.safetensors", "repo_id": "someone/ukiyo-e"}),
    ]
    assert equal(Style.load(path), make())
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {style_file.KEY}

"""Publishing: what `export` writes loads where only diffusers is, and `publish` brings it to the Hub, all and once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance, DiffusionPipeline
from documents import examples
from hosts import HOSTS, OTHER_HOSTS, SIDE, make, picture, write_adapter, write_checkpoint
from hub import TOKEN, Hub, redirect, serve
from huggingface_hub import ModelCard
from PIL import Image
from processes import PLUGIN, ROOT, TOLERANCE, TWIN, Adapter, paint_reference, run

import instantstyle
from instantstyle import Style, tiny
from instantstyle.commands import cli
from instantstyle.core import with_instantstyle
from instantstyle.hub import checkpoint, export, find_checkpoint, gallery, publish, repository, upload
from instantstyle.hub.card import write_card
from instantstyle.tiny import world


OWN_ADAPTER = ("someone/tiny", "sdxl_models", "ip-adapter_sdxl.safetensors")
IMG2IMG = "pipeline_instantstyle_stable_diffusion_xl_img2img"
VARIANTS = {
    "pipeline_instantstyle.py": "StableDiffusionXLInstantStylePipeline",
    f"{IMG2IMG}.py": "StableDiffusionXLInstantStyleImg2ImgPipeline",
    "pipeline_instantstyle_stable_diffusion_xl_inpaint.py": "StableDiffusionXLInstantStyleInpaintPipeline",
    "pipeline_instantstyle_controlnet_sd_xl.py": "StableDiffusionXLInstantStyleControlNetPipeline",
    "pipeline_instantstyle_controlnet_sd_xl_img2img.py": "StableDiffusionXLInstantStyleControlNetImg2ImgPipeline",
    "pipeline_instantstyle_controlnet_inpaint_sd_xl.py": "StableDiffusionXLInstantStyleControlNetInpaintPipeline",
    "pipeline_instantstyle_stable_diffusion.py": "StableDiffusionInstantStylePipeline",
    "pipeline_instantstyle_stable_diffusion_img2img.py": "StableDiffusionInstantStyleImg2ImgPipeline",
    "pipeline_instantstyle_stable_diffusion_inpaint.py": "StableDiffusionInstantStyleInpaintPipeline",
    "pipeline_instantstyle_controlnet.py": "StableDiffusionInstantStyleControlNetPipeline",
    "pipeline_instantstyle_controlnet_img2img.py": "StableDiffusionInstantStyleControlNetImg2ImgPipeline",
    "pipeline_instantstyle_controlnet_inpaint.py": "StableDiffusionInstantStyleControlNetInpaintPipeline",
}
PAINTED = {"images/grid.png"} | {
    f"images/{shape}-{style}.png" for shape in ("heart", "moon") for style in ("pink-dots", "blue-stripes")
}
DRAWN = {"images/pink-dots.png", "images/blue-stripes.png"}
STYLES = {"styles/pink-dots.safetensors", "styles/blue-stripes.safetensors"}
MODULAR = {"modular_config.json", "modular_instantstyle.py", "modular_model_index.json"}
PLUGIN_FILES = {"README.md", "pipeline.py", *VARIANTS, *MODULAR, *PAINTED, *DRAWN, *STYLES}
PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
TINY_PARTS = (*PARTS, "controlnet", "sdxl_models")


def files_in(folder: Path) -> dict[str, bytes]:
    """Return what every file in a folder holds."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def connected(room: Path, folders: Mapping[str, Path]) -> Iterator[Hub]:
    """Start a Hub, and let huggingface_hub know it and its token."""
    constants = huggingface_hub.constants
    with serve(folders, room) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("NO_PROXY", "127.0.0.1")
        redirect(patch, hub.url)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(room / "cache"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)  # diffusers' own
        yield hub


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Paint the gallery in one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "BASE", gallery.BASE.but(steps=1))
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the plugin."""
    folder = tmp_path_factory.mktemp("export") / "plugin"
    assert cli.main(["export", str(folder)]) == 0
    return folder


@contextmanager
def gallery_of(exported: Path, side: int | None = None) -> Iterator[None]:
    """Take the gallery of an export, which would be painted again the same, or small pictures in its place."""

    def copy_gallery(folder: Path, _: bool) -> list[dict[str, Any]]:
        for name in ("images", "styles"):
            shutil.copytree(exported / name, folder / name)
        for path in (folder / "images").iterdir() if side else ():
            Image.open(path).resize((side, side)).save(path)
        return ModelCard.load(exported / "README.md").data.to_dict()["widget"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "write_gallery", copy_gallery)
        yield


# ---------------------------------------------------------------------------------------------------------------------
# A folder
# ---------------------------------------------------------------------------------------------------------------------


def test_an_export_is_whole(exported: Path) -> None:
    """The folder holds the plugin under both names, every variant, the gallery and the card, and nothing else."""
    found = files_in(exported)
    assert found.keys() == PLUGIN_FILES
    assert found["pipeline.py"] == found["pipeline_instantstyle.py"] == PLUGIN.read_bytes()
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_an_export_is_the_same_every_time(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, so that nothing is uploaded twice; from another seed the painted pictures alone differ."""
    (tmp_path / "again").mkdir()
    assert cli.main(["export", str(tmp_path / "again")]) == 0
    assert files_in(tmp_path / "again") == files_in(exported)
    monkeypatch.setattr(gallery, "BASE", gallery.BASE.but(seed=1))
    assert cli.main(["export", str(tmp_path / "other")]) == 0
    other = files_in(tmp_path / "other")
    assert {name for name, content in files_in(exported).items() if other[name] != content} == PAINTED


def test_the_reference_is_that_of_the_examples(exported: Path) -> None:
    """The reference of the first style is `examples/reference.png`, and the second is another."""
    example = np.asarray(Image.open(ROOT / "examples" / "reference.png"))
    assert (np.asarray(Image.open(exported / "images" / "pink-dots.png")) == example).all()
    assert (np.asarray(Image.open(exported / "images" / "blue-stripes.png")) != example).any()


def test_the_style_files_are_of_their_references(exported: Path, pipe: DiffusionPipeline) -> None:
    """A style file is what encoding its reference gives, on the blocks of the default."""
    for name, other in (("pink-dots", "blue-stripes"), ("blue-stripes", "pink-dots")):
        style = Style.load(exported / "styles" / f"{name}.safetensors")
        own, another = (
            pipe.encode_style(Image.open(exported / "images" / f"{reference}.png"), target_blocks="style")
            for reference in (name, other)
        )
        assert style.recipe == own.recipe
        assert all(torch.equal(style.tensors[key], value.half()) for key, value in own.tensors.items())
        assert not any(torch.equal(style.tensors[key], value.half()) for key, value in another.tensors.items())


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path, assert_refused: Callable[..., None]) -> None:
    """What lies in a folder would be published; what a failed export wrote would be taken for whole."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "secret").touch()
    (tmp_path / "file").touch()
    (tmp_path / "new").mkdir()
    places = {"tmp": str(tmp_path)}
    assert_refused(["export", "{tmp}/used"], "FOLDER: {tmp}/used is there already", places)
    assert_refused(["export", "{tmp}/file"], "FOLDER: {tmp}/file is there already", places)
    assert_refused(["export", "{tmp}/no/new"], "FOLDER: the folder {tmp}/no does not exist.", places)
    assert_refused(["export", "{tmp}/new", "--checkpoint", "{tmp}/used"], "has no model_index.json", places)


# ---------------------------------------------------------------------------------------------------------------------
# A checkpoint
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a user's checkpoint of SD1.5, with its license, and with what must not be published."""
    folder = tmp_path_factory.mktemp("mine")
    write_checkpoint(folder, "sd15")
    metadata = "license: other\nlicense_name: mine\nlicense_link: LICENSE.md\nbase_model: someone/base\ntags: [mine]"
    (folder / "README.md").write_text(f"---\n{metadata}\n---\nMy own words.\n")
    (folder / "LICENSE.md").write_text("Do as you like.")
    (folder / "Notice.txt").write_text("By me.")
    (folder / "optimizer.bin").write_text("large")
    (folder / "unet" / ".netrc").write_text("secret")
    return folder


def test_a_checkpoint_brings_what_it_needs(cards: dict[str, Path], mine: Path) -> None:
    """The parts of the pipeline as they are, the license, a class entry; of the rest of the folder nothing."""
    found, given = files_in(cards["mine"]), files_in(mine)
    index = json.loads(found["model_index.json"])
    names = {name for name in given if name.partition("/")[0] in index and name != "unet/.netrc"}
    assert names | {"model_index.json", "LICENSE.md", "Notice.txt"} == found.keys() - PLUGIN_FILES
    assert {name: found[name] for name in names} == {name: given[name] for name in names}
    entry = ["pipeline_instantstyle_stable_diffusion", "StableDiffusionInstantStylePipeline"]
    assert index == {**json.loads(given["model_index.json"]), "_class_name": entry}


def test_a_saved_variant_is_a_checkpoint_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its class entry stays; that nobody named its license is told in one line, while the export goes on."""
    saved, out = tmp_path / "saved", tmp_path / "out"
    instantstyle.StableDiffusionXLInstantStyleImg2ImgPipeline.from_pretrained(tiny.path()).save_pretrained(saved)
    capsys.readouterr()
    assert cli.main(["export", str(out), "--checkpoint", str(saved)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert said.err.count("\n") == 1
    assert 'names its license; the card says "unknown".' in said.err
    entries = [json.loads((folder / "model_index.json").read_text())["_class_name"] for folder in (saved, out)]
    assert entries[0] == entries[1] == [IMG2IMG, VARIANTS[f"{IMG2IMG}.py"]]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]]", "model_index.json of {mine} is not JSON"),
        ({"_class_name": "StableDiffusionPipeline", "ear": ["diffusers", "Ear"]}, "{mine} has no folder 'ear'"),
        ({"_class_name": "StableDiffusionSAGPipeline"}, "StableDiffusionSAGPipeline cannot have InstantStyle"),
        ({"_class_name": ["mine", "MyPipeline"]}, "pipeline MyPipeline, which diffusers does not have"),
        ({"_class_name": "UNet2DConditionModel"}, "pipeline UNet2DConditionModel, which diffusers does not have"),
        ({}, "pipeline None, which diffusers does not have"),
        ({"_class_name": "FluxPipeline"}, "FluxPipeline cannot have InstantStyle"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_refused(
    index: Any, message: str, mine: Path, tmp_path: Path, assert_refused: Callable[..., None]
) -> None:
    """Before anything is written."""
    folder = tmp_path / "mine"
    shutil.copytree(mine, folder)
    (folder / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    assert_refused(["export", "{out}", "--checkpoint", "{mine}"], message, {"out": tmp_path / "out", "mine": folder})


def test_a_folder_that_is_called_tiny_is_not_ours(mine: Path, tmp_path: Path) -> None:
    """Its license is its own, whatever its name."""
    shutil.copytree(mine, tmp_path / "tiny")
    found = checkpoint.find_checkpoint(str(tmp_path / "tiny"))
    assert (found.label, found.embedded, found.terms["license"]) == ("tiny", False, "other")
    assert checkpoint.find_checkpoint("tiny").embedded


def test_no_name_leads_out_of_a_checkpoint() -> None:
    """A part is a folder beside `model_index.json`, whatever that says."""
    named = {"unet": ["diffusers", "U"], "vae": [None, None], "_class_name": ["mine", "Mine"], "size": 3}
    assert checkpoint.parts({**named, "../secret": ["diffusers", "U"], "/etc": ["diffusers", "U"]}) == ["unet"]


def test_metadata_that_cannot_be_read_is_refused(
    mine: Path, tmp_path: Path, assert_refused: Callable[..., None]
) -> None:
    """A license must not be lost by a typing error."""
    folder = tmp_path / "mine"
    shutil.copytree(mine, folder)
    (folder / "README.md").write_text("---\nlicense: [other\n---\n")
    assert_refused(
        ["export", "{out}", "--checkpoint", "{mine}"],
        "the metadata of {mine}/README.md cannot be read",
        {"out": tmp_path / "out", "mine": folder},
    )


# ---------------------------------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cards(exported: Path, mine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of all kinds of cards."""
    room, unnamed = tmp_path_factory.mktemp("cards"), tmp_path_factory.mktemp("unnamed")
    shutil.copytree(mine, unnamed, dirs_exist_ok=True)
    (unnamed / "README.md").unlink()
    with gallery_of(exported):
        for name, words in {"tiny": [], "mine": [str(mine)], "unnamed": [str(unnamed)]}.items():
            assert cli.main(["export", str(room / name), "--checkpoint", *words]) == 0
    return {"plugin": exported, **{path.name: path for path in room.iterdir()}}


BASES = ["stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-v1-5/stable-diffusion-v1-5"]
METADATA = {
    "plugin": {"license": "apache-2.0", "base_model": BASES, "base_model_relation": "adapter"},
    "tiny": {"license": "apache-2.0"},
    "mine": {
        "license": "other",
        "license_name": "mine",
        "license_link": "LICENSE.md",
        "base_model": "someone/base",
    },
    "unnamed": {"license": "unknown"},
}
OURS = ("plugin", "tiny")  # of others' weights the Hub must show no pictures that they did not make
ABOUT_WEIGHTS = {
    "plugin": "Weights are not in this repository",
    "tiny": "So are the weights",
    "mine": "licence of their authors: mine",
    "unnamed": "which the publisher has not named here",
}


@pytest.mark.parametrize("kind", METADATA)
def test_the_card_tells_the_hub_what_it_is(kind: str, cards: dict[str, Path]) -> None:
    """The metadata are those of a diffusers pipeline, with the license and the base of what is in the repository."""
    metadata = ModelCard.load(cards[kind] / "README.md").data.to_dict()
    assert metadata.pop("library_name") == "diffusers"
    assert metadata.pop("pipeline_tag") == "text-to-image"
    tags = set(metadata.pop("tags"))
    assert {"instantstyle", "ip-adapter", "style-transfer"} <= tags
    assert ("stable-diffusion-xl" in tags) == (kind in OURS)  # the others are of SD1.5
    widget = metadata.pop("widget", [])
    assert {entry["output"]["url"] for entry in widget} == (PAINTED - {"images/grid.png"} if kind in OURS else set())
    assert all(f"images/{entry['text'].split()[-1]}-" in entry["output"]["url"] for entry in widget)
    assert metadata == METADATA[kind]


@pytest.mark.parametrize("kind", METADATA)
def test_the_card_tells_what_is_there(kind: str, cards: dict[str, Path]) -> None:
    """Files and pictures that it names are there, in words of the world, and it says whose the weights are."""
    card = (cards[kind] / "README.md").read_text()
    assert not re.search(r"{{|{%|None|Undefined|\n\n\n", card)
    assert dict(re.findall(r"^\| `(\w+)` \| `(\S+)` \|$", card, re.M)) == {one: file for file, one in VARIANTS.items()}
    named = re.findall(r"\(((?:images|styles)/\S+?)\)|\"(images/\S+?)\"", card)
    assert named and all((cards[kind] / (one or other)).is_file() for one, other in named)
    assert examples(card) and [one for one in examples(card) if world.unknown_words(one)] == []
    assert [other for other, words in ABOUT_WEIGHTS.items() if words in " ".join(card.split())] == [kind]
    assert ("<Gallery />" in card) == (kind in OURS)
    blocks = code_of(card)
    assert len(blocks) == 3
    for block in blocks:
        compile(block, kind, "exec")


def code_of(card: str) -> list[str]:
    """Return the Python of a card."""
    return re.findall(r"```python\n(.*?)```", card, re.S)


def test_the_card_measures_what_the_readme_does(exported: Path) -> None:
    """The figures are those of the README, so that what is measured anew is told anew in both."""
    rows = [
        {line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\| .*\| \d+", line)}
        for path in (exported / "README.md", ROOT / "README.md")
    ]
    assert len(rows[0]) == 4
    assert rows[0] <= rows[1]


# ---------------------------------------------------------------------------------------------------------------------
# Published
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Write an adapter for SD1.5."""
    return write_adapter(tmp_path_factory.mktemp("adapter"), "sd15")


LOADING = """
    import diffusers
    from diffusers import (
        ClassifierFreeGuidance,
        ModularPipeline,
        ModularPipelineBlocks,
        StableDiffusionXLAutoBlocks,
    )
    from diffusers.utils import dynamic_modules_utils
    from huggingface_hub import snapshot_download

    def load(model, kind, **how):
        pipe = DiffusionPipeline.from_pretrained(model, trust_remote_code=True, **how)
        assert type(pipe).__name__ == VARIANTS[f"{kind}.py"], type(pipe)
        return pipe

    plain, img2img, xl_img2img = "pipeline_instantstyle", IMG2IMG, "stable_diffusion_xl_img2img"
    pipe = load("someone/model", plain, custom_pipeline="someone/instantstyle")
    found["plugin"] = paint_reference(pipe, OWN_ADAPTER)
    found["checkpoint"] = paint_reference(load("someone/tiny", plain), OWN_ADAPTER)

    found["name"] = paint_reference(load("someone/tiny", img2img, custom_pipeline=img2img), OWN_ADAPTER, xl_img2img)
    code = snapshot_download("someone/instantstyle", allow_patterns="*.py")
    found["code"] = paint_reference(
        load("someone/model", img2img, custom_pipeline=f"{code}/{img2img}.py"), OWN_ADAPTER, xl_img2img
    )
    found["pushed"] = paint_reference(load("someone/pushed", img2img), OWN_ADAPTER, xl_img2img)
    found["saved"] = paint_reference(load("someone/saved", img2img), OWN_ADAPTER, xl_img2img)
    for file, name in VARIANTS.items():
        cls = dynamic_modules_utils.get_class_from_dynamic_module(code, file, trust_remote_code=True)
        assert cls.__name__ == name

    pipe = load("someone/mine", "pipeline_instantstyle_stable_diffusion")
    found["mine"] = paint_reference(pipe, ADAPTER, "stable_diffusion")

    dynamic_modules_utils.get_diffusers_versions = lambda: [diffusers.__version__]
    found["mirror"] = paint_reference(load("someone/model", plain, custom_pipeline=plain), OWN_ADAPTER)

    for name, model in {"instantstyle": "someone/model", "tiny": "someone/tiny"}.items():
        blocks = ModularPipelineBlocks.from_pretrained(f"someone/{name}", trust_remote_code=True)
        found[f"modular {name}"] = paint_modular(blocks, model, OWN_ADAPTER)
    pipe = ModularPipeline.from_pretrained("someone/tiny", trust_remote_code=True)
    found["modular index"] = paint_modular(pipe.blocks, pipe, OWN_ADAPTER)
    plain = ModularPipeline.from_pretrained("someone/instantstyle", trust_remote_code=True)
    found["plain index"] = np.array([type(plain.blocks).__name__, plain.unet is None])
    host = StableDiffusionXLAutoBlocks()
    host.sub_blocks["ip_adapter"] = blocks.sub_blocks["ip_adapter"]
    host.variant_of = blocks.variant_of
    found["modular step"] = paint_modular(host, "someone/tiny", OWN_ADAPTER)
"""


def paint_modular(blocks: Any, model: Any, adapter: Adapter) -> np.ndarray:
    """Paint what `paint_reference` does, with modular blocks of a model, or a pipeline of them."""
    pipe = blocks.init_pipeline(model) if isinstance(model, str) else model
    pipe.load_components(workflow="text2image")
    blocks.variant_of(pipe).load_ip_adapter(*adapter)
    inputs = HOSTS["stable_diffusion_xl"].inputs()
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=inputs.pop("guidance_scale")))
    return pipe(**inputs, ip_adapter_image=picture(1), output="images")


@pytest.fixture(scope="module")
def found(mine: Path, adapter: Adapter, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Publish everything, and load it in a fresh process that has diffusers and no package."""
    room, mirror = tmp_path_factory.mktemp("room"), tmp_path_factory.mktemp("mirror")
    (mirror / f"v{diffusers.__version__}").mkdir()
    shutil.copy(exported / "pipeline.py", mirror / f"v{diffusers.__version__}" / "pipeline_instantstyle.py")
    folders = {"someone/model": tiny.path(), "datasets/diffusers/community-pipelines-mirror": mirror}
    with connected(room, folders) as hub, gallery_of(exported):
        assert cli.main(["publish", "someone/instantstyle"]) == 0
        assert cli.main(["publish", "someone/tiny", "--checkpoint"]) == 0
        assert cli.main(["publish", "someone/mine", "--checkpoint", str(mine)]) == 0
        pipe = instantstyle.StableDiffusionXLInstantStyleImg2ImgPipeline.from_pretrained(tiny.path())
        pipe.push_to_hub("someone/pushed")
        pipe.save_pretrained(str(room / "local"), push_to_hub=True, repo_id="someone/saved")
        given = {"ADAPTER": adapter, "OWN_ADAPTER": OWN_ADAPTER, "IMG2IMG": IMG2IMG, "VARIANTS": VARIANTS}
        process = tmp_path_factory.mktemp("process")
        hub.unknown.clear()  # an upload may ask who uploads, and can do without an answer
        found = run(process, LOADING, given, [paint_reference, paint_modular], hub=hub.url)
        assert hub.unknown == []
        published = {name: files_in(one.folder) for name, one in hub.repositories.items()}
    return {**found, "published": published}


def test_what_is_exported_is_what_is_published(found: dict[str, Any], exported: Path, cards: dict[str, Path]) -> None:
    """Byte by byte, but for the repository's name in the card."""
    names = {"someone/instantstyle": exported, "someone/tiny": cards["tiny"], "someone/mine": cards["mine"]}
    for name, folder in names.items():
        expected = files_in(folder)
        for file in ("README.md", "modular_model_index.json"):
            expected[file] = expected[file].replace(b"someone/instantstyle", name.encode())
        assert found["published"][name] == expected


def test_the_embedded_checkpoint_is_published_whole(found: dict[str, Any]) -> None:
    """Every file of its parts, of its adapter and of its ControlNet is there as it is; its judges stay at home."""
    published, given = found["published"]["someone/tiny"], files_in(tiny.path())
    needed = {name: content for name, content in given.items() if name.startswith(tuple(f"{p}/" for p in TINY_PARTS))}
    assert given.keys() - needed.keys() == {"model_index.json", "judges.safetensors"}
    assert {name: published.get(name) for name in needed} == needed
    assert published.keys() == needed.keys() | PLUGIN_FILES | {"model_index.json"}


def local(variant: str, host: str = "stable_diffusion_xl") -> np.ndarray:
    """Paint with the class of the package in this process."""
    cls = getattr(instantstyle, variant, None) or getattr(diffusers, variant)
    return paint_reference(cls.from_pretrained(tiny.path()), (str(tiny.path()), *OWN_ADAPTER[1:]), host)


@pytest.mark.parametrize("ways", [("plugin", "checkpoint", "mirror"), ("name", "code", "pushed", "saved")])
def test_what_is_published_paints_as_the_package(ways: tuple[str, ...], found: dict[str, Any]) -> None:
    """The same pixels as the installed package, and not those of the host, whose adapter is on all blocks."""
    suffix, host = ("", "stable_diffusion_xl") if "plugin" in ways else ("Img2Img", "stable_diffusion_xl_img2img")
    right = local(f"StableDiffusionXLInstantStyle{suffix}Pipeline", host)
    wrong = local(f"StableDiffusionXL{suffix}Pipeline", host)
    for way in ways:
        assert np.abs(found[way] - right).max() <= TOLERANCE, way
        assert np.abs(found[way] - wrong).max() >= TWIN, way


def test_a_users_checkpoint_paints_as_before(found: dict[str, Any], mine: Path, adapter: Adapter) -> None:
    """The user's own weights are loaded, by the variant of their family."""
    right, wrong = (
        paint_reference(cls.from_pretrained(mine), adapter, "stable_diffusion")
        for cls in (instantstyle.StableDiffusionInstantStylePipeline, diffusers.StableDiffusionPipeline)
    )
    assert np.abs(found["mine"] - right).max() <= TOLERANCE
    assert np.abs(found["mine"] - wrong).max() >= TWIN


@pytest.mark.parametrize("way", ["modular instantstyle", "modular tiny", "modular index", "modular step"])
def test_published_blocks_paint_as_the_package(way: str, found: dict[str, Any]) -> None:
    """All blocks of the plugin and of a checkpoint, and the step in the host's: what the classic variant paints."""
    right, wrong = local("StableDiffusionXLInstantStylePipeline"), local("StableDiffusionXLPipeline")
    assert np.abs(found[way] - right).max() <= 10 * TOLERANCE  # the guider runs the halves of guidance by themselves
    assert np.abs(found[way] - wrong).max() >= TWIN


def test_a_repository_of_the_plugin_alone_makes_a_pipeline_of_its_blocks(found: dict[str, Any]) -> None:
    """Its components are the base model's; they are not loaded yet."""
    assert found["plain index"].tolist() == ["InstantStyleXLBlocks", "True"]
    index = json.loads(found["published"]["someone/instantstyle"]["modular_model_index.json"])
    places = {
        name: value[2]["pretrained_model_name_or_path"] for name, value in index.items() if isinstance(value, list)
    }
    assert {name for name, place in places.items() if place} == {*PARTS} - {"feature_extractor", "image_encoder"}
    assert {place for place in places.values() if place} == {"stabilityai/stable-diffusion-xl-base-1.0"}


# ---------------------------------------------------------------------------------------------------------------------
# The card's code
# ---------------------------------------------------------------------------------------------------------------------

KINDS = [
    HOSTS["stable_diffusion_img2img"],
    HOSTS["stable_diffusion_controlnet_inpaint"],
    OTHER_HOSTS["stable_diffusion_xl_controlnet_union"],
]
EVERYWHERE = {", dtype=torch.float16": "", "    dtype=torch.float16,\n": "", "cuda": "cpu", "_steps=30": "_steps=2"}

RUNNING = """
    import re

    def fails(code, names):
        try:
            exec(code, names)
        except Exception:
            return True

    for kind, blocks in CARDS.items():
        names = {}
        exec(blocks[0], names)
        found[kind] = np.array(type(names["pipe"]).__name__)
        found[kind + " images"] = np.asarray(names["images"])
        bare = re.sub("^    (image|mask_image|control_image|control_mode)=.*\\n", "", blocks[0], flags=re.M)
        found[kind + " needs more"] = np.array(bare != blocks[0] and fails(bare, names))
        exec(blocks[1], names)
        found[kind + " other"] = np.array(type(names["pipe"]).__name__)
        if not found[kind + " needs more"]:
            exec(blocks[2], names)
            found[kind + " modular"] = np.asarray(names["images"])
"""


@pytest.fixture(scope="module")
def ran(exported: Path, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Publish one checkpoint of every kind, and plugin and checkpoint on a branch; run their cards as visitors do."""
    room, models = tmp_path_factory.mktemp("room"), tmp_path_factory.mktemp("models")
    folders = {"stabilityai/stable-diffusion-xl-base-1.0": tiny.path(), "h94/IP-Adapter": tiny.path()}
    with connected(room, folders) as hub, gallery_of(exported, SIDE):
        assert cli.main(["publish", "someone/plugin", "--revision", "next-revision"]) == 0
        assert cli.main(["publish", "someone/weights", "--revision", "next", "--checkpoint"]) == 0
        assert files_in(hub.repositories["someone/plugin"].folder) == {}
        for host in KINDS:
            make(host).save_pretrained(models / host.name)
            write_adapter(models / host.name, host.family)
            assert cli.main(["publish", f"someone/{host.name}", "--checkpoint", str(models / host.name)]) == 0
        cards = {
            name.removeprefix("someone/"): hurried((one.folder / "README.md").read_text())
            for name, one in hub.repositories.items()
            if name.startswith("someone/") and one.paths()
        }
        return run(tmp_path_factory.mktemp("process"), RUNNING, {"CARDS": cards}, hub=hub.url)


def hurried(card: str) -> list[str]:
    """Return the code of a card, for any machine and in two steps."""
    for there, here in EVERYWHERE.items():
        card = card.replace(there, here)
    return code_of(card)


def test_the_code_of_the_card_runs_for_every_kind_of_checkpoint(ran: dict[str, Any]) -> None:
    """By the class that was published, with its weights, and with nothing in the call that it could do without."""
    for host in KINDS:
        assert str(ran[host.name]) == with_instantstyle(host.cls).__name__
        assert ran[f"{host.name} needs more"]
        assert np.ptp(ran[f"{host.name} images"]) > 0


def test_the_code_of_the_card_loads_the_branch_that_it_is_on(ran: dict[str, Any]) -> None:
    """On a branch of a repository that has nothing on `main`."""
    for name in ("plugin@next-revision", "weights@next"):
        assert str(ran[name]) == "StableDiffusionXLInstantStylePipeline"
        assert str(ran[f"{name} other"]) == "StableDiffusionXLInstantStyleImg2ImgPipeline"
        assert ran[f"{name} images"].shape == ran[f"{name} modular"].shape == (1, 64, 64, 3)


TASKS = {
    diffusers.StableDiffusionXLPAGPipeline: ("text-to-image", "images"),
    diffusers.StableDiffusionXLInpaintPipeline: ("image-to-image", "images"),
    diffusers.StableDiffusionXLControlNetUnionPipeline: ("image-to-image", "images"),
    diffusers.AnimateDiffPipeline: ("text-to-video", "frames"),
    diffusers.AnimateDiffVideoToVideoPipeline: ("video-to-video", "frames"),
}


@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.__name__)
def test_the_card_tells_what_a_checkpoint_is_for(cls: type[DiffusionPipeline], tmp_path: Path) -> None:
    card, embedded = tmp_path / "README.md", checkpoint.find_checkpoint("tiny")
    write_card(card, "someone/model", None, {}, [], replace(embedded, folder=tmp_path, host=cls))
    loaded = ModelCard.load(card)
    task, made = TASKS[cls]
    assert loaded.data.pipeline_tag == task
    assert f"\n).{made}\n" in code_of(loaded.text)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The Hub's ways
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Start an empty Hub, for repositories of three files."""

    def write(folder: Path, repo_id: str, *_: Any) -> None:
        (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n{repo_id}\n")
        for name in ("first.png", "second.png"):
            (folder / name).write_bytes(name.encode())

    monkeypatch.setattr(upload, "write_repository", write)
    with connected(tmp_path_factory.mktemp("room"), {}) as hub:
        yield hub


def uploads(hub: Hub) -> list[str]:
    """Return what was asked of the Hub that costs its user time, and forget all."""
    asked = [one for one in hub.asked if one.startswith("PUT") or "/commit/" in one]
    hub.asked.clear()
    return [one.partition("/lfs")[0] for one in asked]


def test_what_is_there_is_not_uploaded_again(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither after an upload that broke off, nor after one that did not; what changed is."""
    words = ["publish", "someone/new"]
    commit = "POST /api/models/someone/new/commit/main"
    hub.refusing[commit] = 500
    assert cli.main(words) == 2
    assert uploads(hub) == ["PUT ", "PUT ", commit]
    hub.refusing.clear()
    assert cli.main(words) == 0
    assert uploads(hub) == [commit]
    url = capsys.readouterr().out
    assert url.startswith(f"{hub.url}/someone/new/commit/")
    assert cli.main(words) == 0
    assert uploads(hub) == []
    assert capsys.readouterr().out == url
    (hub.repositories["someone/new"].folder / "README.md").write_text("edited")
    assert cli.main(words) == 0
    assert uploads(hub) == [commit]


def test_a_dry_run_lists_what_would_be_published(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the network and without a token; the same words without it publish what it listed."""
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main(["publish", "someone/new", "--dry-run"]) == 0
    assert (hub.asked, hub.repositories) == ([], {})
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main(["publish", "someone/new"]) == 0
    published = files_in(hub.repositories["someone/new"].folder)
    sizes = {name: f"{len(content) / 1e3:,.1f} kB" for name, content in published.items()}
    assert [line.split(maxsplit=1) for line in lines[:-1]] == [[name, size] for name, size in sorted(sizes.items())]
    assert lines[-1].split() == ["3", "files", f"{sum(map(len, published.values())) / 1e3:,.1f}", "kB"]


def test_weights_go_up_from_where_they_are(mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are neither copied nor linked to; what is written for the repository is beside them, under its own name."""
    taken: dict[str, Path] = {}

    def taking(files: Mapping[str, Path], *_: Any) -> str:
        taken.update(files)
        return ""

    def write_gallery(folder: Path, bars: bool) -> list[Any]:
        assert not list(folder.rglob("*.safetensors"))
        return []

    monkeypatch.setattr(upload, "upload", taking)
    monkeypatch.setattr(repository, "write_gallery", write_gallery)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main(["publish", "someone/mine", "--checkpoint", str(mine)]) == 0
    name = "unet/diffusion_pytorch_model.safetensors"
    assert taken[name] == mine / name
    assert taken["LICENSE.md"] == mine / "LICENSE.md"
    assert mine not in taken["model_index.json"].parents


def test_private_means_private(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A new repository is private from the start; one that is public already gets nothing."""
    assert cli.main(["publish", "someone/secret", "--private"]) == 0
    assert cli.main(["publish", "someone/secret", "--private"]) == 0
    assert hub.repositories["someone/secret"].private
    assert cli.main(["publish", "someone/open"]) == 0
    assert not hub.repositories["someone/open"].private
    (hub.repositories["someone/open"].folder / "README.md").write_text("edited")
    uploads(hub)
    assert cli.main(["publish", "someone/open", "--private"]) == 2
    assert "--private: someone/open is there already, and public" in capsys.readouterr().err
    assert uploads(hub) == []


def test_a_branch_is_made_once_and_main_is_left_alone(hub: Hub) -> None:
    """Publishing to a branch again is as good as the first time."""
    for _ in range(2):
        assert cli.main(["publish", "someone/new", "--revision", "next"]) == 0
    assert files_in(hub.repositories["someone/new"].folder) == {}
    assert files_in(hub.repositories["someone/new@next"].folder).keys() == {"README.md", "first.png", "second.png"}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ("POST /api/repos/create", 401, "the token is not valid"),
        ("POST /api/repos/create", 403, "the token may not write there"),
        ("POST /api/models/someone/new/preupload", 404, "there is no such owner or branch"),
        ("POST /api/models/someone/new/commit", 409, "it is being changed at this moment"),
        ("POST /api/models/someone/new/commit", 418, "the Hub answers 418"),
        ("POST /api/models/someone/new/branch", 400, "the Hub answers 400"),
        ("PUT /lfs", 403, "the token may not write there"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    request_: str, status: int, message: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason, and without the token, which this Hub quotes."""
    words = ["publish", "someone/new", "--revision", "next"]
    hub.refusing[request_] = status
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    said = captured.err.splitlines()
    assert said[-1].startswith(f"instantstyle: error: REPO_ID: someone/new: {message}")
    assert str(status) in said[-1]
    assert captured.out == ""
    assert TOKEN not in captured.err
    hub.refusing.clear()
    assert cli.main(words) == 0


def test_where_xet_does_not_get_through(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Large files go through Xet where `hf_xet` is installed. What it says is told too, and it can be switched off."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    hub.refusing["GET /api/models/someone/new/xet-write-token"] = 403
    assert cli.main(["publish", "someone/new"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("instantstyle: error: REPO_ID: someone/new: the Hub cannot be reached")
    assert "403" in said and "HF_HUB_DISABLE_XET" in said and TOKEN not in said
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    assert cli.main(["publish", "someone/new"]) == 0


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["someone/new"], None, "no token to publish with: log in with `hf auth login`, or set HF_TOKEN."),
        (["someone/new"], "hf_another", "REPO_ID: someone/new: the token is not valid"),
        (["someone/new"], "hf_a b", "the token holds characters that no token has"),
        (["new"], TOKEN, "REPO_ID: expected OWNER/NAME, got 'new'."),
        (["a/b/c"], TOKEN, "REPO_ID: "),
        (["someone/n\tw"], TOKEN, "REPO_ID: "),
        (["someone/new", "--checkpoint", "nowhere"], TOKEN, "--checkpoint: nowhere has no model_index.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    words: list[str],
    token: str | None,
    message: str,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line that does not show the token."""
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / name))
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert cli.main(["publish", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"instantstyle: error: {message}")
    assert (captured.out, captured.err.count("\n"), hub.repositories) == ("", 1, {})
    assert token is None or token not in captured.err


def test_python_is_told_its_own_arguments(tmp_path: Path) -> None:
    """In the words of a call, before anything is made."""
    (tmp_path / "file").write_text("mine")
    for call, message in (
        (lambda: export(tmp_path), "`folder`: .* is there already"),
        (lambda: find_checkpoint("nowhere"), "`checkpoint`: nowhere has no model_index.json"),
        (lambda: publish("new"), "`repo_id`: expected OWNER/NAME, got 'new'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_the_network(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A Hub that cannot be reached, and one that must not be."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["publish", "someone/new"]) == 2
    assert "REPO_ID: someone/new: the Hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert cli.main(["publish", "someone/new"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err

"""The six ways to load the plugin, each in a fresh process that sees only the files that this way needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from hosts import HOSTS, components, make, picture, pixels, write_adapter, write_checkpoint
from hub import serve
from processes import PLUGIN, ROOT, TOLERANCE, TWIN, Adapter, paint_reference, run
from safetensors.torch import save_file

from instantstyle import StableDiffusionXLInstantStyleImg2ImgPipeline, StableDiffusionXLInstantStylePipeline
from instantstyle.version import installed


# ---------------------------------------------------------------------------------------------------------------------
# What is loaded, and what should come out
# ---------------------------------------------------------------------------------------------------------------------


def paint(pipe: DiffusionPipeline, adapter: Adapter, host: str = "stable_diffusion_xl") -> np.ndarray:
    """Load the adapter and paint in the style of a picture, less what it shows."""
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(*adapter)
    return pixels(pipe, **HOSTS[host].inputs(), ip_adapter_image=picture(1), neg_content_prompt="a rabbit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of stock SDXL."""
    return Path(write_checkpoint(tmp_path_factory.mktemp("model"), "sdxl"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Write an adapter."""
    return write_adapter(tmp_path_factory.mktemp("adapter"), "sdxl")


@pytest.fixture(scope="module")
def right(model: Path, adapter: Adapter) -> np.ndarray:
    """Paint with the class of the package in this process."""
    return paint(StableDiffusionXLInstantStylePipeline.from_pretrained(model), adapter)


@pytest.fixture(scope="module")
def wrong(model: Path, adapter: Adapter) -> np.ndarray:
    """Paint with the stock class in this process."""
    return paint_reference(StableDiffusionXLPipeline.from_pretrained(model), adapter)


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the UNet into one file."""
    file = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(components("sdxl")["unet"].state_dict(), file)
    return file


def without_unet(model: Path, copy: Path) -> Path:
    """Copy a checkpoint without the weights of its UNet, which can then come from a single file only."""
    shutil.copytree(model, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return copy


def install(folder: Path) -> Path:
    """Install the package as pip does: the plugin file and the package, and nothing else of the checkout."""
    shutil.copytree(ROOT / "instantstyle", folder / "instantstyle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PLUGIN, folder)
    return folder


def copy_plugin(file: Path) -> Path:
    """Copy the plugin file to another place and name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(PLUGIN, file))


def same(found: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> None:
    """Check that pixels are the right ones, within a tolerance that shows the wrong ones."""
    assert found.shape == right.shape == wrong.shape
    assert np.abs(found - right).max() <= TOLERANCE
    assert np.abs(found - wrong).max() >= TWIN


# ---------------------------------------------------------------------------------------------------------------------
# Six ways
# ---------------------------------------------------------------------------------------------------------------------


def test_installed_package(
    model: Path, adapter: Adapter, single_file: Path, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """The class of the installed package loads a checkpoint, a single file, and what a stock pipeline holds."""
    script = """
        import instantstyle
        from diffusers import StableDiffusionXLPipeline
        from instantstyle import StableDiffusionXLInstantStylePipeline

        def check(way, pipe):
            assert type(pipe) is StableDiffusionXLInstantStylePipeline
            found[way] = paint(pipe, ADAPTER)

        assert instantstyle.__file__.startswith(PATH[0])
        check("from_pretrained", StableDiffusionXLInstantStylePipeline.from_pretrained(MODEL))
        stock = StableDiffusionXLPipeline.from_pretrained(MODEL)
        check("from_pipe", StableDiffusionXLInstantStylePipeline.from_pipe(stock))
        others = {name: getattr(stock, name) for name in ("vae", "text_encoder", "text_encoder_2")}
        pipe = StableDiffusionXLInstantStylePipeline.from_single_file(SINGLE_FILE, config=CONFIG, **others)
        check("from_single_file", pipe)
    """
    config = without_unet(model, tmp_path / "config")
    given = {"MODEL": model, "ADAPTER": adapter, "SINGLE_FILE": single_file, "CONFIG": config}
    found = run(tmp_path, script, given, [paint], installed=install(tmp_path / "site-packages"))
    for way in ("from_pretrained", "from_pipe", "from_single_file"):
        same(found[way], right, wrong)


def test_the_file_stands_alone(
    model: Path, adapter: Adapter, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """The file is enough where the package cannot be imported: for a checkpoint, and for what a pipeline holds."""
    script = """
        from importlib import import_module
        from diffusers import StableDiffusionXLPipeline

        def refused(error, function, *args, **kwargs):
            try:
                function(*args, **kwargs)
            except error:
                return True

        assert all(refused(ModuleNotFoundError, import_module, name) for name in HIDDEN)
        if ASKS_FOR_TRUST:
            assert refused(ValueError, DiffusionPipeline.from_pretrained, MODEL, custom_pipeline=FILE)
        how = {"custom_pipeline": FILE} | ({"trust_remote_code": True} if ASKS_FOR_TRUST else {})
        stock = StableDiffusionXLPipeline.from_pretrained(MODEL)
        ways = {
            "from_pretrained": DiffusionPipeline.from_pretrained(MODEL, **how),
            "from_pipe": DiffusionPipeline.from_pipe(stock, **how),
        }
        for way, pipe in ways.items():
            assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
            found[way] = paint(pipe, ADAPTER)
            pipe.unload_ip_adapter()
    """
    file = copy_plugin(tmp_path / "alone" / "pipeline_instantstyle.py")
    asks = installed("diffusers") >= (0, 38)
    given = {"MODEL": model, "ADAPTER": adapter, "FILE": file, "ASKS_FOR_TRUST": asks}
    found = run(tmp_path, script, given, [paint])
    same(found["from_pretrained"], right, wrong)
    same(found["from_pipe"], right, wrong)


def test_name_from_a_checkout(
    model: Path, adapter: Adapter, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """In a checkout the name is enough."""
    script = """
        pipe = DiffusionPipeline.from_pretrained(MODEL, custom_pipeline="instantstyle", trust_remote_code=True)
        assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
        found["pixels"] = paint(pipe, ADAPTER)
    """
    found = run(tmp_path, script, {"MODEL": model, "ADAPTER": adapter}, [paint], checkout=ROOT)
    same(found["pixels"], right, wrong)


def test_name_in_the_checkpoint(
    model: Path, adapter: Adapter, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """A checkpoint that carries the file under the name is enough; so is one that names file and class itself."""
    script = """
        named = DiffusionPipeline.from_pretrained(CARRYING, custom_pipeline="instantstyle", trust_remote_code=True)
        naming = DiffusionPipeline.from_pretrained(NAMING, trust_remote_code=True)
        for name, pipe in {"carrying": named, "naming": naming}.items():
            assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
            found[name] = paint(pipe, ADAPTER)
    """
    carrying, naming = Path(shutil.copytree(model, tmp_path / "carrying")), tmp_path / "naming"
    copy_plugin(carrying / "instantstyle.py")
    StableDiffusionXLInstantStylePipeline.from_pretrained(model).save_pretrained(naming)
    given = {"CARRYING": carrying, "NAMING": naming, "ADAPTER": adapter}
    found = run(tmp_path / "process", script, given, [paint])
    same(found["carrying"], right, wrong)
    same(found["naming"], right, wrong)


def test_from_the_hub(model: Path, adapter: Adapter, right: np.ndarray, wrong: np.ndarray, tmp_path: Path) -> None:
    """A repository with the plugin is enough; so is that of a saved variant, whose code is in two files."""
    script = """
        pipe = DiffusionPipeline.from_pretrained(
            "someone/model", custom_pipeline="someone/instantstyle", trust_remote_code=True
        )
        assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
        found["plugin"] = paint(pipe, ("someone/adapter", *ADAPTER[1:]))
        for offline in (False, True):
            pipe = DiffusionPipeline.from_pretrained(
                "someone/variant", trust_remote_code=True, local_files_only=offline
            )
            assert type(pipe).__name__ == "StableDiffusionXLInstantStyleImg2ImgPipeline"
            found["cached" if offline else "variant"] = paint(pipe, ADAPTER, "stable_diffusion_xl_img2img")
    """
    host = HOSTS["stable_diffusion_xl_img2img"]
    variant = make(host, StableDiffusionXLInstantStyleImg2ImgPipeline)
    variant.save_pretrained(tmp_path / "variant")
    repositories = {
        "someone/instantstyle": copy_plugin(tmp_path / "repository" / "pipeline.py").parent,
        "someone/model": model,
        "someone/variant": tmp_path / "variant",
        "someone/adapter": Path(adapter[0]),
    }
    with serve(repositories) as hub:
        found = run(tmp_path / "process", script, {"ADAPTER": adapter}, [paint], hub=hub.url)
    assert hub.unknown == []
    same(found["plugin"], right, wrong)
    expected = paint(variant, adapter, host.name)
    broken = paint_reference(make(host, StableDiffusionXLImg2ImgPipeline), adapter, host.name)
    same(found["variant"], expected, broken)
    same(found["cached"], expected, broken)


def test_from_the_community_mirror(
    model: Path, adapter: Adapter, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """The name of a file in the community's mirror is enough: in this version of diffusers, or in another."""
    script = """
        from diffusers.utils import dynamic_modules_utils

        dynamic_modules_utils.get_diffusers_versions = lambda: ["0.1.0", VERSION]
        for revision in (None, "main"):
            pipe = DiffusionPipeline.from_pretrained(
                MODEL, custom_pipeline="instantstyle_of_the_community", custom_revision=revision
            )
            assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
            found[str(revision)] = paint(pipe, ADAPTER)
    """
    version = diffusers.__version__.partition(".dev")[0]
    files = [f"{folder}/instantstyle_of_the_community.py" for folder in (f"v{version}", "main")]
    for file in files:
        copy_plugin(tmp_path / "mirror" / file)
    given = {"MODEL": model, "ADAPTER": adapter, "VERSION": version}
    with serve({"datasets/diffusers/community-pipelines-mirror": tmp_path / "mirror"}) as hub:
        found = run(tmp_path / "process", script, given, [paint], hub=hub.url)
    assert hub.unknown == []
    same(found["None"], right, wrong)
    same(found["main"], right, wrong)
    for file in files:
        assert f"HEAD /datasets/diffusers/community-pipelines-mirror/resolve/main/{file}" in hub.asked

"""The six ways to load the plugin, each in a fresh process that sees only the files that this way needs."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from hosts import HOSTS, components, make, picture, pixels, write_adapter, write_checkpoint
from hub import serve
from safetensors.torch import save_file

from instantstyle import StableDiffusionXLInstantStyleImg2ImgPipeline, StableDiffusionXLInstantStylePipeline


TESTS = Path(__file__).parent
ROOT = TESTS.parent
PLUGIN = ROOT / "pipeline_instantstyle.py"
TOLERANCE, TWIN = 1e-5, 1e-3
HUB_VARIABLES = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "XDG_CACHE_HOME")

# What every process starts with. Refusing an import hides the package however it is installed.
PRELUDE = """
import sys

class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
sys.path[:0] = {path}

import numpy as np
from diffusers import DiffusionPipeline
from hosts import HOSTS, picture, pixels

{paint}
"""


def paint(pipe: DiffusionPipeline, host: str, adapter: tuple[str, str, str]) -> np.ndarray:
    """Load the adapter and paint in the style of a picture, less what it shows."""
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(*adapter)
    settings = {"ip_adapter_image": picture(1), "neg_content_prompt": "a rabbit"}
    return pixels(pipe, **HOSTS[host].inputs(), **settings)


def run(
    home: Path, script: str, *, visible: Path | None = None, checkout: Path | None = None, hub: str | None = None
) -> dict[str, np.ndarray]:
    """Run a script in a fresh process and return the arrays that it puts into `found`.

    Args:
        home: an empty folder for the caches.
        script: what to run after the prelude.
        visible: where the package is installed; without it, and outside of a checkout, it cannot be imported.
        checkout: the working folder, from which the process imports; an empty one by default.
        hub: the address of the Hub; by default the process is offline.
    """
    hidden = () if visible or checkout else ("instantstyle", "pipeline_instantstyle")
    path = [str(folder) for folder in (visible, TESTS) if folder]
    prelude = PRELUDE.format(
        hidden=hidden, path=path, paint=inspect.getsource(paint).replace("DiffusionPipeline", "object")
    )
    lines = (prelude, "found = {}", inspect.cleandoc(script), f"np.savez({str(home / 'found.npz')!r}, **found)")
    (home / "empty").mkdir(parents=True)
    isolated = ["-s"] if checkout else ["-I"]
    done = subprocess.run(
        [sys.executable, *isolated, "-c", "\n".join(lines)],
        cwd=checkout or home / "empty",
        env=environment(home, hub),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with np.load(home / "found.npz") as found:
        return dict(found)


def environment(home: Path, hub: str | None) -> dict[str, str]:
    """Return the variables for a process with caches of its own, one Hub or none, and nothing to import from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*HUB_VARIABLES, "PYTHON"))}
    caches = {"HF_HOME": str(home / "huggingface"), "HF_MODULES_CACHE": str(home / "modules")}
    network = {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub, "NO_PROXY": "127.0.0.1"}
    return {**kept, **caches, **network, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


# ---------------------------------------------------------------------------------------------------------------------
# What is loaded, and what should come out
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of stock SDXL."""
    return Path(write_checkpoint(tmp_path_factory.mktemp("model"), "sdxl"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Write an adapter."""
    return write_adapter(tmp_path_factory.mktemp("adapter"), "sdxl")


@pytest.fixture(scope="module")
def right(model: Path, adapter: tuple[str, str, str]) -> np.ndarray:
    """Paint with the class of the package in this process."""
    return paint(StableDiffusionXLInstantStylePipeline.from_pretrained(model), "stable_diffusion_xl", adapter)


@pytest.fixture(scope="module")
def wrong(model: Path, adapter: tuple[str, str, str]) -> np.ndarray:
    """Paint with the stock class: every block sees the reference, and its content stays."""
    pipe = StableDiffusionXLPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(*adapter)
    return pixels(pipe, **HOSTS["stable_diffusion_xl"].inputs(), ip_adapter_image=picture(1))


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write UNet and VAE into one file; the loader takes their weights from it and the rest from `config`."""
    parts = components("sdxl")
    states = [parts[name].state_dict() for name in ("unet", "vae")]
    file = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file({key: tensor.contiguous() for state in states for key, tensor in state.items()}, file)
    return file


def installed(home: Path) -> Path:
    """Install the package as pip does: the plugin file and the package, and nothing else of the checkout."""
    shutil.copytree(ROOT / "instantstyle", home / "instantstyle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PLUGIN, home)
    return home


def folder_with(folder: Path, **files: Path) -> Path:
    """Make a folder that holds copies of Python files under new names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        shutil.copy(file, folder / f"{name}.py")
    return folder


def same(found: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> None:
    """Check that pixels are the right ones, on a tolerance that would show the wrong ones."""
    assert found.shape == right.shape == wrong.shape
    assert np.abs(found - right).max() <= TOLERANCE
    assert np.abs(found - wrong).max() >= TWIN


# ---------------------------------------------------------------------------------------------------------------------
# Six ways
# ---------------------------------------------------------------------------------------------------------------------


def test_installed_package(
    model: Path, adapter: tuple, single_file: Path, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """The class of the installed package loads a checkpoint, a single file, and what a stock pipeline holds."""
    bare = without_weights(model, tmp_path / "bare")
    script = f"""
        import instantstyle
        from diffusers import StableDiffusionXLPipeline
        from instantstyle import StableDiffusionXLInstantStylePipeline
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        def check(way, pipe):
            assert type(pipe) is StableDiffusionXLInstantStylePipeline
            found[way] = paint(pipe, "stable_diffusion_xl", {adapter})

        assert instantstyle.__file__.startswith({str(tmp_path)!r})
        check("from_pretrained", StableDiffusionXLInstantStylePipeline.from_pretrained({str(model)!r}))
        check("from_pipe", StableDiffusionXLInstantStylePipeline.from_pipe(
            StableDiffusionXLPipeline.from_pretrained({str(model)!r})))
        encoders = {{
            "text_encoder": CLIPTextModel.from_pretrained({str(model)!r}, subfolder="text_encoder"),
            "text_encoder_2": CLIPTextModelWithProjection.from_pretrained({str(model)!r}, subfolder="text_encoder_2"),
        }}
        check("from_single_file", StableDiffusionXLInstantStylePipeline.from_single_file(
            {str(single_file)!r}, config={str(bare)!r}, **encoders))
    """
    found = run(tmp_path, script, visible=installed(tmp_path / "site-packages"))
    assert len(found) == 3
    for painted in found.values():
        same(painted, right, wrong)


def without_weights(model: Path, copy: Path) -> Path:
    """Copy a checkpoint without the weights of UNet and VAE, which can then come from a single file only."""
    shutil.copytree(model, copy)
    for name in ("unet", "vae"):
        (copy / name / "diffusion_pytorch_model.safetensors").unlink()
    return copy


def test_the_file_stands_alone(
    model: Path, adapter: tuple, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """The file alone is enough, with the package not importable: for a checkpoint, and for what a pipeline holds."""
    file = folder_with(tmp_path / "alone", pipeline_instantstyle=PLUGIN) / "pipeline_instantstyle.py"
    script = f"""
        from importlib import import_module
        from diffusers import StableDiffusionXLPipeline

        for name in ("instantstyle", "pipeline_instantstyle"):
            try:
                import_module(name)
            except ModuleNotFoundError:
                continue
            raise AssertionError(name + " can be imported")
        try:
            DiffusionPipeline.from_pretrained({str(model)!r}, custom_pipeline={str(file)!r})
        except ValueError as error:
            assert "trust_remote_code" in str(error)
        pipe = DiffusionPipeline.from_pretrained(
            {str(model)!r}, custom_pipeline={str(file)!r}, trust_remote_code=True)
        assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
        found["from_pretrained"] = paint(pipe, "stable_diffusion_xl", {adapter})
        pipe = DiffusionPipeline.from_pipe(
            StableDiffusionXLPipeline.from_pretrained({str(model)!r}),
            custom_pipeline={str(file)!r}, trust_remote_code=True)
        assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
        found["from_pipe"] = paint(pipe, "stable_diffusion_xl", {adapter})
    """
    found = run(tmp_path, script)
    same(found["from_pretrained"], right, wrong)
    same(found["from_pipe"], right, wrong)


def test_name_from_a_checkout(
    model: Path, adapter: tuple, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """In a checkout the name is enough."""
    script = f"""
        pipe = DiffusionPipeline.from_pretrained(
            {str(model)!r}, custom_pipeline="instantstyle", trust_remote_code=True)
        assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
        found["pixels"] = paint(pipe, "stable_diffusion_xl", {adapter})
    """
    same(run(tmp_path, script, checkout=ROOT)["pixels"], right, wrong)


def test_name_in_the_checkpoint(
    model: Path, adapter: tuple, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """A checkpoint that carries the file under the name is enough; so is one that names file and class itself."""
    carrying = shutil.copytree(model, tmp_path / "carrying")
    folder_with(carrying, instantstyle=PLUGIN)
    naming = tmp_path / "naming"
    StableDiffusionXLInstantStylePipeline.from_pretrained(model).save_pretrained(naming)
    script = f"""
        def check(name, **how):
            pipe = DiffusionPipeline.from_pretrained({str(tmp_path)!r} + "/" + name, trust_remote_code=True, **how)
            assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
            found[name] = paint(pipe, "stable_diffusion_xl", {adapter})

        check("carrying", custom_pipeline="instantstyle")
        check("naming")
    """
    found = run(tmp_path / "process", script)
    same(found["carrying"], right, wrong)
    same(found["naming"], right, wrong)


def test_from_the_hub(model: Path, adapter: tuple, right: np.ndarray, wrong: np.ndarray, tmp_path: Path) -> None:
    """A repository with the plugin is enough; so is a saved variant's, with its code in two files, also offline later."""
    host = HOSTS["stable_diffusion_xl_img2img"]
    variant = make(host, StableDiffusionXLInstantStyleImg2ImgPipeline)
    variant.save_pretrained(tmp_path / "variant")
    folders = {
        "someone/instantstyle": folder_with(tmp_path / "repository", pipeline=PLUGIN),
        "someone/model": model,
        "someone/variant": tmp_path / "variant",
        "someone/adapter": Path(adapter[0]),
    }
    script = f"""
        pipe = DiffusionPipeline.from_pretrained(
            "someone/model", custom_pipeline="someone/instantstyle", trust_remote_code=True)
        assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
        found["repository"] = paint(pipe, "stable_diffusion_xl", ("someone/adapter", *{adapter[1:]}))
        for offline in (False, True):
            pipe = DiffusionPipeline.from_pretrained(
                "someone/variant", trust_remote_code=True, local_files_only=offline)
            assert type(pipe).__name__ == "StableDiffusionXLInstantStyleImg2ImgPipeline"
            found[f"variant, offline={{offline}}"] = paint(pipe, "stable_diffusion_xl_img2img", {adapter})
    """
    with serve(folders) as hub:
        found = run(tmp_path / "process", script, hub=hub.url)
    assert hub.unknown == []
    same(found["repository"], right, wrong)
    assert any(path.startswith("GET /someone/instantstyle/resolve/") for path in hub.asked)
    expected = paint(variant, host.name, adapter)
    stock = make(host, StableDiffusionXLImg2ImgPipeline)
    stock.load_ip_adapter(*adapter)
    broken = pixels(stock, **host.inputs(), ip_adapter_image=picture(1))
    same(found["variant, offline=False"], expected, broken)
    same(found["variant, offline=True"], expected, broken)


def test_from_the_community_mirror(
    model: Path, adapter: tuple, right: np.ndarray, wrong: np.ndarray, tmp_path: Path
) -> None:
    """The name of a file in the community's mirror is enough: this version's of diffusers, or `custom_revision`'s."""
    version = f"v{diffusers.__version__.partition('.dev')[0]}"
    for folder in (version, "main"):
        folder_with(tmp_path / "mirror" / folder, instantstyle_of_the_community=PLUGIN)
    script = f"""
        from diffusers.utils import dynamic_modules_utils

        dynamic_modules_utils.get_diffusers_versions = lambda: ["0.1.0", {version[1:]!r}]
        for revision in (None, "main"):
            pipe = DiffusionPipeline.from_pretrained(
                {str(model)!r}, custom_pipeline="instantstyle_of_the_community", custom_revision=revision,
                trust_remote_code=True)
            assert type(pipe).__name__ == "StableDiffusionXLInstantStylePipeline"
            found[str(revision)] = paint(pipe, "stable_diffusion_xl", {adapter})
    """
    with serve({"datasets/diffusers/community-pipelines-mirror": tmp_path / "mirror"}) as hub:
        found = run(tmp_path / "process", script, hub=hub.url)
    assert hub.unknown == []
    same(found["None"], right, wrong)
    same(found["main"], right, wrong)
    for folder in (version, "main"):
        assert any(path.endswith(f"/{folder}/instantstyle_of_the_community.py") for path in hub.asked)

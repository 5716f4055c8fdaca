"""The pages: every block runs, every link leads somewhere, every picture can be made again, and Sphinx builds them.

Blocks run as a reader's would who had downloaded small models under the real names: the cache of the Hub holds the
embedded checkpoint, and networks of SD1.5's shape for SD1.5. Only the machine (`HERE`) and the number of steps differ.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline, UNet2DConditionModel
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from diffusers.utils import dynamic_modules_utils
from hosts import HOSTS, adapter_state, content_encoder, write_adapter, write_checkpoint
from huggingface_hub import constants
from loras import LAYERS, kohya
from PIL import Image
from safetensors.torch import load_file, save_file
from unets import SD15_UNET, SDXL_UNET

import instantstyle
import pipeline_instantstyle
from instantstyle import tiny
from instantstyle.commands import cli
from instantstyle.core import attention_blocks, presets, resolve_target_blocks, text_layers


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", ROOT / "instantstyle" / "tiny" / "README.md", *sorted(DOCS.rglob("*.md")))
    if "_build" not in path.parts
}
MOST_NOT_RUN = 8

HERE = {"torch.float16": "torch.float32", '"cuda"': '"cpu"'}
STEPS = 2


# ---------------------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------------------

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+?) -->\n+)?```(?P<language>python|sh)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: the line before its code, and the reason where it is not run."""

    line: int
    language: str
    code: str
    reason: str | None

    @property
    def is_ours(self) -> bool:
        """Whether it is Python or our commands, not how to set up."""
        return self.language == "python" or self.code.startswith("instantstyle ")


def read_blocks(text: str) -> list[Block]:
    """Find the blocks of Python and of our commands."""
    found = [
        Block(text.count("\n", 0, match.start("code")), match["language"], match["code"], match["reason"])
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if block.is_ours]


BLOCKS = {name: read_blocks(path.read_text(encoding="utf-8")) for name, path in PAGES.items()}


def run_blocks(blocks: list[Block], page: str) -> None:
    """Run a page's blocks in one namespace; a traceback shows the page's own line numbers."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if block.reason:
            continue
        if block.language == "sh":
            run_commands(block.code)
        else:
            code = block.code
            for there, here in HERE.items():
                code = code.replace(there, here)
            exec(compile("\n" * block.line + code, page, "exec"), names)


def run_commands(code: str) -> None:
    """Run lines of the command line in this process."""
    for line in code.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "instantstyle"
        assert cli.main(words) == 0, line


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a cache of the Hub with small models under real names."""
    made = tmp_path_factory.mktemp("models")
    repositories = {
        "stabilityai/stable-diffusion-xl-base-1.0": tiny.path(),
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": tiny.path(),
        "RunDiffusion/Juggernaut-XL-v9": tiny.path(),
        "diffusers/controlnet-canny-sdxl-1.0": tiny.path() / "controlnet",
        "h94/IP-Adapter": write_adapters(made / "adapters"),
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": made / "text",
        "stable-diffusion-v1-5/stable-diffusion-v1-5": Path(write_checkpoint(made / "sd15", "sd15")),
        "lllyasviel/control_v11p_sd15_canny": made / "controlnet",
        "stabilityai/sdxl-turbo": tiny.path(),
        "ByteDance/SDXL-Lightning": write_fast_weights(made / "fast"),
    }
    for part in content_encoder():
        part.save_pretrained(made / "text")
    HOSTS["stable_diffusion_controlnet"].components()["controlnet"].save_pretrained(made / "controlnet")
    folder, commit = tmp_path_factory.mktemp("hub"), "0" * 40
    for name, source in repositories.items():
        home = folder / f"models--{name.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit)
        (home / "snapshots").mkdir()
        (home / "snapshots" / commit).symlink_to(source, target_is_directory=True)
    return folder


def write_adapters(folder: Path) -> Path:
    """Write what is used of h94/IP-Adapter: the embedded adapter, one for ViT-H, and SD1.5's with ViT-H itself."""
    shutil.copytree(tiny.path() / "sdxl_models", folder / "sdxl_models")
    write_adapter(folder, "sd15")
    state = adapter_state("sd15", unet=UNet2DConditionModel.from_pretrained(tiny.path(), subfolder="unet"))
    tensors = {f"{part}.{key}": tensor for part, inside in state.items() for key, tensor in inside.items()}
    save_file(tensors, folder / "sdxl_models" / "ip-adapter_sdxl_vit-h.safetensors")
    return folder


def write_fast_weights(folder: Path) -> Path:
    """Write a LoRA and a UNet under the names of SDXL-Lightning."""
    folder.mkdir()
    unet = load_file(tiny.path() / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(kohya(unet, LAYERS), folder / "sdxl_lightning_4step_lora.safetensors")
    save_file(unet, folder / "sdxl_lightning_4step_unet.safetensors")
    return folder


@pytest.fixture
def reader(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where a reader does: in a folder with the examples, offline with a filled cache, and in a hurry."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr(Image.Image, "show", lambda picture: None)
    bind = pipeline_instantstyle.bind

    def hurry(*call: Any) -> dict[str, Any]:
        arguments = bind(*call)
        return {**arguments, "num_inference_steps": min(STEPS, arguments.get("num_inference_steps", STEPS))}

    monkeypatch.setattr(pipeline_instantstyle, "bind", hurry)
    call = ModularPipeline.__call__

    def hurry_modular(pipe: Any, *state: Any, **inputs: Any) -> Any:
        steps = {name: STEPS for name in inputs if name == "num_inference_steps"}
        return call(pipe, *state, **{**inputs, **steps})

    monkeypatch.setattr(ModularPipeline, "__call__", hurry_modular)
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if any(not b.reason for b in blocks)])
@pytest.mark.usefixtures("reader")
def test_every_block_of_a_page_runs(name: str) -> None:
    run_blocks(BLOCKS[name], name)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\npipe = 1 / 0\n```", ZeroDivisionError),
        ("```python\none = 1\n```\n\n```python\none + two\n```", NameError),
        ("```sh\ninstantstyle blocks --moddel tiny\n```", AssertionError),
        ("```sh\ninstantstyle blocks\nrm -r .\n```", AssertionError),
        ("<!-- not run: it could not -->\n```python\n1 / 0\n```", None),
        ("```sh\npython3 -m venv .venv\n```", None),
        ("```json\n[1]\n```", None),
    ],
)
def test_a_page_with_an_error_fails(block: str, error: type[Exception] | None) -> None:
    """Also where the page has other blocks before."""
    blocks = read_blocks(f"# Page\n\n```python\nfirst = 1\n```\n\nText.\n\n{block}\n")
    assert len(blocks) > 1 or error is None
    if error is None:
        run_blocks(blocks, "page.md")
    else:
        with pytest.raises(error):
            run_blocks(blocks, "page.md")


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    blocks = [block for found in BLOCKS.values() for block in found]
    reasons = [block.reason for block in blocks if block.reason]
    assert len(reasons) <= MOST_NOT_RUN < len(blocks) / 4
    assert all(len(reason.split()) > 2 for reason in reasons)
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    assert text.count("```python\n") == sum(block.language == "python" for block in blocks)  # none is overlooked
    assert text.count("<!-- not run") == len(reasons)


# ---------------------------------------------------------------------------------------------------------------------
# Links
# ---------------------------------------------------------------------------------------------------------------------


def broken_links(page: Path) -> list[str]:
    """Return the relative links and pictures of a page that lead nowhere, headings included."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in links if "://" not in link and not leads_somewhere(page, link)]


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether there is such a file, and in it such a heading."""
    file, _, heading = link.partition("#")
    target = page.parent / file if file else page
    return target.is_file() and (not heading or heading in headings(target))


def headings(page: Path) -> set[str]:
    """Return what a page's headings are linked by, as GitHub and MyST write it."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert broken_links(PAGES[name]) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page, first\n[a](page.md) [b](#a-page-first) [c](https://example.org) ![d](none.png) [e](other.md#x)\n"
        "[f](#second) `[[x]](y)`\n"
    )
    assert broken_links(page) == ["none.png", "other.md#x", "#second", "y"]


# ---------------------------------------------------------------------------------------------------------------------
# The tables of migration
# ---------------------------------------------------------------------------------------------------------------------

MIGRATION = (DOCS / "reference" / "migration.md").read_text(encoding="utf-8")

Convert = Callable[[Any, UNet2DConditionModel], dict[str, Any]]


def rows(heading: str) -> list[tuple[str, ...]]:
    """Return the rows of the table with this heading, without the backticks around their cells."""
    table = MIGRATION.split(f"| {heading} |")[1].split("\n\n")[0]
    lines = table.splitlines()[2:]
    return [tuple(cell.strip().strip("`") for cell in line.strip("| ").split(" | ")) for line in lines]


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    """Build the real UNets, without storage."""
    with torch.device("meta"):
        configs = {"SDXL": SDXL_UNET, "SD1.5": SD15_UNET}
        return {family: UNet2DConditionModel.from_config(config) for family, config in configs.items()}


def ours(target_blocks: str, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Return the layers and scales that our side of a row means."""
    return resolve_target_blocks(ast.literal_eval(target_blocks), text_layers(unet), presets(unet))


def by_letters(theirs: str, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Return what the first InstantStyle makes of a list: a layer is in if a name occurs anywhere in its name."""
    names = ast.literal_eval(theirs)
    return {layer: 1.0 for layer in text_layers(unet) if any(name in layer for name in names)}


def by_diffusers(theirs: str, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Return what diffusers itself makes of a scale or a dict of them."""
    (scales,) = _maybe_expand_lora_scales(unet, [ast.literal_eval(theirs)], default_scale=0.0)
    if not isinstance(scales, dict):
        return dict.fromkeys(text_layers(unet), scales)
    return {
        layer: scale
        for layer in text_layers(unet)
        for name, scale in scales.items()
        if layer.startswith(name) and scale
    }


def by_number(theirs: str, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Return what numbers of groups in the order of execution mean."""
    groups = attention_blocks(unet)
    order = sorted(groups, key=lambda name: ("down", "mid_", "up_b").index(name[:4]))
    return {layer: scale for number, scale in ast.literal_eval(theirs).items() for layer in groups[order[number]]}


TABLES: list[tuple[str, str, int, Convert]] = [
    ("SDXL", "their `target_blocks`, SDXL | here", 0, by_letters),
    ("SD1.5", "their `target_blocks`, SD1.5 | here", 0, by_letters),
    ("SDXL", "SDXL: `pipe.set_ip_adapter_scale(...)` | `pipe.set_target_blocks(...)`", 0, by_diffusers),
    ("SD1.5", "SD1.5: `pipe.set_ip_adapter_scale(...)` | `pipe.set_target_blocks(...)`", 0, by_diffusers),
    ("SDXL", "SDXL: `weight_type` | its layers at `weight` 1 | `target_blocks`", 1, by_number),
    ("SD1.5", "SD1.5: `weight_type` | its layers at `weight` 1 | `target_blocks`", 1, by_number),
    ("SDXL", "SDXL: `method` | its `target_blocks` | here", 1, by_letters),
    ("SD1.5", "SD1.5: `method` | its `target_blocks` | here", 1, by_letters),
]


@pytest.mark.parametrize(("family", "heading", "column", "convert"), TABLES, ids=[table[1] for table in TABLES])
def test_both_sides_of_a_table_mean_the_same(
    family: str, heading: str, column: int, convert: Convert, unets: dict[str, UNet2DConditionModel]
) -> None:
    """On the real UNets. No two rows mean the same, so that none would pass for another."""
    found = rows(heading)
    meant = [convert(row[column], unets[family]) for row in found]
    assert meant == [ours(row[-1], unets[family]) for row in found]
    assert all(meant[i] != meant[j] for i in range(len(meant)) for j in range(i))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    """Import the script that makes them."""
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def farthest(first: Path, second: Path) -> int:
    """Return how far two pictures are apart where they are farthest, of 255."""
    one, other = (np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in (first, second))
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def test_a_picture_comes_out_as_it_is_shown(pictures: ModuleType, tmp_path: Path, monkeypatch) -> None:
    """And from another seed it does not."""
    monkeypatch.chdir(ROOT)
    shown = pictures.IMAGES / "quickstart.png"
    assert farthest(pictures.make("quickstart.png", tmp_path), shown) <= pictures.TOLERANCE
    monkeypatch.setitem(pictures.COMMANDS, "quickstart.png", f"{pictures.ONE} --seed 1 --steps 4")
    assert farthest(pictures.make("quickstart.png", tmp_path), shown) > 8 * pictures.TOLERANCE


def test_the_script_makes_every_picture_by_a_command_that_a_page_shows(pictures: ModuleType) -> None:
    """And every picture is there, and on a page."""
    assert set(pictures.COMMANDS) <= {path.name for path in pictures.IMAGES.iterdir()}
    texts = [" ".join(path.read_text(encoding="utf-8").replace("\\\n", " ").split()) for path in DOCS.rglob("*.md")]
    for name, command in pictures.COMMANDS.items():
        assert any(f"instantstyle {command} -o " in text for text in texts), command
        assert any(f"images/{name})" in text for text in texts), name


# ---------------------------------------------------------------------------------------------------------------------
# The build
# ---------------------------------------------------------------------------------------------------------------------


# Sphinx and its extensions announce changes to each other.
between_extensions = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def build(source: Path, out: Path) -> int:
    """Build pages strictly, and return the exit code."""
    sphinx = pytest.importorskip("sphinx.cmd.build")
    return sphinx.build_main(["-W", "-n", "-q", "-b", "html", "-d", str(out / "doctrees"), str(source), str(out)])


@between_extensions
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """With a section for each command, and every public name."""
    assert build(DOCS, tmp_path) == 0
    commands = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f'id="instantstyle-{name}"' in commands for name in ("generate", "blocks", "probe", "evaluate"))
    api = (tmp_path / "reference" / "api.html").read_text(encoding="utf-8")
    assert [name for name in instantstyle.__all__ if f'id="instantstyle.{name}"' not in api] == []


@pytest.fixture
def small_docs(tmp_path: Path) -> Path:
    """Give the folder of one page with the settings of all."""
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(DOCS / "conf.py", folder)
    (folder / "index.md").write_text("# Page\n\n{py:class}`int`\n")
    return folder


@between_extensions
@pytest.mark.parametrize("line", ["", "[x](none.md)", "![x](none.png)", "{py:class}`instantstyle.Stile`"])
def test_a_page_that_refers_to_nothing_does_not_build(line: str, small_docs: Path, tmp_path: Path) -> None:
    with (small_docs / "index.md").open("a") as page:
        page.write(f"\n{line}\n")
    assert build(small_docs, tmp_path / "out") == (1 if line else 0)

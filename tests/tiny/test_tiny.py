"""The embedded checkpoint: its layout, its size, that stock diffusers runs it, and that it knows its words."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

from instantstyle import tiny
from instantstyle.core import attention_blocks
from instantstyle.inference.request import Machine
from instantstyle.inference.session import Session
from instantstyle.lab.conditions import NO_REFERENCE, PLAIN, STYLE, Condition
from instantstyle.lab.metrics import score
from instantstyle.lab.pairs import Pairs, sample_pairs
from instantstyle.lab.pictures import make_pictures
from instantstyle.tiny import networks, world
from instantstyle.tiny.judges import Judges


ROOT = Path(__file__).parents[2]
LAYOUT = """
controlnet/config.json controlnet/diffusion_pytorch_model.safetensors
judges.safetensors
model_index.json scheduler/scheduler_config.json
sdxl_models/image_encoder/config.json sdxl_models/image_encoder/model.safetensors
sdxl_models/image_encoder/preprocessor_config.json
sdxl_models/ip-adapter_sdxl.safetensors
text_encoder/config.json text_encoder/model.safetensors
text_encoder_2/config.json text_encoder_2/model.safetensors
tokenizer/merges.txt tokenizer/tokenizer.json tokenizer/tokenizer_config.json tokenizer/vocab.json
tokenizer_2/merges.txt tokenizer_2/tokenizer.json tokenizer_2/tokenizer_config.json tokenizer_2/vocab.json
unet/config.json unet/diffusion_pytorch_model.safetensors
vae/config.json vae/diffusion_pytorch_model.safetensors
""".split()


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny.path())
    pipe.load_ip_adapter(tiny.path(), subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawings(count: int = 64, seed: int = 123) -> tuple[world.Scenes, torch.Tensor]:
    scenes = world.sample(count, torch.Generator().manual_seed(seed))
    return scenes, world.draw(scenes)


def paint(pipe, prompt: str | list[str] = "a heart", seed: int = 0, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    arguments = {"num_inference_steps": 16, "guidance_scale": 3.5, "output_type": "pt", **kwargs}
    return pipe(prompt, generator=generator, **arguments).images


def test_layout_and_size():
    paths = [path for path in tiny.path().rglob("*") if path.is_file()]
    assert {path.relative_to(tiny.path()).as_posix() for path in paths} == set(LAYOUT)
    assert sum(path.stat().st_size for path in paths) < 20_000_000


@pytest.mark.parametrize("name", [name for name in LAYOUT if name.endswith(".safetensors")])
def test_all_weights_are_in_half_precision_and_finite(name):
    with safe_open(tiny.path() / name, "pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_everything_loads_in_float32_by_itself(pipe):
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 5
    assert {module.dtype for module in [*modules, ControlNetModel.from_pretrained(tiny.path() / "controlnet")]} == {
        torch.float32
    }


SOURCES = (
    "CHANGELOG.md CITATION.cff LICENSE MANIFEST.in README.md pipeline_instantstyle.py pyproject.toml setup.cfg".split()
)


@pytest.mark.parametrize("named", [True, False])
def test_the_wheel_carries_it(named, tmp_path):
    """Built elsewhere, as setuptools packs what earlier builds left; unnamed weights, card and modules are lacking."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "instantstyle", source / "instantstyle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "model_card", source / "model_card")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    if not named:
        (source / "MANIFEST.in").unlink()
        config = (source / "setup.cfg").read_text(encoding="utf-8")
        config = config.replace("    weights/", "    nothing/").replace("    README.md", "    nothing")
        config = config.replace("    instantstyle.core\n", "")
        (source / "setup.cfg").write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = "instantstyle/tiny/weights/"
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    packed = {name.removeprefix(folder) for name in names if name.startswith(folder)}
    assert packed == (set(LAYOUT) if named else set())
    assert ("instantstyle/model_card/README.md" in names) == named
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "instantstyle").rglob("*.py")}
    assert {name for name in names if name.startswith("instantstyle/") and name.endswith(".py")} == (
        modules if named else {name for name in modules if "/core/" not in name}
    )


def test_the_unet_has_the_blocks_of_sdxl(pipe):
    groups = [f"{block}.attentions.{index}" for block in ("down_blocks.1", "down_blocks.2") for index in (0, 1)]
    groups += [f"{block}.attentions.{index}" for block in ("up_blocks.0", "up_blocks.1") for index in (0, 1, 2)]
    assert set(attention_blocks(pipe.unet)) == {*groups, "mid_block.attentions.0"}


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_tokenizers_know_every_word_and_spell_the_rest(pipe, name):
    tokenizer = getattr(pipe, name)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in world.words())
    spelled = "zebra ünï 3 星"
    tokens = tokenizer(spelled, truncation=False).input_ids
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == spelled
    padded = tokenizer("a star", padding="max_length").input_ids
    assert len(padded) == networks.MAX_TOKENS
    assert padded[-1] == tokenizer.convert_tokens_to_ids("!" if name == "tokenizer_2" else "<|endoftext|>")


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_transformers_4_reads_the_same_words(name):
    """It makes a tokenizer of other files than its successor: they must say the same."""
    folder = tiny.path() / name
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == model["vocab"]
    assert [merge.split() for merge in merges] == model["merges"]


def test_the_text_encoders_have_the_names_of_published_files():
    """All versions of transformers read them; without the prefix, older ones would draw weights in their place."""
    for name in ("text_encoder", "text_encoder_2"):
        with safe_open(tiny.path() / name / "model.safetensors", "pt") as file:
            assert all(key.startswith(("text_model.", "text_projection.")) for key in file.keys())  # noqa: SIM118


def test_images_and_texts_meet(pipe):
    """As in CLIP, the nearest of a few texts names what a picture shows."""
    scenes, pictures = drawings(256)
    inputs = pipe.feature_extractor(
        list((pictures * 255).byte().permute(0, 2, 3, 1).numpy()), return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        images = pipe.image_encoder(inputs).image_embeds
    for name, words in world.NAMES.items():
        captions = [world.caption(**{name: word}) for word in words]
        ids = pipe.tokenizer_2(captions, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            texts = pipe.text_encoder_2(ids).text_embeds
        nearest = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(-1)
        right = (nearest == getattr(scenes, name)).float().mean()
        assert right > 0.95
        assert (nearest.roll(1) == getattr(scenes, name)).float().mean() < 0.5


def test_the_autoencoder_keeps_pictures(pipe):
    _, pictures = drawings()
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    error = (decoded - pictures).square().mean((1, 2, 3))
    assert -10 * error.mean().log10() > 26
    assert -10 * (decoded.roll(1, 0) - pictures).square().mean().log10() < 20


def test_the_same_seed_the_same_picture_another_another(pipe):
    reference = Image.open(ROOT / "examples" / "reference.png")
    first = paint(pipe, ip_adapter_image=reference)
    assert torch.equal(paint(pipe, ip_adapter_image=reference), first)
    assert (paint(pipe, seed=1, ip_adapter_image=reference) - first).abs().max() > 0.1


def test_style_blocks_bring_the_style_and_leave_the_content():
    """What the project is for, by what it ships. Held against other references, as a twin, no style is matched."""
    session = Session(Machine(device="cpu"))
    pairs, jury = sample_pairs(24, "selection"), Judges.load()
    pictures = {
        condition: jury(make_pictures(session, condition, pairs, [0])[:, 0])
        for condition in (NO_REFERENCE, PLAIN, STYLE)
    }

    def mean(condition: Condition, name: str, held_against: Pairs = pairs) -> float:
        return float(score(pictures[condition], held_against)[name].mean())

    assert mean(NO_REFERENCE, "content_right") > 0.95
    assert mean(STYLE, "content_right") > 0.95
    assert mean(STYLE, "content_leaked") == 0
    assert mean(PLAIN, "content_right") < 0.75
    for condition in (PLAIN, STYLE):
        assert mean(condition, "style") > 0.8
        assert mean(condition, "style", pairs[torch.arange(24).roll(1)]) < 0.35
    assert mean(NO_REFERENCE, "style") < 0.3


def test_the_controlnet_heeds_its_picture(pipe):
    from diffusers import StableDiffusionXLControlNetPipeline

    from training.controlnet import edges

    controlnet = ControlNetModel.from_pretrained(tiny.path() / "controlnet")
    controlled = StableDiffusionXLControlNetPipeline.from_pretrained(tiny.path(), controlnet=controlnet)
    controlled.set_progress_bar_config(disable=True)
    scenes = drawings(12)[0]
    prompts = [world.caption(scenes.words(row)["shape"]) for row in range(len(scenes))]
    verdicts = Judges.load()(paint(controlled, prompts, image=edges(scenes)))

    def away(rows: torch.Tensor) -> float:
        return float(torch.hypot(verdicts.x - scenes.x[rows], verdicts.y - scenes.y[rows]).median())

    rows = torch.arange(len(scenes))
    assert away(rows) < 3 < away(rows.roll(1))


def test_unknown_words():
    assert world.unknown_words("A fluffy star, on a red BOAT; fluffy") == ["fluffy", "boat"]
    assert world.unknown_words("a drawing of an orange ring on a sky background") == []


def test_nothing_global_is_moved():
    before = torch.get_rng_state(), str(np.random.get_state())
    drawings()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())

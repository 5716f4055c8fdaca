"""The embedded checkpoint: its layout, that it is the same everywhere, and that stock diffusers runs it."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from PIL import Image

from instantstyle import tiny
from instantstyle.tiny import random as tiny_random


ROOT = Path(__file__).parents[1]
LAYOUT = """
controlnet/config.json controlnet/diffusion_pytorch_model.safetensors
model_index.json scheduler/scheduler_config.json
sdxl_models/image_encoder/config.json sdxl_models/image_encoder/model.safetensors
sdxl_models/ip-adapter_sdxl.safetensors
text_encoder/config.json text_encoder/model.safetensors
text_encoder_2/config.json text_encoder_2/model.safetensors
tokenizer/tokenizer_config.json tokenizer_2/tokenizer_config.json
unet/config.json unet/diffusion_pytorch_model.safetensors
vae/config.json vae/diffusion_pytorch_model.safetensors
""".split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return tiny.path()


@pytest.fixture(scope="module")
def pipe(checkpoint) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    pipe.load_ip_adapter(checkpoint, subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def paint(pipe, seed: int = 0, **kwargs) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe("a heart", num_inference_steps=3, generator=generator, output_type="np", **kwargs).images[0]


def test_layout_and_size(checkpoint):
    found = files(checkpoint)
    assert set(LAYOUT) <= set(found)
    assert sum((checkpoint / name).stat().st_size for name in found) < 20_000_000


def test_the_same_bytes_every_time_and_others_from_another_seed(checkpoint, tmp_path, monkeypatch):
    tiny_random.save(tmp_path / "again")
    assert files(tmp_path / "again") == files(checkpoint)

    monkeypatch.setattr(tiny_random, "SEED", 1)
    tiny_random.save(tmp_path / "other")
    changed = {name for name, digest in files(tmp_path / "other").items() if digest != files(checkpoint)[name]}
    assert changed == {name for name in LAYOUT if name.endswith(".safetensors")}


def test_global_random_states_stay(tmp_path):
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    tiny_random.save(tmp_path)
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_widths_all_differ(pipe):
    text = [pipe.text_encoder.config.hidden_size, pipe.text_encoder_2.config.hidden_size]
    widths = [
        *pipe.unet.config.block_out_channels,
        *text,
        sum(text),
        pipe.text_encoder_2.config.projection_dim,
        pipe.image_encoder.config.hidden_size,
    ]
    assert len(set(widths)) == len(widths)
    assert pipe.unet.config.cross_attention_dim == sum(text)
    assert pipe.image_encoder.config.projection_dim == pipe.text_encoder_2.config.projection_dim


def test_stock_diffusers_paints_with_it(pipe):
    reference, other = Image.new("RGB", (64, 64), "red"), Image.effect_noise((64, 64), 90).convert("RGB")
    picture = paint(pipe, ip_adapter_image=reference)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 0.05
    assert (paint(pipe, ip_adapter_image=reference) == picture).all()
    assert abs(paint(pipe, seed=1, ip_adapter_image=reference) - picture).max() > 0.1
    assert abs(paint(pipe, ip_adapter_image=other) - picture).max() > 0.01


def test_everything_loads_in_float32_by_itself(checkpoint, pipe):
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 5
    assert {module.dtype for module in [*modules, ControlNetModel.from_pretrained(checkpoint / "controlnet")]} == {
        torch.float32
    }


def test_the_controlnet_heeds_its_picture(checkpoint, pipe):
    controlnet = ControlNetModel.from_pretrained(checkpoint / "controlnet")
    inputs = (torch.ones(1, 4, 8, 8), 1, torch.ones(1, 77, tiny_random.CROSS_WIDTH))
    added = {"text_embeds": torch.ones(1, tiny_random.CLIP_WIDTH), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        black, white = (
            controlnet(*inputs, torch.full((1, 3, 64, 64), shade), added_cond_kwargs=added).mid_block_res_sample
            for shade in (0.0, 1.0)
        )
    assert (black - white).abs().max() > 0.01


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_tokenizers_know_words_and_spell_the_rest(pipe, name):
    tokenizer = getattr(pipe, name)
    assert tokenizer.tokenize("A red Heart") == ["a</w>", "red</w>", "heart</w>"]
    spelled = "zebra ünïcode 3 星,"
    assert tokenizer.decode(tokenizer(spelled).input_ids, skip_special_tokens=True).strip() == "zebra ünïcode 3 星 ,"
    padded = tokenizer("a star", padding="max_length").input_ids
    assert len(padded) == 77
    assert padded[-1] == tokenizer.convert_tokens_to_ids("!" if name == "tokenizer_2" else "<|endoftext|>")


def test_two_processes_at_once(tmp_path, checkpoint):
    code = "from instantstyle import tiny; print(tiny.path())"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=ROOT)
        for _ in range(2)
    ]
    folders = {run.communicate()[0].decode().strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert [str(path) for path in (tmp_path / "instantstyle").iterdir()] == list(folders)
    assert files(Path(folders.pop())) == files(checkpoint)


def test_the_second_of_two_keeps_the_firsts_files(tmp_path):
    for name in ("scratch", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    tiny.publish(tmp_path / "scratch", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder):
        (folder / "part").write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiny_random, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        tiny.path()
    assert list((tmp_path / "instantstyle").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot be written to .*file.*; set XDG_CACHE_HOME"):
        tiny.path()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/instantstyle"),
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/instantstyle"),
        ("darwin", {}, "home/Library/Caches/instantstyle"),
        ("win32", {}, "home/AppData/Local/instantstyle"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/instantstyle"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(platform, variables, expected, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    assert tiny.cache_folder() == Path(expected)

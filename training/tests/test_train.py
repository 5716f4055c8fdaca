"""The training: that it goes on where it was killed, that processes share a batch, and that every stage runs."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch.nn import functional as F

from instantstyle import tiny
from instantstyle.tiny import world
from instantstyle.tiny.judges import Judges
from training import __main__ as command
from training import clip, data, judges, loop, release, stages, unet
from training.muon import Muon


class Line(loop.Stage):
    """The smallest stage: find the slope of a line."""

    name = "line"
    steps = 120
    batch = 8
    rate = 0.1

    def __init__(self, work: Path) -> None:
        super().__init__(work, torch.device("cpu"))
        self.network = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.network.weight)
        torch.nn.init.zeros_(self.network.bias)
        self.stop_at = self.steps

    def loss(self, count, generator):
        self.stop_at -= 1
        if self.stop_at < 0:
            raise KeyboardInterrupt
        x = torch.randn(count, 1, generator=generator)
        return F.mse_loss(self.network(x), 3 * x), {"count": count}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.network.weight + self.network.bias, folder / "line.pt")


class TwoRates(Line):
    """The same, its weight trained by Muon and its bias by AdamW, as the UNet is."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [Muon([self.network.weight], 0.3, 0.0), loop.adamw([self.network.bias], self)]


def trained(work: Path) -> float:
    return float(torch.load(work / "checkpoint" / "line.pt").detach())


def test_a_stage_learns_logs_and_is_done(tmp_path):
    loop.train(Line(tmp_path))
    assert abs(trained(tmp_path) - 3) < 0.05
    folder = tmp_path / "stages" / "line"
    assert [json.loads(row)["step"] for row in (folder / "log.jsonl").read_text().splitlines()] == [50, 100]
    assert (folder / "done").exists()


SEED = loop.SEED


@pytest.mark.parametrize("seed", [SEED, 1])
@pytest.mark.parametrize("stage", [Line, TwoRates])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, stage, seed):
    """With another seed after the kill, as a twin, it ends elsewhere."""
    loop.train(stage(tmp_path / "whole"))

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    broken = stage(tmp_path / "broken")
    broken.stop_at = 70
    with pytest.raises(KeyboardInterrupt):
        loop.train(broken)
    assert not (tmp_path / "broken" / "checkpoint").exists()
    monkeypatch.setattr(loop, "SEED", seed)
    again = stage(tmp_path / "broken")
    loop.train(again)
    assert again.stop_at == again.steps - 70  # from the last checkpoint, at step 50
    assert (trained(tmp_path / "broken") == trained(tmp_path / "whole")) == (seed == SEED)


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path, network = tmp_path / "state.pt", torch.nn.Linear(1, 1)
    optimizers = [torch.optim.AdamW(network.parameters())]
    loop.write_state(path, network, optimizers, 7, 1.0)

    def killed(state, scratch):
        Path(scratch).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.write_state(path, network, optimizers, 8, 1.0)
    assert loop.resume(path, network, optimizers)[0] == 7


@pytest.mark.parametrize("same", [True, False])
def test_muon_takes_a_kernel_as_a_matrix(same):
    """Two steps are those of PyTorch's own on the flattened kernel; as a twin, not those along other gradients."""
    draw = torch.Generator().manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 2, 3, 3, generator=draw))
    matrix = torch.nn.Parameter(kernel.detach().clone().reshape(6, 18))
    ours = Muon([kernel], 0.01, 0.1)
    other = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        kernel.grad = torch.randn(kernel.shape, generator=draw)
        matrix.grad = kernel.grad.reshape(6, 18) if same else torch.randn(matrix.shape, generator=draw)
        ours.step()
        other.step()
    assert torch.equal(kernel.reshape(6, 18), matrix) == same


def test_the_rate_goes_up_stays_and_goes_down():
    factors = [loop.rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == 1 / loop.WARMUP_STEPS
    assert factors[loop.WARMUP_STEPS : 700] == [1] * (700 - loop.WARMUP_STEPS)
    assert factors[700:] == sorted(factors[700:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_seeds_differ_by_stage_step_and_process():
    seeds = {loop.hash_seed(name, step, rank) for name in ("vae", "unet") for step in range(50) for rank in range(2)}
    assert len(seeds) == 200
    assert loop.hash_seed("vae", 1, 0) == loop.hash_seed("vae", 1, 0)


def small(patch: pytest.MonkeyPatch) -> None:
    """Make every stage a matter of a second."""
    patch.setattr(data, "SHARDS", 1)
    patch.setattr(data, "SHARD_SIZE", 16)
    patch.setattr(judges, "EXAMINED", 8)
    patch.setitem(unet.SAMPLING, "num_inference_steps", 1)
    for name in stages.STAGES:
        patch.setattr(stages.load(name), "batch", 8)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        command.main(["--work", str(folder), "--steps", "1", "--device", "cpu"])
    return folder


def test_all_stages_make_a_checkpoint_like_the_embedded_one(work, tmp_path):
    assert {path.parent.name for path in work.glob("stages/*/done")} == set(stages.STAGES)
    release.main(["--work", str(work), "--output", str(tmp_path / "weights")])

    def layout(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert layout(tmp_path / "weights") == layout(tiny.path())
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "weights").rglob("*.safetensors")} == {0o644}


def test_nothing_is_released_from_an_unfinished_training(work, tmp_path):
    shipped = tmp_path / "weights"
    release.main(["--work", str(work), "--output", str(shipped)])
    before = sorted(shipped.rglob("*"))
    (tmp_path / "begun" / "checkpoint").mkdir(parents=True)
    for folder in ("missing", "begun"):
        with pytest.raises(SystemExit, match="has no model_index.json; run"):
            release.main(["--work", str(tmp_path / folder), "--output", str(shipped)])
    assert sorted(shipped.rglob("*")) == before


def test_a_release_replaces_no_other_folder(work, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="something else than a checkpoint"):
        release.main(["--work", str(work), "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_stages_leave_what_they_build_on_as_it_was(work):
    """And as twins: what is theirs has moved."""

    def state(name: str) -> dict[str, torch.Tensor]:
        return torch.load(work / "stages" / name / "state.pt", weights_only=True)["network"]

    def written(part: str) -> dict[str, torch.Tensor]:
        return load_file(work / "checkpoint" / part / "diffusion_pytorch_model.safetensors")

    def kept(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], *parts: str) -> set[bool]:
        return {torch.equal(after[name], tensor) for name, tensor in before.items() if name.startswith(parts)}

    learnt, adapted = state("unet"), state("adapter")
    assert kept(learnt, written("unet"), "") == {True}  # after adapter and controlnet
    assert kept(learnt, adapted, "") == {True}
    adapter = {name: tensor for name, tensor in adapted.items() if name.endswith("to_k_ip.0.weight")}
    keys = {name: learnt[name.replace("processor.to_k_ip.0", "to_k")] for name in adapter}
    assert kept(keys, adapter, "") == {False}
    assert state("controlnet")["controlnet_mid_block.weight"].any()  # nothing but zeros before
    encoded, decoded = state("vae"), written("vae")
    assert kept(encoded, decoded, "encoder.", "quant_conv.") == {True}
    assert False in kept(encoded, decoded, "decoder.")


@pytest.mark.parametrize(("dropout", "least", "most"), [(None, 0.7, 0.95), (0.0, 0.0, 0.3)])
def test_the_pooled_text_is_mostly_dropped_for_the_attentions(work, monkeypatch, dropout, least, most):
    """A tenth of the captions is empty besides; without dropout, as a twin, no others are."""
    small(monkeypatch)
    if dropout is not None:
        monkeypatch.setattr(unet.UNetStage, "pooled_dropout", dropout)
    built = unet.UNetStage(work, torch.device("cpu"))
    built.prepare(rank=0, processes=1)
    built.read()
    seen = []

    def network(mixed, timesteps, hidden, added_cond_kwargs, return_dict):
        seen.append(added_cond_kwargs["text_embeds"])
        return (mixed,)

    built.network = network
    built.loss(200, torch.Generator().manual_seed(0))
    dropped = ((seen[0] - built.nothing).abs().amax(dim=1) < 1e-4).float().mean()
    assert least <= dropped <= most


def test_latents_are_made_again_for_another_encoder_but_not_for_another_decoder(work, tmp_path, monkeypatch):
    small(monkeypatch)
    vae = AutoencoderKL.from_pretrained(work / "checkpoint" / "vae")

    def folder() -> Path:
        vae.save_pretrained(tmp_path / "checkpoint" / "vae")
        return data.make_latents(tmp_path, torch.device("cpu"), rank=0, processes=1)

    first = folder()
    torch.nn.init.zeros_(vae.decoder.conv_in.weight)
    assert folder() == first
    torch.nn.init.zeros_(vae.encoder.conv_in.weight)
    assert folder() != first
    assert not torch.equal(data.read(first), data.read(folder()))


def test_stages_that_are_done_are_not_run_again(work, capsys):
    command.main(["vae", "unet", "--work", str(work)])
    assert capsys.readouterr().out == "vae: done\nunet: done\n"


def test_an_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["vea"])
    assert "no stage is called vea; the stages are vae, clip" in capsys.readouterr().err


def be_one_process(rank: int, name: str, options: argparse.Namespace, meeting: str) -> None:
    """Work as `stages.work` does, but on the line, and keep the gradients that are stepped on."""
    average = loop.average_gradients

    def keep(parameters: list[torch.nn.Parameter]) -> None:
        average(parameters)
        torch.save([parameter.grad for parameter in parameters], options.work / f"gradients-{rank}.pt")

    loop.average_gradients = keep
    stages.load = lambda name: lambda work, device: Line(work)
    stages.work(rank, name, options, meeting)


def first_gradients(ranks: Sequence[int]) -> torch.Tensor:
    """Return the gradients of the first step on the batches of these processes of two: of the weight and the bias."""
    line = Line(Path())
    generators = [torch.Generator().manual_seed(loop.hash_seed(line.name, 0, rank)) for rank in ranks]
    torch.stack([line.loss(line.batch // 2, generator)[0] for generator in generators]).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in line.network.parameters()])


def test_two_processes_share_every_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "work", be_one_process)
    command.main(["clip", "--work", str(tmp_path), "--processes", "2", "--steps", "1", "--device", "cpu"])
    assert trained(tmp_path) > 0
    for rank in range(2):
        stepped_on = torch.cat([gradient.flatten() for gradient in torch.load(tmp_path / f"gradients-{rank}.pt")])
        assert (stepped_on - first_gradients((0, 1))).abs().max() < 1e-5
        for alone in range(2):
            assert (stepped_on - first_gradients((alone,))).abs().max() > 1e-3


def test_captions_are_true_of_the_scenes_that_the_contrast_matches():
    import random

    scenes = world.sample(48, torch.Generator().manual_seed(0))
    texts, mask = clip.describe(scenes, random.Random(0))
    for row, text in enumerate(texts):
        told = set(text.split())
        for column in range(len(scenes)):
            words = {name: scenes.words(column)[name] for name in world.NAMES}
            named = told & {word for options in world.NAMES.values() for word in options}
            assert mask[row, column] == (named <= set(words.values()))


def test_the_contrast_is_least_where_texts_meet_their_pictures():
    texts = torch.eye(6)
    mask = torch.eye(6, dtype=torch.bool)
    scale = torch.tensor(20.0)
    assert clip.contrastive(texts, texts, mask, scale) < 0.01
    assert clip.contrastive(texts, texts.roll(1, 0), mask, scale) > 5


SHARES = (*world.NAMES, "layout")


def least(share: float, count: int) -> float:
    """Return what `count` pictures show at least of a share of all pictures: two standard deviations less."""
    return share - 2 * math.sqrt(share * (1 - share) / count)


def test_the_judges_are_right_on_drawings_and_reconstructions_and_refuse_blobs(monkeypatch):
    monkeypatch.setattr(judges, "EXAMINED", 512)
    jury, vae = Judges.load(), AutoencoderKL.from_pretrained(tiny.path() / "vae")
    found = judges.examine(jury, vae)
    assert min(found["drawings"][name] for name in SHARES) >= least(0.99, 512)
    assert min(found["reconstructions"][name] for name in SHARES) >= least(0.97, 512)
    assert found["blobs"]["refused"] > 0.9
    noise = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (~jury(noise).recognised).all()
    monkeypatch.setattr(judges, "EXAMINED", 64)
    wrong = judges.examine(lambda pictures: jury(pictures.roll(1, 0)), vae)
    assert max(wrong[kind][name] for kind in ("drawings", "reconstructions") for name in SHARES) < 0.5


def test_judges_take_pictures_of_the_world_alone():
    with pytest.raises(ValueError, match=r"shape \(n, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        Judges.load()(torch.zeros(1, 3, 32, 32))

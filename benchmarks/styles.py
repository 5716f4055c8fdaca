# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""A style file beside the ways to get the same without one: bytes, start to first step, steps, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks import apart
from benchmarks.clock import Times, rounds, timed
from benchmarks.loading import mark_peak, status
from benchmarks.sdxl import SDXL, Dimensions, build_pipeline, build_unet, fill
from benchmarks.sides import AGAIN, PLAIN, STYLE_DICT, Attachment, adapter_modules
from benchmarks.steps import inputs
from instantstyle.core import adapter_state, attached, style_adapter
from instantstyle.identity import fingerprint, style_family_of
from instantstyle.styles.apply import Lookup
from instantstyle.styles.encoder import scales_for
from instantstyle.styles.projection import dtype_of, keys_and_values, projections, text_width_of
from instantstyle.styles.provenance import Provenance, Source
from instantstyle.styles.style import Style
from instantstyle.version import versions


ENCODER, SAVED, OURS_SAVED, FILE = "stock, encoder", "stock, embeddings", "ours, embeddings", "ours, style file"
STARTING = (ENCODER, SAVED, OURS_SAVED, FILE)
STYLING = (PLAIN, AGAIN, *STARTING)
STYLES = 8
BATCH, EACH = "one batch", "one call each"
SMALL_LATENTS = 8  # where memory is measured, so that activations do not hide it


@dataclass
class Found:
    """What was found: bytes over plain SDXL, wall and CPU seconds by measure, and how far outputs differ."""

    held: dict[str, int]
    file: int
    times: dict[str, tuple[Times, Times]]
    differences: dict[str, float]


def build_encoder(size: Dimensions, dtype: torch.dtype, device: str) -> CLIPVisionModelWithProjection:
    """An image encoder of OpenCLIP ViT-bigG's dimensions, or a tiny one, with random weights."""
    real = {"hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16}
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    widths = real if size.channels == SDXL.channels else tiny
    config = CLIPVisionConfig(**widths, image_size=224, patch_size=14, projection_dim=size.clip)
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(config)
    encoder = encoder.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    positions = encoder.vision_model.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[1]))
    fill(encoder)
    return encoder


class Bench:
    """One UNet, and what each side starts from: an adapter file, saved embeddings, a style file."""

    encoder: CLIPVisionModelWithProjection

    def __init__(self, size: Dimensions, adapter: Path, dtype: torch.dtype, device: str, latents: int):
        self.size, self.adapter = size, adapter
        self.unet = build_unet(size, dtype, device, filled=True)
        self.pipes = {kind: build_pipeline(kind, self.unet) for kind in ("stock", "ours")}
        self.pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        self.saved, self.file = adapter.with_name("embeds.safetensors"), adapter.with_name("style.safetensors")
        self.arguments = inputs(size, latents, self.unet, adapter=False)

    def load_encoder(self) -> None:
        """Put the image encoder into memory."""
        self.encoder = build_encoder(self.size, self.unet.dtype, str(self.unet.device))

    def write_files(self) -> Style:
        """Write the saved embeddings and the style file, and return the style."""
        save_file({"embeds": self._encode().cpu()}, self.saved)
        style = self._style()
        style.to(torch.float16).save(self.file)
        return style

    def _encode(self) -> torch.Tensor:
        embeds = self.encoder(self.pixels).image_embeds
        return torch.cat([torch.zeros_like(embeds), embeds])[:, None]

    def _style(self) -> Style:
        pipe = self.pipes["ours"]
        self._load("ours")
        state = adapter_state(self.unet)
        assert state is not None
        scales = scales_for(self.unet, state, None)
        layers = projections(self.unet, state, scales)
        recipe = Provenance(
            family=style_family_of(self.unet),
            text_width=text_width_of(self.unet),
            scales=scales,
            sources=(Source((1024, 1024), content="a star"),),
            adapter=fingerprint(state.projection, *layers.values()),
            image_encoder=fingerprint(self.encoder),
            dtype=dtype_of(self.unet),
            versions=versions(),
        )
        style = Style(keys_and_values(pipe, self._encode()[:, 0], layers), recipe)
        pipe.unload_ip_adapter()
        return style

    def _load(self, kind: str) -> None:
        pipe, folder = self.pipes[kind], self.adapter.parent
        pipe.load_ip_adapter(folder, subfolder="", weight_name=self.adapter.name, image_encoder_folder=None)
        if kind == "stock":
            pipe.set_ip_adapter_scale(STYLE_DICT)

    @contextmanager
    def started(self, side: str) -> Iterator[list[torch.Tensor] | None]:
        """The UNet as a user of this side has it, from the files on; gives the image embeddings of a call."""
        device, dtype = self.unet.device, self.unet.dtype
        with ExitStack() as stack:
            if side in (PLAIN, AGAIN):
                yield None
            elif side == FILE:
                stack.enter_context(worn(self.unet, Style.load(self.file)))
                yield self.rows(1)
            else:
                kind = "ours" if side == OURS_SAVED else "stock"
                self._load(kind)
                stack.callback(self.pipes[kind].unload_ip_adapter)
                yield [self._encode() if side == ENCODER else load_file(self.saved)["embeds"].to(device, dtype)]

    def rows(self, prompts: int) -> list[torch.Tensor]:
        """Row numbers of the styles on the UNet for a number of prompts."""
        state = adapter_state(self.unet)
        assert state is not None and state.standing is not None
        return [rows.to(self.unet.device) for rows in state.standing(prompts)]

    def step(self, embeds: list[torch.Tensor] | None, pictures: int = 1) -> torch.Tensor:
        """One step of the UNet, unconditional and conditional for each picture."""
        arguments = {name: _repeat(value, pictures) for name, value in self.arguments.items()}
        if embeds is not None:
            arguments["added_cond_kwargs"] = {**arguments["added_cond_kwargs"], "image_embeds": embeds}
        return self.unet(**arguments, return_dict=False)[0]

    def held(self, side: str) -> int:
        """Bytes that a side holds over plain SDXL: parameters, buffers, tables, and the encoder where it stays."""
        with self.started(side):
            modules = adapter_modules(self.unet)
            held = [t for module in modules for t in (*module.parameters(), *module.buffers())]
            held += [part.table for module in modules for part in module.modules() if isinstance(part, Lookup)]
            held += list(self.encoder.parameters()) if side == ENCODER else []
            return sum(tensor.nbytes for tensor in held)


def _repeat(value: Any, pictures: int) -> Any:
    if isinstance(value, dict):
        return {name: _repeat(inner, pictures) for name, inner in value.items()}
    return value.repeat_interleave(pictures, dim=0) if value.ndim else value


@torch.no_grad()
def measure_styles(
    size: Dimensions, adapter: Path, dtype: torch.dtype, device: str, latents: int, count: int
) -> Found:
    """Measure all sides in turns on one UNet."""
    bench, cuda = Bench(size, adapter, dtype, device, latents), device == "cuda"
    bench.load_encoder()
    style = bench.write_files()
    times = {
        "start to first step": rounds(count, (PLAIN, *STARTING), lambda side: _start(bench, side, cuda), "start"),
        "step": _steps(bench, count, cuda),
        f"a step of {STYLES} prompts in {STYLES} styles": rounds(
            count, (BATCH, EACH), lambda way: timed(_batches(bench, style)[way], cuda), "batches"
        ),
    }
    outputs = {}
    for side in (OURS_SAVED, FILE, PLAIN):
        with bench.started(side) as embeds:
            outputs[side] = bench.step(embeds).float()
    largest = outputs[OURS_SAVED].abs().max()
    differences = {
        side: ((outputs[side] - outputs[OURS_SAVED]).abs().max() / largest).item() for side in (FILE, PLAIN)
    }
    return Found({side: bench.held(side) for side in STARTING}, bench.file.stat().st_size, times, differences)


@torch.no_grad()
def measure_here(side: str, size: Dimensions, adapter: Path, dtype: torch.dtype, device: str) -> dict[str, float]:
    """How far the peak of this process's memory rises from files to the end of a step, after steps of plain SDXL."""
    bench = Bench(size, adapter, dtype, device, SMALL_LATENTS)
    for _ in range(2):
        bench.step(None)
    cuda, before = device == "cuda", mark_peak()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        on_device = torch.cuda.memory_allocated()
    if side == ENCODER:
        bench.load_encoder()
    with bench.started(side) as embeds:
        bench.step(embeds)
    found = {"peak memory": (status("VmHWM") - before) / 1e6}
    if cuda:
        found["peak memory on the GPU"] = (torch.cuda.max_memory_allocated() - on_device) / 1e6
    return found


def measure_memory(
    tiny: bool, adapter: Path, dtype: torch.dtype, device: str, count: int
) -> dict[str, dict[str, list[float]]]:
    """`measure_here` for every side in processes of their own, once `measure_styles` has written the files."""
    return apart.measure("benchmarks.styles", (PLAIN, *STARTING), apart.Order(tiny, adapter, dtype, device), count)


def _start(bench: Bench, side: str, cuda: bool) -> tuple[float, float]:
    with ExitStack() as stack:  # it is undone after the clock has stopped
        return timed(lambda: bench.step(stack.enter_context(bench.started(side))), cuda)


def _steps(bench: Bench, count: int, cuda: bool) -> tuple[Times, Times]:
    found: dict[str, tuple[Attachment, Any]] = {}
    for side in STYLING:
        with bench.started(side) as embeds:
            found[side] = Attachment.of(bench.unet), embeds
    plain = found[PLAIN][0]

    def turn(side: str) -> tuple[float, float]:
        attachment, embeds = found[side]
        attachment.put(bench.unet)
        if cuda:  # warms what the last side cooled
            bench.step(embeds)
        return timed(lambda: bench.step(embeds), cuda)

    try:
        return rounds(count, STYLING, turn, "steps")
    finally:
        plain.put(bench.unet)


def worn(unet: Any, style: Any) -> AbstractContextManager[None]:
    """The UNet in a style, or in a list of them, for the length of the `with`."""
    return attached(unet, *style_adapter(unet, style, 1.0, unet.device))


def _batches(bench: Bench, style: Style) -> dict[str, Callable[[], None]]:
    """Eight styles for eight prompts; putting the tables on the UNet is part of a call, and counted."""
    recipe = style.recipe
    styles = [
        Style(style.tensors, replace(recipe, scales=dict.fromkeys(recipe.scales, 0.5 + number / STYLES)))
        for number in range(STYLES)
    ]

    def batch() -> None:
        with worn(bench.unet, styles):
            bench.step(bench.rows(STYLES), STYLES)

    def each() -> None:
        for style in styles:
            with worn(bench.unet, style):
                bench.step(bench.rows(1))

    return {BATCH: batch, EACH: each}


if __name__ == "__main__":
    apart.obey(measure_here)

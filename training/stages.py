"""The stages in their order, and how one is run: alone, or in several processes that share every batch."""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

import torch

from training import loop


STAGES = {
    "vae": "vae:VAEStage",
    "clip": "clip:ClipStage",
    "vision": "clip:VisionStage",
    "unet": "unet:UNetStage",
    "decoder": "vae:DecoderStage",
    "adapter": "adapter:AdapterStage",
    "controlnet": "controlnet:ControlNetStage",
    "judges": "judges:JudgesStage",
}


def load(name: str) -> type[loop.Stage]:
    """Import the class of a stage."""
    module, _, cls = STAGES[name].partition(":")
    return getattr(importlib.import_module(f"training.{module}"), cls)


def run(name: str, options: argparse.Namespace) -> None:
    """Run one stage in as many processes as were asked for."""
    if options.processes == 1:
        return work(0, name, options, "")
    with tempfile.TemporaryDirectory() as scratch:
        meeting = Path(scratch, "meeting").as_uri()
        torch.multiprocessing.spawn(work, (name, options, meeting), nprocs=options.processes)


def work(rank: int, name: str, options: argparse.Namespace, meeting: str) -> None:
    """Be one process of a stage."""
    if options.device == "cpu":
        torch.set_num_threads(1)
    if options.processes > 1:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    torch.manual_seed(loop.SEED)
    stage = load(name)(options.work, torch.device(options.device))
    if options.steps:
        stage.steps = options.steps
    loop.train(stage, rank=rank, processes=options.processes)
    if options.processes > 1:
        torch.distributed.destroy_process_group()

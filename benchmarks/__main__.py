# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: measure all sides in one run and print the tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.batch import BATCH as BATCHED
from benchmarks.batch import LOOP, SINGLY, time_batch
from benchmarks.loading import measure_apart, time_loading
from benchmarks.report import Report
from benchmarks.sdxl import SDXL, TINY, Dimensions, shallow, write_adapter
from benchmarks.sides import AGAIN, ALL, OURS, PLAIN, STYLE
from benchmarks.stats import at_least, at_most, estimate, ratio
from benchmarks.steps import Steps, time_steps
from benchmarks.styles import BATCH, EACH, FILE, STARTING, STYLES, measure_memory, measure_styles


PARTS = ("loading", "steps", "compiled", "styles", "batch")
FASTER = 4.0  # how many times faster than stock loading should be
NO_GOAL = "for comparison"
SLOWER = 1.01  # how much a step may take of one without any adapter
PICTURES, STEPS = 24, 30  # of a round of "batch"
STYLE_MB, STYLE_FILE_KB = 1, 450  # what a style may hold over plain SDXL, and its file in float16


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Side by side with stock diffusers.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="a tiny UNet and few rounds: does it all run?")
    parser.add_argument("--only", nargs="+", default=["loading", "steps"], choices=PARTS)
    parser.add_argument("--load-dtype", nargs="+", default=["float16", "float32"], help="UNet dtypes for loading")
    parser.add_argument("--step-dtype", help="UNet dtype for steps (bfloat16; float16 on a GPU)")
    parser.add_argument("--latents", type=int, help="side of the latents (16; 128 on a GPU)")
    parser.add_argument("--shallow", action="store_true", help="one transformer layer per block in steps")
    parser.add_argument("--load-rounds", type=int, default=20)
    parser.add_argument("--step-rounds", type=int, help="(20; 50 on a GPU)")
    parser.add_argument("--batch-rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=3, help="processes per side for bytes and memory")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, help="write everything, samples included, to this file")
    args = parser.parse_args(arguments)
    cuda = args.device == "cuda"
    args.step_dtype = args.step_dtype or ("float16" if cuda else "bfloat16")
    args.latents = args.latents or (128 if cuda else 16)
    args.step_rounds = args.step_rounds or (50 if cuda else 20)
    if args.tiny:
        args.load_dtype, args.latents = ["float16"], 8
        args.load_rounds, args.step_rounds, args.batch_rounds, args.processes = 3, 3, 1, 1
    return args


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load average at the start": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "dimensions": "tiny (says nothing about SDXL)" if args.tiny else "SDXL; for batch, the embedded checkpoint's",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, transformers {transformers.__version__}",
    }


def report_loading(report: Report, args: argparse.Namespace, size: Dimensions, adapter: Path) -> None:
    """Measure loading for each dtype of the UNet."""
    for name in args.load_dtype:
        dtype = getattr(torch, name)
        apart = measure_apart(args.tiny, adapter, dtype, args.device, args.processes)
        for measure, samples in apart.items():
            report.add(f"{measure}, MB, {name}", samples, digits=3 if args.tiny else 1)
        if name == "float16" and not args.tiny:
            kept = apart["held: keys and values"]
            for side, goal in ((ALL, 682), (OURS, 105)):
                found = estimate(kept[side])
                verdict = "met" if round(found.median) == goal else "missed"
                report.judge(f"keys and values of {side} hold {goal} MB in float16", found, verdict, digits=1)
        for what, clocks in time_loading(size, adapter, dtype, args.device, args.load_rounds).items():
            for clock, samples in zip(("wall", "CPU"), clocks, strict=True):
                report.add(f"{what}, warm cache, {clock} s, {name}", samples)
                found = ratio(samples[STYLE], samples[OURS])
                goal = f"{what}: {FASTER:g} times faster than stock, style dict ({clock} time, {name})"
                report.judge(goal, found, at_least(FASTER, found), digits=2)


def report_steps(report: Report, args: argparse.Namespace, size: Dimensions, adapter: Path, compiled: bool) -> None:
    """Measure steps, eager or compiled."""
    dtype = getattr(torch, args.step_dtype)
    steps = time_steps(size, adapter, dtype, args.device, args.latents, args.step_rounds, compiled)
    what = f"{'compiled' if compiled else 'eager'} step, {args.step_dtype}, {args.latents}x{args.latents} latents"
    if size not in (SDXL, TINY):
        what += ", reduced depth"
    for clock, samples in {"wall": steps.wall, "CPU": steps.cpu}.items():
        if clock == "CPU" and args.device == "cuda":
            continue
        report.add(f"{what}, {clock} s", samples, digits=4 if args.device == "cuda" else 3)
        found = ratio(samples[OURS], samples[PLAIN])
        report.judge(
            f"{what}: ours takes at most {SLOWER:g} of no adapter ({clock} time)", found, at_most(SLOWER, found), 4
        )
        for side in (AGAIN, ALL, STYLE):
            compared = ratio(samples[side], samples[PLAIN])
            report.judge(f"{what}: {side}, over no adapter ({clock} time)", compared, NO_GOAL, 4)
    _note(report, what, steps)


def report_styles(report: Report, args: argparse.Namespace, size: Dimensions, adapter: Path) -> None:
    """Measure a style file beside the other ways to the same picture."""
    dtype = getattr(torch, args.step_dtype)
    found = measure_styles(size, adapter, dtype, args.device, args.latents, args.step_rounds)
    what = f"{args.step_dtype}, {args.latents}x{args.latents} latents"
    megabytes = {side: [found.held[side] / 1e6] for side in STARTING}
    report.add(f"held over plain SDXL, MB, {args.step_dtype}", megabytes)
    held, file = estimate(megabytes[FILE]), estimate([found.file / 1e3])
    report.judge(f"a style holds at most {STYLE_MB} MB over plain SDXL", held, at_most(STYLE_MB, held))
    report.judge(f"a style file takes at most {STYLE_FILE_KB} kB", file, at_most(STYLE_FILE_KB, file), 1)
    for measure, megabytes in measure_memory(args.tiny, adapter, dtype, args.device, args.processes).items():
        report.add(f"{measure} from files to the end of a step, MB, {args.step_dtype}", megabytes)
    for measure, (wall, cpu) in found.times.items():
        for clock, samples in {"wall": wall, "CPU": cpu}.items():
            if clock == "wall" or args.device == "cpu":
                report.add(f"{measure}, {what}, {clock} s", samples, digits=4 if args.device == "cuda" else 3)
    steps = found.times["step"][0]
    slower = ratio(steps[FILE], steps[PLAIN])
    report.judge(
        f"a step with a style file takes at most {SLOWER:g} of a plain one", slower, at_most(SLOWER, slower), 4
    )
    again = ratio(steps[AGAIN], steps[PLAIN])
    report.judge("a plain step, again, over a plain one", again, NO_GOAL, 4)
    batches = found.times[f"a step of {STYLES} prompts in {STYLES} styles"][0]
    report.judge("pictures per second in one batch, over one call each", ratio(batches[EACH], batches[BATCH]), NO_GOAL)
    for side, value in found.differences.items():
        report.notes.append(f"largest difference of {side} from ours, embeddings, over the largest value: {value:.1e}")


def report_batch(report: Report, args: argparse.Namespace, folder: Path) -> None:
    """Measure many pictures, with the embedded checkpoint."""
    rows, steps = (2, 2) if args.tiny else (PICTURES, STEPS)
    wall, cpu = time_batch(folder, rows, steps, args.device, args.batch_rounds)
    what = f"{rows} pictures of the embedded checkpoint, {steps} steps"
    for clock, times in {"wall": wall, "CPU": cpu}.items():
        rates = {side: [rows / seconds for seconds in samples] for side, samples in times.items()}
        report.add(f"{what}, pictures a second ({clock} time)", rates, digits=2)
        for side in (SINGLY, LOOP):
            faster = ratio(rates[BATCHED], rates[side])
            report.judge(f"{BATCHED}, over {side} ({clock} time)", faster, NO_GOAL, 2)


def _note(report: Report, what: str, steps: Steps) -> None:
    for pair, value in steps.differences.items():
        report.notes.append(f"{what}: largest difference of {pair}, over the largest value: {value:.1e}")
    for side in (PLAIN, ALL, STYLE, OURS) if steps.flops else ():
        flops = steps.flops[side]
        share = flops / steps.flops[PLAIN] - 1
        report.notes.append(
            f"arithmetic of a step at 128x128 latents, {side}: {flops / 1e12:.3f} TFLOP ({share:+.3%})"
        )


def report_sdxl(report: Report, args: argparse.Namespace, folder: Path) -> None:
    """Measure what is asked for at SDXL's dimensions."""
    size = TINY if args.tiny else SDXL
    adapter = write_adapter(folder, size)
    if "loading" in args.only:
        report_loading(report, args, size, adapter)
    if args.shallow:
        size = shallow(size)
        adapter = write_adapter(folder, size)
    for mode in ("steps", "compiled"):
        if mode in args.only:
            report_steps(report, args, size, adapter, compiled=mode == "compiled")
    if "styles" in args.only:
        report_styles(report, args, size, adapter)


def main() -> None:
    """Run what was asked for."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    report = Report(conditions(args), judged=not args.tiny)
    with tempfile.TemporaryDirectory() as folder:
        if "batch" in args.only:
            report_batch(report, args, Path(folder))
        if set(args.only) - {"batch"}:
            report_sdxl(report, args, Path(folder))
    report.conditions["load average at the end"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    print(report.text())
    if args.json:
        args.json.write_text(json.dumps(report.json(), indent=1) + "\n")


if __name__ == "__main__":
    main()

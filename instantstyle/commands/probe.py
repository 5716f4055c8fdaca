"""`instantstyle probe`: each attention block alone, to look at or judged, and presets for an adapter's file."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from instantstyle.commands.generate import tell_unknown_words
from instantstyle.commands.options import called
from instantstyle.console import calm
from instantstyle.files import check_output, output_folder
from instantstyle.inference import grid
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.models import knows_world
from instantstyle.inference.request import Request
from instantstyle.inference.session import Session
from instantstyle.inference.values import Picture
from instantstyle.lab.ablation import PAIRS, Probed, adapter_source, probe
from instantstyle.lab.presets import named_presets, write_presets
from instantstyle.lab.probe_report import probe_text, save_probe


def run(options: argparse.Namespace) -> None:
    """Probe what the command line asks for; tables and the paths of the files go to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or nothing to save.
    """
    folder = output_folder("--output", options.output)
    save = None if options.save is None else check_output("--save", options.save, ".safetensors", "presets")
    given = [open_picture("--reference", path) for path in options.reference or []]
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars), called(pairs="--pairs"):
        session = Session(options.machine)
        examples = choose_examples(session, given, options.prompt)
        check(options, session, bool(examples))
        tell_unknown_words(session, [Request(prompt=prompt) for prompt in options.prompt or []])
        probed = probe(
            session,
            folder,
            examples,
            pairs=options.pairs or PAIRS,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
            bars=bars,
        )
    report(probed, folder, session, save)


def choose_examples(
    session: Session, given: Sequence[Picture], prompts: Sequence[str] | None
) -> list[tuple[Picture, str]]:
    """Let each reference meet each prompt; where nothing is given, and the model has judges, they draw their own."""
    if not given and not prompts and knows_world(session.model):
        return []
    return list(itertools.product(*grid.choose(given, prompts, session.model, ("--reference", "--prompt"))))


def check(options: argparse.Namespace, session: Session, looked_at: bool) -> None:
    """Refuse what needs judges where there are none, and to save presets into a file that cannot carry them."""
    if looked_at and options.pairs is not None:
        raise ValueError("--pairs: only judges draw pairs; without them, each --reference meets each --prompt.")
    if looked_at and options.save is not None:
        raise ValueError(
            "--save: presets are concluded from what judges count, and there are none here. Leave it out, look at "
            "the picture, and give the blocks to `instantstyle generate --target-blocks`."
        )
    if options.save is not None and not session.adapter.weight_name.endswith(".safetensors"):
        raise ValueError(
            f"--save: {session.adapter.label} is not a .safetensors file, the only kind that carries presets."
        )


def report(probed: Probed, folder: Path, session: Session, save: Path | None) -> None:
    """Write the files, and print what the judges counted."""
    presets = named_presets(probed.proposal, session.pipe.unet)
    paths = save_probe(probed, folder, presets)
    if probed.judged:
        print(probe_text(probed, presets), end="\n\n")
    print(*paths, sep="\n")
    if save is None:
        return
    if not probed.proposal.style:
        raise ValueError(f"--save: nothing was written to {save}, as no style block was found.")
    write_presets(adapter_source(session.pipe), save, presets)
    print(save)

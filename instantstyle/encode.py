"""`instantstyle encode`: from reference pictures to a style file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from instantstyle import generate, models
from instantstyle.console import calm


SUFFIX = ".safetensors"


def run(options: argparse.Namespace) -> None:
    """Encode the pictures that the command line names; the path of the style file goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    path = output_path(options.output)
    pictures = [generate.open_picture("PICTURE", name).image for name in options.reference]
    if options.weights is not None and len(options.weights) != len(pictures):
        raise ValueError(f"--weights has {len(options.weights)} numbers for {len(pictures)} pictures; give one each.")
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars):
        model = models.find_model(options.model)
        adapter = models.find_adapter(options.adapter, model)
        generate.check_content_encoder(options, model, adapter)
        pipe = generate.load(options, model, adapter)
        style = pipe.encode_style(
            pictures,
            neg_content_prompt=options.content,
            neg_content_scale=options.content_scale,
            weights=options.weights,
        )
    style.save(path)
    print(path)


def output_path(output: str) -> Path:
    """Check the name of the file to write.

    Raises:
        ValueError: It does not end in .safetensors, or its folder is missing or cannot be written.
    """
    path = Path(output)
    if path.suffix != SUFFIX:
        raise ValueError(f"--output: {output} does not end in {SUFFIX}.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output: {output} cannot be written; expected a file in a folder that is there.")
    return path

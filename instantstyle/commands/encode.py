"""`instantstyle encode`: from reference pictures to a style file."""

from __future__ import annotations

import argparse
import sys

from instantstyle.console import calm
from instantstyle.files import check_output
from instantstyle.inference import models, request, session
from instantstyle.inference.inputs import open_picture
from instantstyle.inference.models import warn_of_unknown_words


def run(options: argparse.Namespace) -> None:
    """Encode the pictures that the command line names; the path of the style file goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    path = check_output("--output", options.output, ".safetensors", "styles")
    pictures = [open_picture("PICTURE", name).image for name in options.reference]
    if options.weights is not None and len(options.weights) != len(pictures):
        raise ValueError(f"--weights has {len(options.weights)} numbers for {len(pictures)} pictures; give one each.")
    bars = sys.stderr.isatty() and not options.quiet
    with calm(bars):
        import torch

        from instantstyle.styles.encoder import encode

        model = models.find_model(options.model)
        adapter = models.find_adapter(options.adapter, model)
        request.check_content_encoder(options, model, adapter)
        pipe = session.load(options, model, adapter)
        warn_of_unknown_words(model, [options.content or ""])
        style = encode(
            pipe,
            pictures,
            neg_content_prompt=options.content,
            neg_content_scale=options.content_scale,
            weights=options.weights,
        )
    # For painting float16 is as good as float32, in half of the room.
    style.to(getattr(torch, options.dtype or "float16")).save(path)
    print(path)

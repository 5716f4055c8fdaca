"""`instantstyle generate`: pictures of prompts in a style, with their recipes."""

from __future__ import annotations

import argparse
import secrets
import sys

from instantstyle.console import calm
from instantstyle.inference import calls, inputs, models, recipe, request, session
from instantstyle.inference.inputs import load_style, open_picture
from instantstyle.inference.models import warn_of_unknown_words
from instantstyle.inference.request import is_style_file, option
from instantstyle.pipelines import hidiffusion


def run(options: argparse.Namespace) -> None:
    """Make the pictures that the command line asks for; their paths go to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    request.check(options)
    pictures = {name: open_picture(option(name), path) for name, path in inputs.picture_paths(options).items()}
    given = inputs.fit(pictures, options.size)
    paths = inputs.output_paths(options.output, len(options.prompt) * options.num_images)
    bars = sys.stderr.isatty() and not options.quiet
    if options.seed is None:
        options.seed = secrets.randbits(32)

    with calm(bars):
        style, kept = load_style(options.style) if is_style_file(options) else (None, None)
        model = models.find_model(options.model)
        request.check_family(options, style, model)
        calls.check_hires(options, model)
        calls.check_strength(options, model)
        adapter = None
        if style is None:
            adapter = models.find_adapter(options.adapter, model)
            request.check_content_encoder(options, model, adapter)
        pipe = session.load(options, model, adapter)
        pipe.set_progress_bar_config(disable=not bars)
        warn_of_unknown_words(model, [*options.prompt, options.negative or "", options.content or ""])
        if options.hires:
            hidiffusion.enable_hidiffusion(pipe)
        arguments = calls.call_arguments(options, pipe, given, style)
        images = pipe(**arguments).images
        if options.upscale is not None:
            images = calls.repaint(options, pipe, model.family, given, style, images)

    common = recipe.describe(options, pictures, pipe, model, adapter, kept, arguments)
    for index, (image, path) in enumerate(zip(images, paths, strict=True)):
        recipe.keep(image, path, options, common, index)
        print(path)

"""`instantstyle grid`: references x prompts x methods, as one labelled picture with its recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from instantstyle.console import calm
from instantstyle.files import label_of
from instantstyle.inference import grid, inputs, models, recipe, request, session, values
from instantstyle.inference.grid import METHODS, Cell, Reference, Sampling, Targets
from instantstyle.inference.models import Adapter, Model, warn_of_unknown_words
from instantstyle.version import versions


def run(options: argparse.Namespace) -> None:
    """Make the grid that the command line asks for; its path goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    (path,) = inputs.output_paths(options.output, 1)
    given = [grid.open_reference(path) for path in options.reference or []]
    methods = {name: grid.read_method(name) for name in options.method or METHODS}
    bars = sys.stderr.isatty() and not options.quiet

    with calm(bars):
        model = models.find_model(options.model)
        adapter = models.find_adapter(options.adapter, model)
        request.check_content_encoder(one_content(options), model, adapter)
        references, prompts = grid.choose(given, options.prompt, model)
        contents = grid.spread(options.content, len(references))
        pipe = session.load(options, model, adapter)
        pipe.set_progress_bar_config(disable=True)
        warn_of_unknown_words(model, [*prompts, *(options.content or [])])
        check_methods(pipe, methods, options.scale)
        sampling = Sampling(options.seed, options.steps, options.guidance, options.content_scale)
        pairs = [(r, c, p) for r, c in zip(references, contents, strict=True) for p in prompts]
        cells = [
            [Cell(p, r.image, targets, c) if targets else Cell(p, None, None) for targets in methods.values()]
            for r, c, p in pairs
        ]
        pictures = grid.paint(pipe, cells, sampling, bars)
        written = describe(options, pipe, model, adapter, references, prompts, methods)

    lay_out = grid.wide if options.wide else grid.tall
    sheet = lay_out([grid.fit(r.image, pictures[0][0].size) for r in references], prompts, list(methods), pictures)
    recipe.write(sheet.draw(), path, written)
    print(path)


def one_content(options: argparse.Namespace) -> argparse.Namespace:
    """Say the options as `generate` knows them, which has one content."""
    return values.changed(options, content=(options.content or [None])[0])


def check_methods(pipe: Any, methods: dict[str, Targets], scale: float) -> None:
    """Refuse methods that this model does not have, and leave the pipeline at `scale` on all blocks."""
    for targets in (*methods.values(), {"all": 1.0}):
        if targets:
            pipe.set_target_blocks(targets, scale=scale)


def describe(
    options: argparse.Namespace,
    pipe: Any,
    model: Model,
    adapter: Adapter,
    references: Sequence[Reference],
    prompts: Sequence[str],
    methods: dict[str, Targets],
) -> dict[str, Any]:
    """Write the recipe of the grid: names and fingerprints, but no local path."""
    encoder = options.content_encoder
    return {
        "versions": versions(),
        "pipeline": type(pipe).__name__,
        "model": model.label,
        "adapter": adapter.label,
        "content_encoder": label_of(encoder) if encoder else None,
        "references": [reference.source for reference in references],
        "prompts": list(prompts),
        "methods": methods,
        "content": options.content,
        "content_scale": options.content_scale if options.content is not None else None,
        "scale": options.scale,
        "seed": options.seed,
        "steps": options.steps,
        "guidance": options.guidance,
        "device": pipe._execution_device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "offload": options.offload,
    }

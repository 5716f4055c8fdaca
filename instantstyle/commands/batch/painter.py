"""Rows become pictures: those of one kind in one call."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from instantstyle.commands.batch.job import Job
from instantstyle.commands.batch.manifest import Row
from instantstyle.console import one_line
from instantstyle.inference import calls, inputs, recipe, session
from instantstyle.inference.inputs import Picture
from instantstyle.inference.request import is_style_file, target_blocks, variant_name
from instantstyle.inference.session import sibling
from instantstyle.inference.values import changed
from instantstyle.pipelines import hidiffusion


@dataclass(frozen=True)
class Order:
    """A row with everything at hand that its picture is made of."""

    path: Path
    options: argparse.Namespace
    pictures: dict[str, Picture]
    given: dict[str, Image.Image]
    style: Any
    kept: dict[str, Any] | None

    @classmethod
    def of(cls, job: Job, row: Row) -> Order:
        """Read the files of a row, and draw its seed if it has none."""
        options = job.ask(row)
        if options.seed is None:
            options.seed = secrets.randbits(32)
        style, kept = job.reader.style(options.style) if is_style_file(options) else (None, None)
        pictures = job.reader.pictures(options)
        return cls(job.folder / row.name, options, pictures, inputs.fit(pictures, options.size), style, kept)

    def call(self, pipe: Any) -> dict[str, Any]:
        """Put the row in the words of the pipeline's call."""
        return calls.call_arguments(self.options, pipe, self.given, self.style)

    def again(self, picture: Image.Image) -> Order:
        """Say the second pass of the row's picture."""
        options, given = calls.second_pass(self.options, self.given, picture)
        return replace(self, options=options, given=given)


class Painter:
    """Makes the pictures of rows, with one pipeline for each way of working (image to image, ...), on one model.

    Args:
        job: What the run is to do.
        first: A pipeline, loaded; the others share its weights.
    """

    def __init__(self, job: Job, first: Any):
        self.job, self.first = job, first
        self.pipes = {type(first).__name__: first}
        first.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, job: Job, batches: Sequence[Sequence[int]]) -> Painter | None:
        """Load what these rows need; nothing for none."""
        if not batches:
            return None
        asked = [job.ask(job.rows[batch[0]]) for batch in batches]
        adapter = next((found for one in asked if (found := job.adapter_for(one))), None)
        options = changed(job.options, image=asked[0].image, mask=asked[0].mask)
        return cls(job, session.load(options, job.model, adapter))

    def paint(self, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        """Make the pictures of rows of one kind in one call. Gives for each what `generate.keep` takes."""
        orders = [Order.of(self.job, self.job.rows[number]) for number in numbers]
        first, model = orders[0].options, self.job.model
        pipe, adapter = self._pipe(first), self.job.adapter_for(first)
        if adapter is not None:
            # It counts for all that share the UNet, and only the first one knows how the model is spread or offloaded.
            self.first.set_target_blocks(target_blocks(first), scale=first.scale)
        (hidiffusion.enable_hidiffusion if first.hires else hidiffusion.disable_hidiffusion)(pipe)
        calls = [order.call(pipe) for order in orders]
        images = pipe(**joined(calls)).images
        if first.upscale is not None:
            images = self._repaint([order.again(image) for order, image in zip(orders, images, strict=True)])
        made = []
        for order, call, image in zip(orders, calls, images, strict=True):
            common = recipe.describe(order.options, order.pictures, pipe, model, adapter, order.kept, call)
            made.append((image, order.path, order.options, common))
        return made

    def _repaint(self, orders: Sequence[Order]) -> list[Image.Image]:
        pipe = self._pipe(orders[0].options)
        return pipe(**joined([order.call(pipe) for order in orders])).images

    def _pipe(self, options: argparse.Namespace) -> Any:
        name = variant_name(options, self.job.model.family)
        if name not in self.pipes:
            self.pipes[name] = sibling(self.first, name)
        return self.pipes[name]


def joined(calls: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Make one call of several for one picture each, which differ only in what a call can take for each prompt."""
    if len(calls) == 1:
        return calls[0]
    call = dict(calls[0])

    def each(name: str) -> list[Any]:
        return [one[name] for one in calls]

    for name in ("prompt", "negative_prompt", "generator"):  # lists already
        if call[name] is not None:
            call[name] = [value for values in each(name) for value in values]
    for name in call.keys() & {"image", "mask_image", "control_image", "style", "style_scale"}:
        call[name] = each(name)
    for name in call.keys() & {"ip_adapter_image", "neg_content_prompt"}:  # adapter -> prompt
        call[name] = [each(name)]
    return call | {"ip_adapter_image_per_prompt": True} if "ip_adapter_image" in call else call


def attempt(painter: Painter, batch: Sequence[int], failed: dict[int, str]) -> None:
    """Make pictures together, or, where that fails, each alone, so that a bad row takes no other with it.

    Args:
        painter: What makes them.
        batch: The numbers of the rows.
        failed: Takes the rows that fail, and why.

    Raises:
        OSError: A picture cannot be saved, and so no other could.
    """
    try:
        made = painter.paint(batch)
    except Exception as error:  # whatever it is, the other rows shall be made
        failure = reason(error)  # and nothing else of it: its frames hold what a call took that ran out of memory
    else:
        for picture in made:
            recipe.keep(*picture)
        return
    if len(batch) == 1:
        failed[batch[0]] = failure
        return
    for number in batch:
        attempt(painter, [number], failed)


def reason(error: Exception) -> str:
    """Say in one line why a row failed; what is no mistake of the user, with its kind."""
    named = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return named + one_line(error)

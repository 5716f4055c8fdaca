"""`instantstyle batch`: a picture for each row of a manifest, on one device or, started by Accelerate, on many.

Each PNG holds its recipe, and appears whole or not at all. So the folder itself says what is done: the rows whose
files have the recipes that they ask for. Nothing else is kept, and any number of processes can go on where others were
killed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from instantstyle import files
from instantstyle.commands.batch import manifest
from instantstyle.commands.batch.job import Job, Missing, chunks, cut, find_missing
from instantstyle.commands.batch.manifest import Row
from instantstyle.commands.batch.painter import attempt
from instantstyle.commands.batch.processes import bar_name, gather, join, place, share, together
from instantstyle.commands.generate import tell_unknown_words
from instantstyle.commands.options import typed
from instantstyle.console import calm
from instantstyle.inference.inputs import name_file
from instantstyle.inference.recipe import write_recipe
from instantstyle.inference.request import Request
from instantstyle.inference.session import Session
from instantstyle.inference.sheet import Sheet
from instantstyle.version import versions


MOST_ON_SHEET, THUMBNAIL = 1024, 256  # pictures, pixels


def run(options: argparse.Namespace) -> None:
    """Make the pictures of a manifest that are not there yet; a summary goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or rows that failed, after all others were made.
    """
    processes = join(options.machine.device)
    bars = sys.stderr.isatty() and not options.quiet and processes.is_main_process
    failed: dict[int, str] = {}
    with calm(bars):
        job = together(processes, lambda: prepare(options, processes))
        missing = sorted(gather(processes, find_missing(job, share(processes, list(range(len(job.rows)))), failed)))
        if processes.is_main_process:
            tell_unknown_words(job.session, [job.requests[row.number] for row in missing])
        batches = share(processes, cut(missing, options.batch_size))
        together(processes, lambda: load(job, batches))
        start = time.monotonic()
        with tqdm(total=sum(map(len, batches)), desc=bar_name(processes), unit="picture", disable=not bars) as bar:
            for batch in batches:
                attempt(job, batch, failed)
                bar.update(len(batch))
        failed = dict(gather(processes, list(failed.items())))
        seconds = time.monotonic() - start
    if processes.is_main_process:
        report(options, job, missing, failed, seconds)
    processes.destroy_process_group()
    if failed and processes.is_main_process:
        raise ValueError(f"{len(failed)} of {len(job.rows)} rows failed, as told above. A new run tries only those.")


def prepare(options: argparse.Namespace, processes: Any) -> Job:
    """Read and check what can be checked before a model is loaded, and make the folder, or tidy up what is in it.

    Raises:
        ValueError, OSError: A mistake in the command line or in a row, which is named by its line.
    """
    machine = place(options.machine, processes)
    folder = files.output_folder("--output", options.output)
    rows = manifest.read(options.manifest)
    check_sheet(options, rows)
    requests = [row.request(typed(options, Request), machine) for row in rows]
    session = Session(machine)
    for row, request in zip(rows, requests, strict=True):
        with row.blamed():
            session.complete(request)
    folder.mkdir(exist_ok=True)
    if processes.is_main_process:
        files.remove_scratch(folder, {row.name for row in rows})
    return Job(rows, requests, folder, session)


def load(job: Job, batches: Sequence[Sequence[int]]) -> None:
    """Load what these rows need; nothing for none."""
    if batches:
        job.session.load([job.requests[batch[0]] for batch in batches])


def check_sheet(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Refuse a sheet that cannot be written, would be too large, or has the name of a picture."""
    if options.sheet is None:
        return
    path = files.check_output("--sheet", options.sheet, ".png", "the recipe")
    if len(rows) > MOST_ON_SHEET:
        raise ValueError(f"--sheet shows at most {MOST_ON_SHEET:,} pictures, but there are {len(rows):,} rows.")
    if path.resolve().parent == Path(options.output).resolve() and path.name in {row.name for row in rows}:
        raise ValueError(f"--sheet: {options.sheet} is the picture of a row.")


def report(
    options: argparse.Namespace, job: Job, missing: Sequence[Missing], failed: Mapping[int, str], seconds: float
) -> None:
    """Tell what failed, draw the sheet, and sum up."""
    for number in sorted(failed):
        print(f"instantstyle: {job.rows[number].place}: {failed[number]}", file=sys.stderr)
    if options.sheet is not None:
        draw_sheet(options, job, failed)
        print(options.sheet)
    made = sum(row.number not in failed for row in missing)
    rate = f" in {seconds:.1f} s, {made / seconds:.2f} a second" if made else ""
    print(f"{job.folder}: {made} made{rate}; {len(job.rows) - made - len(failed)} were there; {len(failed)} failed")


def draw_sheet(options: argparse.Namespace, job: Job, failed: Mapping[int, str]) -> None:
    """Draw the pictures of all rows on one sheet, in their order; rows that failed leave a gap."""
    columns = math.ceil(math.sqrt(len(job.rows)))
    gap = Image.new("RGB", (1, 1), "white")
    pictures = [gap if number in failed else thumbnail(job.folder / row.name) for number, row in enumerate(job.rows)]
    cells = list(chunks(pictures + [gap] * (-len(pictures) % columns), columns))
    names = chunks([row.name for row in job.rows], columns)
    labels = [f"{line[0]} -\n{line[-1]}" if len(line) > 1 else line[0] for line in names]
    drawn = Sheet(cells, columns=[""] * columns, rows=labels).draw()
    source = name_file("MANIFEST", options.manifest).written
    write_recipe(drawn, options.sheet, {"versions": versions(), "manifest": source})


def thumbnail(path: Path) -> Image.Image:
    """Read a picture, made smaller for the sheet."""
    with Image.open(path) as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return picture.convert("RGB")

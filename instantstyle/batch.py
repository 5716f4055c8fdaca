"""`instantstyle batch`: a picture for each row of a manifest, on one device or, started by Accelerate, on many.

Each PNG holds its recipe, and appears whole or not at all. So the folder itself says what is done: the rows whose
files have the recipes that they ask for. Nothing else is kept, and any number of processes can go on where others were
killed.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from instantstyle import files, generate, manifest, models, recipe
from instantstyle.console import calm, one_line
from instantstyle.manifest import Row
from instantstyle.reading import changed
from instantstyle.sharing import sibling
from instantstyle.sheet import Sheet
from instantstyle.version import versions


PATIENCE = timedelta(days=30)  # for which processes that are done wait for the others
REMEMBERED = 64  # pictures and style files
MOST_ON_SHEET, THUMBNAIL = 1024, 256  # pictures, pixels
# Where two recipes of the same row may differ: the machine that made it, and what `asked_size` stands for.
NOT_ASKED = ("versions", "device", "dtype", "offload", "size", "picture")


class Reader:
    """Reads the files that rows name. Rows share styles, so the last files are remembered, and something of all."""

    def __init__(self) -> None:
        self.picture = lru_cache(REMEMBERED)(generate.open_picture)
        self.style = lru_cache(REMEMBERED)(generate.load_style)
        self.describe = cache(generate.describe_file)
        self.is_picture = cache(lambda name, path: bool(self.picture(name, path)))

    def check(self, options: argparse.Namespace, model: models.Model) -> None:
        """Refuse files of a row that cannot be read, and a style of another family."""
        for name, path in generate.picture_paths(options).items():
            self.is_picture(generate.option(name), path)
        if generate.is_style_file(options):
            generate.check_family(options, self.style(options.style)[0], model)

    def pictures(self, options: argparse.Namespace) -> dict[str, generate.Picture]:
        """Read the pictures that a row names."""
        paths = generate.picture_paths(options)
        return {name: self.picture(generate.option(name), path) for name, path in paths.items()}


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    Attributes:
        options: The command line's, which stand in for what rows leave open.
        rows: The rows of the manifest.
        folder: Where the pictures go.
        model: What makes them.
        adapter: The adapter, for rows whose style is a picture.
        reader: Reads the files that rows name.
    """

    options: argparse.Namespace
    rows: Sequence[Row]
    folder: Path
    model: models.Model
    adapter: models.Adapter
    reader: Reader = field(default_factory=Reader)

    def ask(self, row: Row) -> argparse.Namespace:
        """Say a row as `generate` would be told it."""
        return row.options(self.options)

    def adapter_for(self, options: argparse.Namespace) -> models.Adapter | None:
        """Return the adapter of a row."""
        return None if generate.is_style_file(options) else self.adapter


class Missing(NamedTuple):
    """A row whose picture is to be made. Rows of the same kind can be made in one call."""

    number: int
    kind: str


def run(options: argparse.Namespace) -> None:
    """Make the pictures of a manifest that are not there yet; a summary goes to standard output.

    Raises:
        ValueError, OSError: A user's mistake, or rows that failed, after all others were made.
    """
    processes = join(options)
    bars = sys.stderr.isatty() and not options.quiet and processes.is_main_process
    failed: dict[int, str] = {}
    with calm(bars):
        job = together(processes, lambda: prepare(options, processes))
        missing = gather(processes, find_missing(job, share(processes, list(range(len(job.rows)))), failed))
        if processes.is_main_process:
            warn_of_unknown_words(job, missing)
        batches = share(processes, cut(missing, options.batch_size))
        painter = together(processes, lambda: Painter.load(job, batches))
        start = time.monotonic()
        with tqdm(total=sum(map(len, batches)), desc=bar_name(processes), unit="picture", disable=not bars) as bar:
            for batch in batches:
                attempt(painter, batch, failed)
                bar.update(len(batch))
        failed = dict(gather(processes, list(failed.items())))
        seconds = time.monotonic() - start
    if processes.is_main_process:
        report(job, missing, failed, seconds)
    processes.destroy_process_group()
    if failed and processes.is_main_process:
        raise ValueError(f"{len(failed)} of {len(job.rows)} rows failed, as told above. A new run tries only those.")


# --- Processes -------------------------------------------------------------------------------------------------------


def join(options: argparse.Namespace) -> Any:
    """Join the other processes that Accelerate started, if it did.

    Raises:
        ValueError: There is no such device.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or generate.find_device(options.device).type == "cpu"
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


def place(options: argparse.Namespace, processes: Any) -> None:
    """Take the device that Accelerate gives this process.

    Raises:
        ValueError: Several processes are to have the same device, or all of them.
    """
    several = processes.num_processes > 1
    if several and options.device_map is not None:
        raise ValueError(
            f"--device-map {options.device_map} spreads one model over all devices, so it wants one process, not "
            f"{processes.num_processes}."
        )
    if several and ":" in (options.device or ""):
        raise ValueError(f"--device: {options.device} is one device, but each process has its own; leave it out.")
    if options.device_map is None and (several or options.device is None):
        options.device = str(processes.device)


def bar_name(processes: Any) -> str:
    """Say what the progress bar is about: parts are of equal size, so the first one speaks for all."""
    return "pictures" if processes.num_processes == 1 else f"pictures of the first of {processes.num_processes}"


def share(processes: Any, items: list[Any]) -> list[Any]:
    """Return this process's part of a list that all processes have."""
    with processes.split_between_processes(items) as part:
        return list(part)


def gather(processes: Any, items: list[Any]) -> list[Any]:
    """Join the lists of all processes, in the order of the processes. Waits for all."""
    from accelerate.utils import gather_object

    return gather_object(items) if processes.num_processes > 1 else items


def together(processes: Any, work: Callable[[], Any]) -> Any:
    """Do something on every process. Where it fails on one, all end, and the main one says why.

    Raises:
        ValueError, OSError: On the main process, what went wrong here or elsewhere.
        SystemExit: On the others, which have nothing to add.
    """
    result = None
    error: Exception | None = None
    try:
        result = work()
    except (ValueError, OSError) as raised:
        error = raised
    errors = gather(processes, [str(error)] if error else [])
    if errors and not processes.is_main_process:
        sys.exit(0)
    if errors:
        raise error or ValueError(errors[0])
    return result


# --- What is to be done ----------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, processes: Any) -> Job:
    """Read and check what can be checked before a model is loaded, and make the folder, or tidy up what is in it.

    Raises:
        ValueError, OSError: A mistake in the command line or in a row, which is named by its line.
    """
    place(options, processes)
    folder = files.output_folder(options.output)
    rows = manifest.read(options.manifest)
    check_sheet(options, rows)
    for row in rows:
        with manifest.at(row.place):
            check_row(row.options(options))
    model = models.find_model(options.model)
    generate.check_offload(options.offload, generate.find_device(options.device))
    generate.check_device_map(options, model)
    job = Job(options, rows, folder, model, models.find_adapter(options.adapter, model))
    for row in rows:
        with manifest.at(row.place):
            own = job.ask(row)
            if adapter := job.adapter_for(own):
                generate.check_content_encoder(own, model, adapter)
    folder.mkdir(exist_ok=True)
    if processes.is_main_process:
        files.remove_scratch(folder, {row.name for row in rows})
    return job


def check_row(options: argparse.Namespace) -> None:
    """Refuse a row without a style, and options that contradict each other."""
    if options.style is None:
        raise ValueError("no style; name a picture or a style file in the column 'style', or for all with --style.")
    generate.check(options)


def check_sheet(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Refuse a sheet that cannot be written, would be too large, or has the name of a picture."""
    if options.sheet is None:
        return
    path = files.check_output("--sheet", options.sheet, ".png", "the recipe")
    if len(rows) > MOST_ON_SHEET:
        raise ValueError(f"--sheet shows at most {MOST_ON_SHEET:,} pictures, but there are {len(rows):,} rows.")
    if path.resolve().parent == Path(options.output).resolve() and path.name in {row.name for row in rows}:
        raise ValueError(f"--sheet: {options.sheet} is the picture of a row.")


def find_missing(job: Job, numbers: Sequence[int], failed: dict[int, str]) -> list[Missing]:
    """Find the rows whose pictures are not there, or are there with another recipe.

    Args:
        job: What the run is to do.
        numbers: The rows to look at, from 0.
        failed: Takes the rows that name files that cannot be read, and why.
    """
    found = []
    for number in numbers:
        row = job.rows[number]
        options = job.ask(row)
        try:
            if not is_made(job.folder / row.name, expected(job, options)):
                job.reader.check(options, job.model)
                found.append(Missing(number, kind(job, options)))
        except (ValueError, OSError) as error:
            failed[number] = reason(error)
    return found


def expected(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Write what the recipe of a row's picture must say."""
    import instantstyle

    names = [name for name in generate.PICTURES if getattr(options, name)]
    named = {name: job.reader.describe(generate.option(name), getattr(options, name)) for name in names}
    used = generate.strengths(options, getattr(instantstyle, generate.variant_name(options, job.model.family)))
    return generate.asked(options, job.model, job.adapter_for(options), named, used)


def is_made(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a file is the picture that a recipe asks for. One without a seed is content with any."""
    try:
        found = recipe.read(path)
    except (ValueError, OSError):
        return False
    if asked["seed"] is None:
        asked = {**asked, "seed": found.get("seed")}
    return essence(found) == essence(json.loads(json.dumps(asked)))


def essence(written: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of a recipe what was asked for; files count by their content, not by their names."""
    kept = {name: value for name, value in written.items() if name not in NOT_ASKED}
    return {
        name: value.get("sha256") if name in generate.PICTURES and isinstance(value, dict) else value
        for name, value in kept.items()
    }


def kind(job: Job, options: argparse.Namespace) -> str:
    """Name what rows must have in common to be made in one call."""
    sizes = [options.size]
    if options.image or options.control_image:
        given = generate.fit(job.reader.pictures(options), options.size)
        sizes += [given[name].size for name in ("image", "control_image") if name in given]
    alike = ("steps", "guidance", "content_scale", "target_blocks", "scale", "strength", "controlnet_scale")
    return repr(
        [
            generate.variant_name(options, job.model.family),
            generate.is_style_file(options),
            sizes,
            [getattr(options, name) for name in alike],
            [options.negative is None, options.content is None],
        ]
    )


def cut(missing: Sequence[Missing], size: int) -> list[list[int]]:
    """Put the numbers of rows that can be made in one call together, at most `size` of them."""
    kinds: dict[str, list[int]] = {}
    for row in missing:
        kinds.setdefault(row.kind, []).append(row.number)
    return [batch for numbers in kinds.values() for batch in chunks(numbers, size)]


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Cut a sequence into lists of `size`, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def warn_of_unknown_words(job: Job, missing: Sequence[Missing]) -> None:
    """Say which words the model has never seen, once for all rows."""
    asked = (job.ask(job.rows[row.number]) for row in missing)
    texts = {text for one in asked for text in (*one.prompt, one.negative or "", one.content or "")}
    generate.warn_of_unknown_words(job.model, sorted(texts))


# --- Painting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A row with everything at hand that its picture is made of."""

    path: Path
    options: argparse.Namespace
    pictures: dict[str, generate.Picture]
    style: Any
    kept: dict[str, Any] | None

    @classmethod
    def of(cls, job: Job, row: Row) -> Order:
        """Read the files of a row, and draw its seed if it has none."""
        options = job.ask(row)
        if options.seed is None:
            options.seed = secrets.randbits(32)
        style, kept = job.reader.style(options.style) if generate.is_style_file(options) else (None, None)
        return cls(job.folder / row.name, options, job.reader.pictures(options), style, kept)

    def call(self, pipe: Any) -> dict[str, Any]:
        """Put the row in the words of the pipeline's call."""
        given = generate.fit(self.pictures, self.options.size)
        return generate.call_arguments(self.options, pipe, given, self.style)


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
        return cls(job, generate.load(options, job.model, adapter))

    def paint(self, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        """Make the pictures of rows of one kind in one call. Gives for each what `generate.keep` takes."""
        orders = [Order.of(self.job, self.job.rows[number]) for number in numbers]
        first = orders[0].options
        pipe, adapter = self._pipe(first), self.job.adapter_for(first)
        if adapter is not None:
            # It counts for all that share the UNet, and only the first one knows how the model is spread or offloaded.
            self.first.set_target_blocks(generate.target_blocks(first), scale=first.scale)
        calls = [order.call(pipe) for order in orders]
        images = pipe(**joined(calls)).images
        made = []
        for order, call, image in zip(orders, calls, images, strict=True):
            options, model = order.options, self.job.model
            common = generate.describe(options, order.pictures, pipe, model, adapter, order.kept, call)
            made.append((image, order.path, options, common))
        return made

    def _pipe(self, options: argparse.Namespace) -> Any:
        name = generate.variant_name(options, self.job.model.family)
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
        if len(batch) == 1:
            failed[batch[0]] = reason(error)
            return
        for number in batch:
            attempt(painter, [number], failed)
    else:
        for picture in made:
            generate.keep(*picture)


def reason(error: Exception) -> str:
    """Say in one line why a row failed; what is no mistake of the user, with its kind."""
    named = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return named + one_line(error)


# --- The end ---------------------------------------------------------------------------------------------------------


def report(job: Job, missing: Sequence[Missing], failed: Mapping[int, str], seconds: float) -> None:
    """Tell what failed, draw the sheet, and sum up."""
    for number in sorted(failed):
        print(f"instantstyle: {job.rows[number].place}: {failed[number]}", file=sys.stderr)
    if job.options.sheet is not None:
        draw_sheet(job, failed)
        print(job.options.sheet)
    made = sum(row.number not in failed for row in missing)
    rate = f" in {seconds:.1f} s, {made / seconds:.2f} a second" if made else ""
    print(f"{job.folder}: {made} made{rate}; {len(job.rows) - made - len(failed)} were there; {len(failed)} failed")


def draw_sheet(job: Job, failed: Mapping[int, str]) -> None:
    """Draw the pictures of all rows on one sheet, in their order; rows that failed leave a gap."""
    columns = math.ceil(math.sqrt(len(job.rows)))
    gap = Image.new("RGB", (1, 1), "white")
    pictures = [gap if number in failed else thumbnail(job.folder / row.name) for number, row in enumerate(job.rows)]
    cells = list(chunks(pictures + [gap] * (-len(pictures) % columns), columns))
    names = chunks([row.name for row in job.rows], columns)
    labels = [f"{line[0]} -\n{line[-1]}" if len(line) > 1 else line[0] for line in names]
    drawn = Sheet(cells, columns=[""] * columns, rows=labels).draw()
    source = generate.describe_file("MANIFEST", job.options.manifest)
    recipe.write(drawn, job.options.sheet, {"versions": versions(), "manifest": source})


def thumbnail(path: Path) -> Image.Image:
    """Read a picture, made smaller for the sheet."""
    with Image.open(path) as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return picture.convert("RGB")

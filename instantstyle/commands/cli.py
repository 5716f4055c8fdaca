"""The command line: its commands and their options, and how it ends. What they do is in the modules of their names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from instantstyle import tiny
from instantstyle.commands.options import (
    add,
    add_machine,
    add_painting,
    add_quiet,
    machine,
    of,
    option,
)
from instantstyle.console import escape_unknown_letters, one_line
from instantstyle.inference.request import GUIDANCE, STEPS, Machine, Request, told
from instantstyle.inference.values import Count, Number, Numbers, Port, Seed
from instantstyle.version import __version__


USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; by default those that the process was given.

    Returns:
        The exit code: 0, 2 after a user's mistake (told in one line on standard error), 130 after an interrupt.
    """
    escape_unknown_letters()
    try:
        options = read(argv)
        # Imported here, so that the words of the command line need not wait for it.
        import_module(f"instantstyle.commands.{options.command}").run(options)
    except KeyboardInterrupt:
        print("instantstyle: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"instantstyle: error: {one_line(ValueError(told(error, option)))}", file=sys.stderr)
        return USER_ERROR
    return 0


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read what is typed: with `machine`, where to work."""
    options = build_parser().parse_args(argv)
    options.machine = machine(options)
    return options


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes end like all others, in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise ValueError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = Parser(
        prog="instantstyle", description="A prompt's content in the style of one reference picture, without training."
    )
    parser.add_argument("--version", action="version", version=f"instantstyle {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, (add_options, short, long) in COMMANDS.items():
        command = commands.add_parser(name, help=short, description=long)
        add_options(command)
    return parser


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle generate`."""
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="what to show; several prompts make several pictures"
    )
    parser.add_argument("-o", "--output", default="instantstyle.png", metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--from",
        dest="recipe",
        metavar="PNG",
        help="paint the recipe in this picture again, with the options that are typed in place of its values",
    )
    sampling = add_painting(parser)
    sampling.add_argument(
        "--num-images",
        type=of(Count),
        default=1,
        metavar="N",
        help="pictures per prompt, the n-th of all with the seed plus n; default: %(default)s",
    )
    add_quiet(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle batch`."""
    parser.add_argument(
        "manifest", metavar="MANIFEST", help="the table: .csv with a header, or .jsonl; its paths start from here"
    )
    parser.add_argument("-o", "--output", default="batch", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--sheet", metavar="FILE", help="also show all pictures on one sheet (.png)")
    parser.add_argument(
        "--batch-size",
        type=of(Count),
        default=4,
        metavar="N",
        help="pictures made at a time; default: %(default)s",
    )
    add_painting(parser)
    add_quiet(parser)


def add_encode(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle encode`."""
    parser.add_argument(
        "reference", nargs="+", metavar="PICTURE", help="the reference; of several, the mean of their embeddings"
    )
    parser.add_argument("-o", "--output", default="style.safetensors", metavar="FILE", help="default: %(default)s")
    style = parser.add_argument_group("style")
    add(style, Request, "reference_fit", "content", "content_scale", "target_blocks")
    style.add_argument(
        "--weights", type=of(Numbers), metavar="X,...", help="how much each picture counts; default: all the same"
    )
    add_machine(parser)
    add_quiet(parser)


def add_blocks(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle blocks`."""
    add(parser, Machine, "model")


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle grid`."""
    parser.add_argument("-o", "--output", default="grid.png", metavar="FILE", help="default: %(default)s")
    add_examples(parser)
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help='"no reference", "plain IP-Adapter" (all blocks), "InstantStyle" (the style blocks), or presets and '
        "attention blocks as NAME[=SCALE],...; default: the first three",
    )
    parser.add_argument(
        "--wide", action="store_true", help="a row for each reference, and a column for each prompt of each method"
    )
    parser.add_argument(
        "--content",
        nargs="+",
        metavar="TEXT",
        help="what the references show: one text for all, or one for each",
    )
    add(parser, Request, "content_scale", "scale", "reference_fit", "steps", "guidance")
    add(parser, Request, "seed", seed=0)
    add_machine(parser, "fast", "fast_weights")
    add_quiet(parser)


def add_show(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle show`."""
    parser.add_argument("file", metavar="FILE", help="a style file, a folder or Hub repository with style.safetensors")


def add_examples(parser: argparse.ArgumentParser) -> None:
    """Add the references and prompts of the commands that compare."""
    parser.add_argument(
        "--reference", nargs="+", metavar="FILE", help="reference pictures; the embedded checkpoint draws its own"
    )
    parser.add_argument(
        "--prompt",
        nargs="+",
        metavar="PROMPT",
        help='what to show, as in "a heart"; the embedded checkpoint has its own',
    )


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle probe`."""
    parser.add_argument(
        "-o", "--output", default="probe", metavar="FOLDER", help="a run in it is resumed; default: %(default)s"
    )
    add_examples(parser)
    parser.add_argument("--pairs", type=of(Count), metavar="N", help="drawn pairs that the judges see; default: 96")
    judged = "default: {} with judges, else {}"
    parser.add_argument("--steps", type=of(Count), metavar="N", help=judged.format(tiny.SAMPLING["steps"], STEPS))
    parser.add_argument(
        "--guidance", type=of(Number), metavar="X", help=judged.format(tiny.SAMPLING["guidance"], GUIDANCE)
    )
    parser.add_argument("--seed", type=of(Seed), default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--save",
        metavar="FILE",
        help="write a copy of the adapter (.safetensors) that carries the presets that judges propose",
    )
    add_machine(parser)
    add_quiet(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle evaluate`."""
    parser.add_argument(
        "-o", "--output", default="evaluation", metavar="FOLDER", help="a run in it is resumed; default: %(default)s"
    )
    parser.add_argument(
        "--split",
        choices=("reporting", "selection"),
        default="reporting",
        help="choose by the pairs of one, report those of the other; default: %(default)s",
    )
    parser.add_argument("--pairs", type=of(Count), metavar="N", help="prompts with a reference each; default: 512")
    parser.add_argument("--seeds", type=of(Count), metavar="N", help="pictures of each pair; default: 3")
    parser.add_argument(
        "--curves", action="store_true", help="also try every method at several strengths, on 192 pairs"
    )
    parser.add_argument("--quick", action="store_true", help="few conditions on 24 pairs, in under a minute")
    parser.add_argument(
        "--processes",
        type=of(Count),
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="of one thread each; default: %(default)s",
    )
    parser.add_argument("--conditions", metavar="FILE", help="what to compare, as a JSON list, instead of our own")
    add(parser, Machine, "model")
    add_quiet(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle export`."""
    parser.add_argument("folder", metavar="FOLDER", help="a new or an empty folder")
    add_checkpoint(parser)


def add_publish(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle publish`."""
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME")
    add_checkpoint(parser)
    parser.add_argument("--private", action="store_true", help="nobody else may see it; refused if it is public")
    parser.add_argument("--revision", metavar="BRANCH", help="made if it is not there; default: main")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, without the network")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes it a complete checkpoint."""
    parser.add_argument(
        "--checkpoint",
        nargs="?",
        const="tiny",
        metavar="WHERE",
        help="with these weights, so that it loads with no `custom_pipeline`: a folder in diffusers' layout, or "
        "the embedded checkpoint if nothing is named",
    )
    add_quiet(parser)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle demo`."""
    add_machine(parser, "controlnet")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--library", default="styles", metavar="FOLDER", help="where style files are kept; default: %(default)s"
    )
    server.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 for the whole network; default: %(default)s"
    )
    server.add_argument("--port", type=of(Port), metavar="N", help="default: 7860, or the next that is free")
    server.add_argument("--share", action="store_true", help="also make a public address, through Gradio's servers")
    server.add_argument(
        "--open", action=argparse.BooleanOptionalAction, default=True, help="open a browser; default: --open"
    )


COMMANDS = {
    "generate": (
        add_generate,
        "make pictures",
        "Make pictures, as PNG files.",
    ),
    "batch": (
        add_batch,
        "make many pictures, on many devices",
        "Make a picture for each row of a table, as `generate` would: OUTPUT/000001.png and so on. "
        "Columns are options of `generate` (prompt, style, content, seed, ...), or `output`, a file's "
        "name. The options here stand in where the table says nothing. What is made already is not made "
        "again. On several devices: accelerate launch --multi_gpu --num_processes N -m instantstyle "
        "batch ...",
    ),
    "encode": (
        add_encode,
        "make a style file of a reference",
        "Encode a reference once. The file takes the place of the picture in `generate --style`, and "
        "needs neither IP-Adapter nor image encoder there. It is in float16, unless --dtype says "
        "otherwise.",
    ),
    "show": (
        add_show,
        "show what a style file is made of",
        "Show a style file.",
    ),
    "blocks": (
        add_blocks,
        "show where a model can see the reference",
        "Show a model's attention blocks, their layers and sizes, and its presets. Loads no weights.",
    ),
    "grid": (
        add_grid,
        "compare methods in one labelled picture",
        "Make one labelled picture of references x prompts x methods, each cell from the same seed.",
    ),
    "probe": (
        add_probe,
        "show what each attention block carries",
        "Let one attention block at a time see the reference, and all but one, on one labelled picture to "
        "look at. Where the model folder has judges (the embedded checkpoint), and no --reference or --prompt is "
        "given, they count what each block carries, and presets are proposed.",
    ),
    "evaluate": (
        add_evaluate,
        "measure what is taken from references",
        "Measure, on the embedded checkpoint, how much style, content and layout of a reference each way "
        'of using it brings along. Needs matplotlib: pip install "instantstyle[evaluate]"',
    ),
    "export": (
        add_export,
        "write the plugin's Hub repository into a folder",
        "Write what `instantstyle publish` uploads: the plugin as the `custom_pipeline` of diffusers "
        "loads it, a file for each other pipeline, blocks for Modular Diffusers, a model card with pictures, "
        "and example style files.",
    ),
    "publish": (
        add_publish,
        "put the plugin's repository on the Hub",
        "Upload what `instantstyle export` writes. The repository is made if it is not there; what it "
        "holds already is not uploaded again. The token is that of HF_TOKEN or of `hf auth login`.",
    ),
    "demo": (
        add_demo,
        "try it in a browser",
        'Serve a page to try it in a browser, and with gradio_client. Needs Gradio: pip install "instantstyle[demo]"',
    ),
}
"""Name, also of its module here -> what adds its options, what the list of commands says of it, and its own help."""

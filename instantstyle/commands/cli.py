"""The command line: its words, and how it ends. What the words do is in the modules of their names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from instantstyle.console import one_line
from instantstyle.inference.values import (
    content_scale,
    count,
    enlargement,
    fraction,
    number,
    numbers,
    port,
    seed,
    size,
    targets,
    words,
)
from instantstyle.pipelines.distilled import DISTILLED, GUIDANCE, STEPS
from instantstyle.version import __version__


USER_ERROR, INTERRUPTED = 2, 130

# What the modules that commands share read, where a command does not offer it.
NOT_OFFERED = {
    "fast": None,
    "fast_weights": None,
    "hires": False,
    "upscale": None,
    "upscale_strength": None,
    "vae_tiling": False,
    "device_map": None,
}
# The commands that compare change targets from cell to cell.
ONLY_TEXT_TO_IMAGE = {
    **NOT_OFFERED,
    "image": None,
    "mask": None,
    "controlnet": None,
    "target_blocks": [("all", 1.0)],
}

HOMES = {
    **{name: f"commands.{name}" for name in ("generate", "batch", "encode", "show", "blocks", "grid")},
    **{name: f"lab.{name}" for name in ("probe", "evaluate")},
    **{name: f"hub.{name}" for name in ("export", "publish")},
    "demo": "demo",
}
"""Command -> the module whose `run` carries it out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; by default those that the process was given.

    Returns:
        The exit code: 0, 2 after a user's mistake (told in one line on standard error), 130 after an interrupt.
    """
    try:
        options = build_parser().parse_args(argv)
        # Imported here, so that the words of the command line need not wait for it.
        import_module(f"instantstyle.{HOMES[options.command]}").run(options)
    except KeyboardInterrupt:
        print("instantstyle: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"instantstyle: error: {one_line(error)}", file=sys.stderr)
        return USER_ERROR
    return 0


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
    for name, (add, short, long) in COMMANDS.items():
        add(commands.add_parser(name, help=short, description=long))
    return parser


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


def add_blocks(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle blocks`."""
    add_model(parser)


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
        type=words,
        metavar="TEXT",
        help="what the references show: one text for all, or one for each",
    )
    parser.add_argument(
        "--content-scale",
        type=content_scale,
        default=1.0,
        metavar="X",
        help='a number or "auto"; default: %(default)s',
    )
    parser.add_argument("--scale", type=number, default=1.0, metavar="X", help="strength; default: %(default)s")
    parser.add_argument("--steps", type=count, default=STEPS, metavar="N", help="default: %(default)s")
    parser.add_argument("--guidance", type=number, default=GUIDANCE, metavar="X", help="default: %(default)s")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of every cell; default: %(default)s")
    add_machine(parser.add_argument_group("models and machine"))
    add_quiet(parser)
    parser.set_defaults(**ONLY_TEXT_TO_IMAGE)


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle probe`."""
    parser.add_argument(
        "-o", "--output", default="probe", metavar="FOLDER", help="a run in it is resumed; default: %(default)s"
    )
    add_examples(parser)
    parser.add_argument("--pairs", type=count, metavar="N", help="drawn pairs that the judges see; default: 96")
    parser.add_argument("--steps", type=count, metavar="N", help="default: 16 with judges, else 30")
    parser.add_argument("--guidance", type=number, metavar="X", help="default: 3.5 with judges, else 5.0")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--save", metavar="FILE", help="write a copy of the adapter that carries the proposed presets (.safetensors)"
    )
    add_machine(parser.add_argument_group("models and machine"))
    add_quiet(parser)
    parser.set_defaults(scale=1.0, content=None, **ONLY_TEXT_TO_IMAGE)


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
    parser.add_argument("--pairs", type=count, metavar="N", help="prompts with a reference each; default: 512")
    parser.add_argument("--seeds", type=count, metavar="N", help="pictures of each pair; default: 3")
    parser.add_argument(
        "--curves", action="store_true", help="also try every method at several strengths, on 192 pairs"
    )
    parser.add_argument("--quick", action="store_true", help="few conditions on 24 pairs, in under a minute")
    parser.add_argument(
        "--processes",
        type=count,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="of one thread each; default: %(default)s",
    )
    parser.add_argument("--conditions", metavar="FILE", help="what to compare, as a JSON list, instead of our own")
    parser.add_argument(
        "--model",
        default="tiny",
        metavar="WHERE",
        help="the embedded checkpoint, or the folder of one that was trained like it; default: %(default)s",
    )
    add_quiet(parser)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle demo`."""
    models = parser.add_argument_group("models and machine")
    add_machine(models)
    models.add_argument(
        "--controlnet",
        metavar="MODEL",
        help='a folder, a Hub repository, or "tiny"; default: none, but of the embedded checkpoint its own',
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--library", default="styles", metavar="FOLDER", help="where style files are kept; default: %(default)s"
    )
    server.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 for the whole network; default: %(default)s"
    )
    server.add_argument("--port", type=port, metavar="N", help="default: 7860, or the next that is free")
    server.add_argument("--share", action="store_true", help="also make a public address, through Gradio's servers")
    server.add_argument(
        "--open", action=argparse.BooleanOptionalAction, default=True, help="open a browser; default: --open"
    )
    parser.set_defaults(**NOT_OFFERED)


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


def add_encode(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle encode`."""
    parser.add_argument(
        "reference", nargs="+", metavar="PICTURE", help="the reference; of several, the mean of their embeddings"
    )
    parser.add_argument("-o", "--output", default="style.safetensors", metavar="FILE", help="default: %(default)s")
    style = parser.add_argument_group("style")
    add_content(style)
    style.add_argument(
        "--weights", type=numbers, metavar="X,...", help="how much each picture counts; default: all the same"
    )
    add_machine(parser.add_argument_group("models and machine"))
    add_quiet(parser)
    parser.set_defaults(scale=1.0, image=None, mask=None, controlnet=None, **NOT_OFFERED)


def add_show(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle show`."""
    parser.add_argument("file", metavar="FILE", help="a style file, a folder or Hub repository with style.safetensors")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle generate`."""
    parser.add_argument(
        "prompt", nargs="+", metavar="PROMPT", help="what to show; several prompts make several pictures"
    )
    parser.add_argument("-o", "--output", default="instantstyle.png", metavar="FILE", help="default: %(default)s")
    add_style(parser.add_argument_group("style"), required=True)
    sampling = parser.add_argument_group("sampling")
    add_sampling(sampling)
    sampling.add_argument(
        "--seed", type=seed, metavar="N", help="the n-th picture has seed N + n; default: a random one"
    )
    sampling.add_argument(
        "--num-images", type=count, default=1, metavar="N", help="pictures per prompt; default: %(default)s"
    )
    add_pictures(parser.add_argument_group("other pictures"))
    add_large(parser.add_argument_group("large pictures"))
    add_machine(parser.add_argument_group("models and machine"), spread=True)
    add_quiet(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add the options of `instantstyle batch`."""
    parser.add_argument(
        "manifest", metavar="MANIFEST", help="the table: .csv with a header, or .jsonl; its paths start from here"
    )
    parser.add_argument("-o", "--output", default="batch", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--sheet", metavar="FILE", help="also show all pictures on one sheet (.png)")
    parser.add_argument(
        "--batch-size", type=count, default=4, metavar="N", help="pictures made at a time; default: %(default)s"
    )
    add_style(parser.add_argument_group("style"), required=False)
    sampling = parser.add_argument_group("sampling")
    add_sampling(sampling)
    sampling.add_argument("--seed", type=seed, metavar="N", help="default: a random one for each picture")
    add_pictures(parser.add_argument_group("other pictures"))
    add_large(parser.add_argument_group("large pictures"))
    add_machine(parser.add_argument_group("models and machine"), spread=True)
    add_quiet(parser)
    parser.set_defaults(num_images=1)


def add_style(group: argparse._ArgumentGroup, required: bool) -> None:
    """Add what to take from the reference, and what to leave."""
    group.add_argument(
        "--style", required=required, metavar="FILE", help="the reference picture, or a style file (.safetensors)"
    )
    add_content(group)
    group.add_argument("--scale", type=number, default=1.0, metavar="X", help="strength; default: %(default)s")


def add_content(group: argparse._ArgumentGroup) -> None:
    """Add what to remove from the reference, and where it is seen."""
    group.add_argument(
        "--content", type=words, metavar="TEXT", help='what the reference shows and must not return, as in "a star"'
    )
    group.add_argument(
        "--content-scale",
        type=content_scale,
        default=1.0,
        metavar="X",
        help='a number or "auto"; default: %(default)s',
    )
    group.add_argument(
        "--target-blocks",
        action="extend",
        type=targets,
        metavar="NAME[=SCALE],...",
        help="presets or attention blocks that see the reference; may be repeated; default: style",
    )


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Add what steers the sampler."""
    group.add_argument("--negative", metavar="TEXT", help="negative prompt")
    group.add_argument("--steps", type=count, metavar="N", help=f"default: {STEPS}, or what --fast says")
    group.add_argument("--guidance", type=number, metavar="X", help=f"default: {GUIDANCE}, or what --fast says")
    group.add_argument(
        "--fast",
        choices=DISTILLED,
        metavar="NAME",
        help=f"paint in few steps, with the weights and settings of {', '.join(DISTILLED)}",
    )
    group.add_argument(
        "--fast-weights",
        metavar="WHERE",
        help="a LoRA or a UNet in place of the published one: a file, or FOLDER_OR_REPOSITORY[:SUBFOLDER/FILE]",
    )
    group.add_argument(
        "--size", type=size, metavar="WxH", help="in pixels, or one number for a square; default: the model's"
    )


def add_pictures(group: argparse._ArgumentGroup) -> None:
    """Add the pictures that make it image-to-image, inpainting or ControlNet."""
    group.add_argument("--image", metavar="FILE", help="start from this picture")
    group.add_argument("--mask", metavar="FILE", help="repaint only the white part of this mask of --image")
    group.add_argument("--strength", type=fraction, metavar="X", help="how much of --image to change, 0 to 1")
    group.add_argument("--controlnet", metavar="MODEL", help='a folder, a Hub repository, or "tiny"')
    group.add_argument("--control-image", metavar="FILE", help="the ControlNet's picture, such as edges")
    group.add_argument("--controlnet-scale", type=number, metavar="X", help="strength of the ControlNet")


def add_large(group: argparse._ArgumentGroup) -> None:
    """Add what helps beyond the size that the model was trained on."""
    group.add_argument("--hires", action="store_true", help="paint a large --size in one pass, by HiDiffusion")
    group.add_argument(
        "--upscale", type=enlargement, metavar="X", help="paint, enlarge by X, and paint over in the same style"
    )
    group.add_argument(
        "--upscale-strength", type=fraction, metavar="X", help="how much is painted over, 0 to 1; default: 0.3"
    )
    group.add_argument("--vae-tiling", action="store_true", help="decode in tiles, which takes less memory")


def add_machine(group: argparse._ArgumentGroup, spread: bool = False) -> None:
    """Add which models run, and where; with `spread` also over several devices."""
    add_model(group)
    group.add_argument(
        "--adapter",
        metavar="WHERE",
        help="IP-Adapter: a file, or FOLDER_OR_REPOSITORY[:SUBFOLDER/FILE]; default: the model's, or its family's",
    )
    group.add_argument(
        "--content-encoder",
        metavar="MODEL",
        help="text tower for --content, where the model's own does not match the adapter",
    )
    group.add_argument("--device", metavar="NAME", help="default: cuda or mps where there is one, else cpu")
    group.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on cuda, else float32"
    )
    group.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="keep what is not running out of the accelerator's memory; default: %(default)s",
    )
    if spread:
        group.add_argument(
            "--device-map", choices=("balanced",), help="spread a model that is too large for one device over all"
        )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option to show no progress."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def add_model(parser: argparse._ActionsContainer) -> None:
    """Add the option that all commands share."""
    parser.add_argument(
        "--model",
        default="tiny",
        metavar="WHERE",
        help="a folder, a .safetensors file, a Hub repository, or the embedded checkpoint; default: %(default)s",
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
        "find what each attention block carries",
        "Let one attention block at a time see the reference, and all but one; propose presets. Where "
        "the model folder has judges (the embedded checkpoint), they say what each block carries. With "
        "--reference and --prompt, the pipeline's own CLIP towers score instead, which is a proxy: "
        "likeness to the reference counts its content and layout as well as its style.",
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
"""Name -> what adds its options, what the list of commands says of it, and what its own help says."""

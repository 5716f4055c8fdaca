"""Options: the fields of requests and machines as the command line writes them, and how they are read back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic.fields import FieldInfo

from instantstyle.inference.request import FIELD, Machine, Request, Value, told, worded
from instantstyle.inference.values import kind_of, read, write_targets


STYLE = ("style", "reference_fit", "content", "content_scale", "target_blocks", "scale")
SAMPLING = ("negative", "steps", "guidance", "size", "seed")
PICTURES = ("image", "mask", "strength", "control_image", "edges", "controlnet_scale")
LARGE = ("hires", "upscale", "upscale_strength")
MODELS = ("model", "adapter", "content_encoder", "device", "dtype", "offload")


def option(name: str) -> str:
    """Write a field as it is typed."""
    return "PROMPT" if name == "prompt" else "--" + name.replace("_", "-")


def add(parser: argparse._ActionsContainer, value: type[Value], *names: str, **defaults: Any) -> None:
    """Add options for fields. Those that are not typed are left out, unless they have a default here.

    Args:
        parser: Where to.
        value: `Request` or `Machine`.
        names: The fields.
        defaults: In place of their own, where a command has others.
    """
    for name in names:
        field = value.model_fields[name]
        kind = kind_of(field)
        kept = {"default": defaults.get(name, argparse.SUPPRESS), "help": described(field, defaults.get(name))}
        if kind.metavar is None:
            parser.add_argument(option(name), action=argparse.BooleanOptionalAction, **kept)
        else:
            action = "append" if kind.repeated else "store"
            parser.add_argument(option(name), action=action, metavar=kind.metavar, **kept)


def described(field: FieldInfo, default: Any) -> str:
    """Write what a field means, for help; `default` stands in the place of its own."""
    text = worded(str(field.description), option)
    if default is not None:
        text = text.partition("default:")[0].removesuffix("; ")
    written = written_default(field.default if default is None else default)
    return "; ".join(filter(None, (text, written)))


def written_default(default: Any) -> str:
    """Write what stands in where an option is not typed, for help; nothing where that says nothing."""
    if default is None or default is False or default == ():
        return ""
    return f"default: {write_targets(default) if isinstance(default, tuple) else default}"


def add_style(parser: argparse.ArgumentParser) -> None:
    """Add what to take from the reference, and what to leave."""
    add(parser.add_argument_group("style"), Request, *STYLE)


def add_painting(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add all that decides a picture. Gives the group of what steers the sampler."""
    add_style(parser)
    sampling = parser.add_argument_group("sampling")
    add(sampling, Request, *SAMPLING)
    add(sampling, Machine, "fast", "fast_weights")
    pictures = parser.add_argument_group("other pictures")
    add(pictures, Request, *PICTURES)
    add(pictures, Machine, "controlnet")
    large = parser.add_argument_group("large pictures")
    add(large, Request, *LARGE)
    add(large, Machine, "vae_tiling")
    add_machine(parser, "device_map")
    return sampling


def add_machine(parser: argparse.ArgumentParser, *more: str) -> argparse._ArgumentGroup:
    """Add which models run, and where, and how much is told meanwhile."""
    group = parser.add_argument_group("models and machine")
    add(group, Machine, *MODELS, *more)
    return group


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option to show no progress."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def typed(options: argparse.Namespace, value: type[Value]) -> dict[str, Any]:
    """Return the fields that were typed."""
    return {name: text for name, text in vars(options).items() if name in value.model_fields}


def machine(options: argparse.Namespace) -> Machine:
    """Read where to paint."""
    return Machine(**typed(options, Machine))


def of(kind: Any) -> Callable[[str], Any]:
    """Return what reads an option of a kind that is no field."""

    def reader(text: str) -> Any:
        try:
            return read(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(told(error)) from error

    return reader


@contextmanager
def called(**words: str) -> Iterator[None]:
    """Write arguments that are no fields as they are typed, where an error names them.

    Args:
        words: Argument -> what is typed for it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(FIELD.sub(lambda found: words.get(found[1], found[0]), told(error))) from error

"""The house: imports run down through its layers and never in a circle, and no module is too long to take in."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest


HOUSE = Path(__file__).parents[1] / "instantstyle"
FLOORS = [
    ["core", "files", "console", "identity", "version"],
    ["styles", "pipelines", "tiny"],
    ["inference"],
    ["lab", "hub", "demo"],
    ["commands"],
    ["", "__main__", "pipeline"],  # the package itself, which nobody below imports
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_LOOSE, MOST_LINES = 10, 450

Imports = set[tuple[str, str]]
"""Modules, and the names that are taken from them; our own modules without `instantstyle` in front."""


def module_of(file: Path) -> str:
    """Name a module by its place in the house; the house itself has no name."""
    return ".".join(file.relative_to(HOUSE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


FILES = {module_of(file): file for file in sorted(HOUSE.rglob("*.py"))}


def imports_of(module: str, code: str) -> Iterator[tuple[str, str]]:
    """Give what a module imports, at its top and in its functions."""
    names = ["instantstyle", *module.split(".")]
    package = ".".join(names if FILES[module].name == "__init__.py" else names[:-1]).rstrip(".")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            own = source.removeprefix("instantstyle").lstrip(".") if source.startswith("instantstyle") else source
            for alias in node.names:
                below = f"{own}.{alias.name}".lstrip(".")
                yield (below, "") if below in FILES else (own, alias.name)


@pytest.fixture(scope="module")
def found() -> dict[str, Imports]:
    """Read what every module imports."""
    return {module: set(imports_of(module, file.read_text("utf-8"))) for module, file in FILES.items()}


def upwards(found: dict[str, Imports]) -> list[tuple[str, str]]:
    """Name the imports from a floor that is not below."""
    pairs = [(one, other) for one, imports in found.items() for other, _ in imports if other in FILES]
    rooms = [(one, other, one.partition(".")[0], other.partition(".")[0]) for one, other in pairs]
    return [(one, other) for one, other, a, b in rooms if a != b and FLOOR[b] >= FLOOR[a]]


def circle(found: dict[str, Imports]) -> list[str]:
    """Name the modules of a circle of imports, if there is one."""
    graph = {one: {other for other, _ in imports if other in FILES} - {one} for one, imports in found.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def private(found: dict[str, Imports]) -> list[tuple[str, str]]:
    """Name what is taken from another module although its name says that it is not for others."""
    ours = {*FILES, "pipeline_instantstyle"}
    taken = [(one, name) for one, imports in found.items() for other, name in imports if other in ours]
    return [(one, name) for one, name in taken if name.startswith("_") and not name.endswith("__")]


def argparse(found: dict[str, Imports]) -> list[str]:
    """Name the modules outside of the commands that know how words of a command line are read."""
    known = {one for one, imports in found.items() if any(other == "argparse" for other, _ in imports)}
    return sorted(one for one in known if one.partition(".")[0] != "commands")


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        (upwards, ("core.blocks", "from instantstyle import files")),
        (upwards, ("styles.style", "def f():\n    from instantstyle.inference.models import find_model")),
        (upwards, ("lab.ablation", "from ..demo import page")),
        (upwards, ("inference.models", "import instantstyle\nfrom instantstyle import Style")),
        (circle, ("styles.provenance", "from .style import Style")),
        (private, ("styles.describe", "from instantstyle.styles.file import _name")),
        (private, ("inference.session", "from pipeline_instantstyle import _name")),
        (argparse, ("styles.style", "import argparse")),
    ],
)
def test_the_rules_hold(
    rule: Callable[[dict[str, Imports]], list], planted: tuple[str, str], found: dict[str, Imports]
) -> None:
    module, line = planted
    assert rule(found) == []
    assert module in str(rule({**found, module: found[module] | set(imports_of(module, line))}))


def test_every_room_has_its_floor_and_few_modules_are_loose() -> None:
    assert {module.partition(".")[0] for module in FILES} == FLOOR.keys()
    assert len([module for module in FILES if "." not in module and FILES[module].parent == HOUSE]) <= MOST_LOOSE


def test_no_module_is_long() -> None:
    lines = {module: len(file.read_text("utf-8").splitlines()) for module, file in FILES.items()}
    assert [module for module, count in lines.items() if count > MOST_LINES] == []
    assert max(lines.values()) > MOST_LINES / 2  # they are counted

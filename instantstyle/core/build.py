"""Joins the core's modules into the plugin's one file: `python -m instantstyle.core.build`; `--check` only compares.

Each module becomes a section under its docstring. Imports of libraries are merged, imports of each other are dropped.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path


HERE = Path(__file__).parent
FILE = HERE.parents[1] / "pipeline_instantstyle.py"
MODULES = (
    *("blocks", "nesting", "fit", "private", "checkpoint", "processors", "offloading", "services", "adapter"),
    *("content", "loading", "targets", "call", "hosts", "pipeline"),
)
WIDTH = 119
HEADER = """\
# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
# Joined from the modules in instantstyle/core by `python -m instantstyle.core.build`: edit those, not this file.
"""


def join() -> str:
    """The text of the plugin's one file.

    Raises:
        ValueError: two modules define one name, or one imports what is neither a library's nor defined before it.
    """
    homes: dict[str, str] = {}
    imports: set[tuple[str, str]] = set()
    sections = []
    for module in MODULES:
        text = (HERE / f"{module}.py").read_text("utf-8")
        tree = ast.parse(text)
        above = [node for node in tree.body[1:] if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in above:
            imports |= _imported(node, homes)
        for name in _defined(tree.body):
            if homes.setdefault(name, module) != module:
                raise ValueError(f"{module}.py defines {name!r}, which {homes[name]}.py defines too.")
        body = "\n".join(text.splitlines()[above[-1].end_lineno :]).strip()
        sections.append(f"{_heading(ast.get_docstring(tree) or module)}\n\n\n{body}\n")
    about = (HERE / "__init__.py").read_text("utf-8").split('"""')[1]
    return f'{HEADER}"""{about}"""\n\n{_merged(imports)}\n\n' + "\n\n".join(sections)


def _imported(node: ast.Import | ast.ImportFrom, homes: Mapping[str, str]) -> set[tuple[str, str]]:
    """The (module, name) pairs of an import of libraries; none of one of our own modules, which is checked."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return {("", name) for name in names}
    if not node.level:
        return {(node.module or "", name) for name in names}
    for name in names:
        if homes.get(name) != node.module:
            raise ValueError(f"{name!r} is imported from {node.module}.py, which does not come before.")
    return set()


def _defined(statements: Iterable[ast.stmt]) -> list[str]:
    names = []
    for node in statements:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
        names += [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
    return names


def _heading(docstring: str) -> str:
    title, *rest = docstring.splitlines()
    start = f"# --- {title.removesuffix('.')} "
    return "\n".join([start.ljust(WIDTH, "-"), *(f"# {line}".rstrip() for line in rest if line)])


def _merged(imports: set[tuple[str, str]]) -> str:
    groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for module in sorted({module or name for module, name in imports}):
        names = sorted({name for home, name in imports if home == module}, key=_isorted)
        top = module.partition(".")[0]
        group = groups[0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 2]
        group += [f"import {module}"] if ("", module) in imports else []
        group += [_from(module, names)] if names else []
    ordered = [sorted(group, key=lambda line: line.startswith("from")) for group in groups.values()]
    return "\n\n".join("\n".join(group) for group in ordered) + "\n"


def _isorted(name: str) -> tuple[int, str]:
    # As ruff sorts: constants, classes, the rest.
    return (0 if name.isupper() else 1 if name.lstrip("_")[:1].isupper() else 2), name


def _from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= WIDTH else f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"


def main(words: list[str]) -> None:
    """Write the file, or with `--check` raise SystemExit where it is not what `join` gives."""
    if words != ["--check"]:
        FILE.write_text(join(), "utf-8", newline="\n")
    elif FILE.read_text("utf-8") != join():
        raise SystemExit(f"{FILE.name} is not what the core's modules give: run `python -m instantstyle.core.build`.")


if __name__ == "__main__":
    main(sys.argv[1:])

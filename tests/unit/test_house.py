"""The house: which room may use which, and how large it may grow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LIBRARY = PROJECT / "workflow" / "scripts" / "video_pipeline"
PAGE = PROJECT / "docs" / "internals.md"

ROOMS = [
    room
    for cell in re.findall(r"^\| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for room in re.findall(r"`(\w+)(?:/|\.py)`", cell)
]
"""The table of the page, whose first is what all others use: a room uses those above it."""

MODULE_LINES = 400
LIBRARY_LINES = 30_070
"""Ceilings. Before you raise one, look for lines that may go."""


def modules() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports(path: Path, *, only_at_start: bool) -> Iterator[str]:
    """The modules that a file imports, but for type hints; ``only_at_start``: when it is imported
    itself, and not within its functions."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if only_at_start and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_this_library(path: Path) -> set[str]:
    """The rooms that a file uses."""
    names = imports(path, only_at_start=False)
    own = {name.removeprefix("video_pipeline.") for name in names if "video_pipeline." in name}
    return {room_of(name) for name in own} & set(ROOMS)


def test_the_table_of_the_page_lists_every_room():
    folders = {path.name for path in LIBRARY.iterdir() if (path / "__init__.py").exists()}
    assert set(ROOMS) == {"errors", *folders}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_uses_those_above_it(path):
    if (name := name_of(path)) in ("", "__main__", "api", "retry", "watch", "preview", "scenes"):
        return  # doors to the rooms
    if name in ("journal.__main__", "samples.__main__"):
        return
    here = ROOMS.index(room_of(name))
    above = {room for room in of_this_library(path) if ROOMS.index(room) > here}
    assert not above


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_engine_imports_vllm(path):
    uses = {name.split(".")[0] for name in imports(path, only_at_start=False)}
    assert "vllm" not in uses or name_of(path).startswith("engine.vllm")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_light_rooms_load_nothing_heavy(path):
    if room_of(name_of(path)) in ("errors", "common", "config", "journal", "run", "output"):
        uses = {name.split(".")[0] for name in imports(path, only_at_start=True)}
        assert not uses & {"torch", "transformers", "pandas", "pyarrow", "av", "qwen_vl_utils"}


def test_no_modules_import_each_other_in_a_circle():
    names = {name_of(path): path for path in modules()}
    graph = {
        name: {
            used.removeprefix("video_pipeline.")
            for used in imports(path, only_at_start=False)
            if used.removeprefix("video_pipeline.") in names
        }
        for name, path in names.items()
    }
    TopologicalSorter(graph).prepare()  # Raises CycleError, which names the circle.


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_can_be_read_at_once(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES


def test_the_library_does_not_grow():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules())
    assert lines <= LIBRARY_LINES, "look for lines that may go, before you raise LIBRARY_LINES"

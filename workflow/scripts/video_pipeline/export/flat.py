"""Flat columns: ``path`` and ``error_stage`` instead of ``input.path`` and ``__error.stage``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pyarrow as pa

_INPUT = "input"


def flat_names(paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The name of each column by the path of its field in a record, in the order of ``paths``.

    The fields that every record has get their names first, then those of the answer, then those of
    the input. If a name is taken, a field of the input is called ``input_<name>``; if that is taken
    too, it gets a number.
    """
    ordered = list(paths)
    names: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for path in sorted(ordered, key=_rank):
        name = wished = _joined(path)
        if name in taken and path[0] == _INPUT:
            name = wished = f"{_INPUT}_{wished}"
        number = count(2)
        while name in taken:
            name = f"{wished}_{next(number)}"
        names[path] = name
        taken.add(name)
    return {path: names[path] for path in ordered}


def _rank(path: tuple[str, ...]) -> int:
    """0 for a field of the contract, 1 for one of the answer, 2 for one of the input."""
    if path[0] == _INPUT:
        return 2
    return 0 if path[0].startswith("__") or path[0] == "output_text" else 1


def _joined(path: tuple[str, ...]) -> str:
    first, *inner = path
    if inner and first in (_INPUT, "__usage"):
        return "_".join(inner)
    return "_".join([first.removeprefix("__"), *inner])


def flattened(table: pa.Table, names: list[str]) -> pa.Table:
    """``table`` with the fields of its structs, at any depth, as columns called ``names``."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table.rename_columns(names)

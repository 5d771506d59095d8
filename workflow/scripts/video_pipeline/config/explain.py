"""Explains the mistakes in a configuration, in lines for people."""

from __future__ import annotations

from typing import Any, TypeGuard

from pydantic import ValidationError

from video_pipeline.common.suggest import did_you_mean
from video_pipeline.config.section import Section
from video_pipeline.config.short import SHORT_NAMES

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "model_type": "keys and values",
    "dict_type": "keys and values",
}
"""What the types of pydantic's errors expect. For other types pydantic's own words are used."""


def explain(error: ValidationError, model: type[Section]) -> list[str]:
    """One line for every mistake that ``model`` has found; the branches of a union share a line. An
    unknown key comes with the nearest known key, a wrong value with what was expected."""
    expected: dict[tuple[str, str], list[str]] = {}
    lines = []
    for detail in error.errors():
        place, section = _place(detail["loc"], model)
        if detail["type"] == "extra_forbidden":
            lines.append(_unknown_key(place, section))
        elif detail["type"] == "value_error":
            lines.append(detail["msg"].removeprefix("Value error, "))
        else:
            wish = _EXPECTED.get(detail["type"], detail["msg"].removeprefix("Input should be "))
            expected.setdefault((".".join(place), repr(detail["input"])), []).append(wish)
    lines += [
        f"{where}: got {value}, expected {' or '.join(wishes)}"
        for (where, value), wishes in expected.items()
    ]
    return lines


def _unknown_key(place: list[str], section: type[Section]) -> str:
    *parents, name = place
    known = [*section.model_fields, *(() if parents else SHORT_NAMES)]
    hint = did_you_mean(name, known, lambda near: repr(".".join([*parents, near])))
    outer, _, inner = name.partition(".")
    if inner and outer in section.model_fields:
        hint = f"; write `{inner}:` indented below `{outer}:`"
    return f"{'.'.join(place)}: unknown key{hint} (known: {', '.join(known)})"


def _place(steps: tuple[str | int, ...], model: type[Section]) -> tuple[list[str], type[Section]]:
    """The keys in pydantic's path of an error, and the section that holds the last of them.

    The path also has steps for the branches of unions, such as ``literal['auto']``, which are no
    keys.
    """
    place: list[str] = []
    section = model
    annotation: Any = model
    for step in steps:
        if is_section(annotation):
            section = annotation
            place.append(str(step))
            field = section.model_fields.get(str(step))
            annotation = field.annotation if field else None
        elif isinstance(step, int):
            place.append(str(step))
    return place, section


def is_section(annotation: Any) -> TypeGuard[type[Section]]:
    """Whether the type of a field is a section of its own."""
    return isinstance(annotation, type) and issubclass(annotation, Section)

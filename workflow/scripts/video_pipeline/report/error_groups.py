"""Groups errors whose messages differ only in names, paths and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_GROUPS = 100
"""Groups of errors, at most; all other errors share the last group."""

EXAMPLES = 3
"""Different messages that a group shows."""

ELLIPSIS = "…"
"""Stands for a part of a message that differs from sample to sample."""

_OWN = "\0"
"""Stands for the sample's own key and path, which may hold spaces."""

_SHORTEST_OWN = 3
"""Shorter keys and paths are not replaced: they may be a part of any word."""

_VARYING = re.compile(
    r"""(?<!\w)'[^'\n]*'(?!\w)|"[^"\n]*"|[^\s,;()]*[\d/\\\0](?:[^\s,;()]*[^\s,;():.])?"""
)
"""The parts that may differ in two messages of a group: quoted text, numbers, paths."""


@dataclass
class ErrorGroup:
    """Errors of one stage and type with the same message.

    Attributes:
        number: The number of the group, from 0, in the order of the output.
        message: The message, with :data:`ELLIPSIS` where the errors differ.
        count: How many samples have such an error.
        examples: Key and message of the first samples, each message once.
    """

    number: int
    stage: str
    type: str
    message: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


class ErrorGroups:
    """The groups of all errors that were added."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], ErrorGroup] = {}
        self._values: dict[int, list[str | None]] = {}  # None: they differ

    def add(self, error: dict[str, str], key: str, path: str) -> ErrorGroup:
        """Count the ``error`` (its stage, type and message) of the sample ``key``, whose video is
        in ``path``, and return its group."""
        message = error["message"]
        words, values = _taken_apart(message, (path, key))
        name: tuple[str, ...] = (error["stage"], error["type"], *words)
        if name not in self._groups and len(self._groups) >= MOST_GROUPS - 1:
            name, words, values = ("other", "", "other errors"), ["other errors"], []
        if name not in self._groups:
            self._groups[name] = ErrorGroup(len(self._groups), name[0], name[1], message)
            self._values[self._groups[name].number] = list(values)
        group = self._groups[name]
        group.count += 1
        if message != group.message:
            known = self._values[group.number]
            known[:] = [v if v == new else None for v, new in zip(known, values, strict=True)]
            group.message = _joined(words, known)
        if len(group.examples) < EXAMPLES and all(message != other for _, other in group.examples):
            group.examples.append((key, message))
        return group

    def by_count(self) -> list[ErrorGroup]:
        """The groups, the largest first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)


def _taken_apart(message: str, own: Iterable[str]) -> tuple[list[str], list[str]]:
    """The parts that messages of a group share, and the texts between them."""
    for text in own:
        if len(text) >= _SHORTEST_OWN:
            message = message.replace(text, _OWN)
    return _VARYING.split(message), _VARYING.findall(message)


def _joined(words: list[str], values: list[str | None]) -> str:
    """The message, with the ``values`` that are the same in all errors."""
    shown = [ELLIPSIS if value is None or _OWN in value else value for value in values]
    return "".join(text for pair in zip(words, [*shown, ""], strict=True) for text in pair)

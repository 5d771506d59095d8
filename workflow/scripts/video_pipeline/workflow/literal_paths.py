"""Lets Snakemake take the user's paths literally. It takes ``{name}`` in a path for a wildcard and
``<name>`` for a path variable, and has no way to escape them. A run in a folder ``run {x}`` would
fail, or Snakemake would delete files that it cannot find again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from video_pipeline.errors import UserError
from video_pipeline.workflow.snakemake_internals import Pattern, is_literal, replace_patterns

_MARKS = "{}<>"

_OWN = ("rank{rank}.jsonl", "infer.rank{rank}.log")
"""The workflow's own names with a real wildcard."""


def take_literally(paths: Iterable[Path | str]) -> None:
    """Let this Snakemake take the parts of ``paths``, and the same parts of other paths, for text.
    If no path holds a brace or an angle bracket, nothing changes.

    Raises :class:`UserError` for a path that this Snakemake still would not take literally.
    """
    literals = {text for path in paths for text in _marked(path)}
    if not literals:
        return
    for text in sorted(literals):
        if any(name.startswith(text) for name in _OWN):
            raise UserError(f"the path part {text!r} is one of the workflow's own: rename it")
    replace_patterns(lambda pattern: _Except(pattern, literals))
    for text in sorted(literals):
        if not is_literal(text):
            raise UserError(
                f"the path part {text!r}: this version of Snakemake would take a part of it for a "
                "wildcard; rename it without {}<>"
            )


def _marked(path: Path | str) -> Iterator[str]:
    """The parts of a path that hold a mark, each up to its last mark: the names of files beside it
    have the same start."""
    for part in str(path).split("/"):
        if end := max(map(part.rfind, _MARKS)) + 1:
            yield part[:end]


class _Except:
    """A :class:`Pattern` without the matches within ``literals`` that start a part of a path."""

    def __init__(self, pattern: Pattern, literals: Iterable[str]) -> None:
        self._pattern = pattern
        longest_first = sorted(literals, key=len, reverse=True)
        self._literals = re.compile(f"(?<![^/])(?:{'|'.join(map(re.escape, longest_first))})")

    def finditer(self, text: str, /) -> Iterator[re.Match[str]]:
        spans = [literal.span() for literal in self._literals.finditer(text)]
        for match in self._pattern.finditer(text):
            if not any(begin <= match.start() < end for begin, end in spans):
                yield match

    def search(self, text: str, /) -> re.Match[str] | None:
        return next(self.finditer(text), None)

    def sub(self, replace: Callable[[re.Match[str]], str], text: str, /) -> str:
        pieces, end = [], 0
        for match in self.finditer(text):
            pieces += [text[end : match.start()], replace(match)]
            end = match.end()
        return "".join([*pieces, text[end:]])

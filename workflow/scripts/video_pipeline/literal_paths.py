"""Literal paths: Snakemake takes ``{name}`` in a path for a wildcard and ``<name>`` for a path
variable, and knows no way to write such a text down. A run in a folder ``run {x}`` would die, or
Snakemake would delete files that it cannot find again.

Imported while Snakemake parses the workflow: keep it light.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from video_pipeline.errors import UserError

_MARKS = "{}<>"

_OWN = ("rank{rank}.jsonl", "infer.rank{rank}.log")
"""Names of the workflow's own, in which the wildcard is one."""


def take_literally(paths: Iterable[Path | str]) -> None:
    """Let this Snakemake take what stands in ``paths``, and in the same place of other paths, for
    text. Where no path holds a mark, nothing changes.

    Raises :class:`UserError` for a path that this Snakemake would not take literally all the same.
    """
    literals = {text for path in paths for text in _marked(path)}
    if not literals:
        return
    for text in sorted(literals):
        if any(name.startswith(text) for name in _OWN):
            raise UserError(f"the path part {text!r} is one of the workflow's own: rename it")
    try:  # no public part of Snakemake does this
        from snakemake import io, pathvars

        io.WILDCARD_REGEX = _Except(io.WILDCARD_REGEX, literals)
        pathvars.PATHVAR_REGEX = _Except(pathvars.PATHVAR_REGEX, literals)
        taken = [text for text in literals if not _is_literal(text, io, pathvars)]
    except (ImportError, AttributeError):
        taken = list(literals)
    if taken:
        raise UserError(
            f"the path part {taken[0]!r}: this version of Snakemake would take a part of it for a "
            "wildcard; rename it without {}<>"
        )


def _is_literal(text: str, io: Any, pathvars: Any) -> bool:
    applied = pathvars.Pathvars.with_defaults().apply(text)
    return applied == text and not io.contains_wildcard(text)


def _marked(path: Path | str) -> Iterator[str]:
    """The parts of a path that hold a mark, each up to its last one: files beside it begin like
    that, too."""
    for part in str(path).split("/"):
        end = max(map(part.rfind, _MARKS)) + 1
        if end:
            yield part[:end]


class _Except:
    """A compiled pattern that finds nothing where one of some literals begins a part of a path. It
    has the methods that Snakemake calls."""

    def __init__(self, pattern: Any, literals: Iterable[str]) -> None:
        self._pattern = pattern
        longest_first = sorted(literals, key=len, reverse=True)
        self._literals = re.compile(f"(?<![^/])(?:{'|'.join(map(re.escape, longest_first))})")

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        spans = [literal.span() for literal in self._literals.finditer(text)]
        for match in self._pattern.finditer(text):
            if not any(begin <= match.start() < end for begin, end in spans):
                yield match

    def search(self, text: str) -> re.Match[str] | None:
        return next(self.finditer(text), None)

    def sub(self, replace: Callable[[re.Match[str]], str], text: str) -> str:
        pieces, end = [], 0
        for match in self.finditer(text):
            pieces += [text[end : match.start()], replace(match)]
            end = match.end()
        return "".join([*pieces, text[end:]])

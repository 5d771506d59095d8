"""Makes text from outside, such as a sample's key or an error, safe for terminal, log and page."""

from __future__ import annotations

import copy
import logging
import re
from numbers import Number

_ACTIVE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that act instead of being shown: controls, characters that change the direction of the
text, and surrogates. Joiners and wide spaces are not among them: many languages need them."""


def printable(value: object, newlines: bool = True) -> str:
    """``str(value)``, with the characters that act on a terminal or a page escaped as ``repr`` does
    it. ``newlines``: newlines and tabs stay, and those of Windows become those of Linux."""
    kept = "\n\t" if newlines else ""
    text = str(value).replace("\r\n", "\n") if newlines else str(value)
    return _ACTIVE.sub(lambda match: match[0] if match[0] in kept else repr(match[0])[1:-1], text)


class PrintableFormatter(logging.Formatter):
    """Escapes the arguments of a log line, so that none of them can end the line, forge another
    one, or move the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped, record.args))
        elif record.args:
            record.args = {name: _escaped(value) for name, value in record.args.items()}
        return super().format(record)


def _escaped(value: object) -> object:
    """``value`` itself if it is a number, which may be formatted as one."""
    return value if isinstance(value, Number) else _Escaped(value)


class _Escaped:
    """Stands for a value that is escaped wherever it is written as text."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(self._value, newlines=False)

    def __repr__(self) -> str:
        return printable(repr(self._value), newlines=False)

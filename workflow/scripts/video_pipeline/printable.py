"""Text from outside, such as a sample's key or an error, made safe for a terminal and a log."""

from __future__ import annotations

import copy
import logging
from numbers import Number


def printable(value: object, newlines: bool = True) -> str:
    """``str(value)`` with all that is not printable (control characters, those that reverse the
    direction of text, lone surrogates) escaped as ``repr`` does it; ``newlines`` may stay."""
    kept = "\n" if newlines else ""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in str(value))


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

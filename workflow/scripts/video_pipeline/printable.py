"""Text from outside, such as a sample's key or an error, made safe for terminal, log and page."""

from __future__ import annotations

import re

_ACTIVE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that act instead of being shown: controls, those that turn the direction of the text
around, and halves of characters. Joiners and wide spaces are not among them: many languages are
written with them."""


def printable(value: object, newlines: bool = True) -> str:
    """``str(value)`` with the characters that act on a terminal or a page escaped as ``repr`` does
    it. ``newlines`` and tabs may stay; then the newline of Windows becomes one of Linux."""
    kept = "\n\t" if newlines else ""
    text = str(value).replace("\r\n", "\n") if newlines else str(value)
    return _ACTIVE.sub(lambda match: match[0] if match[0] in kept else repr(match[0])[1:-1], text)

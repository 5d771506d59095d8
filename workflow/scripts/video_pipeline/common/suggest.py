"""The known name that an unknown one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """``; did you mean 'describe'?`` for the name in ``known`` that is most like ``name``, empty if
    none is like it; ``show`` writes that name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {show(close[0])}?" if close else ""

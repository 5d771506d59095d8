"""Suggests the known name that an unknown name probably stands for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """``; did you mean 'describe'?`` with the name in ``known`` that is most like ``name``, as
    ``show`` writes it; empty if none is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {show(close[0])}?" if close else ""

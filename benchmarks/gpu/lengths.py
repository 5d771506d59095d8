"""The length of each answer: the same lengths in the same order for all contenders.

Answers of one length come in bursts: requests that start together end together, and a rate that is
not counted over whole turnovers is wrong by 5 % and more. Real answers differ in length, too. So
the lengths spread evenly from half of their mean to one and a half times it, in an order in which
any few neighbours have that mean, too (steps of the golden ratio). A window of any length then
shows the rate within 1 % (seen in a model of vLLM's scheduler).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

GOLDEN = (5**0.5 - 1) / 2


def lengths(mean: int) -> Iterator[int]:
    """Tokens of the first answer, of the second, and so on; all ``mean`` with ``BENCH_EQUAL=1``."""
    if os.environ.get("BENCH_EQUAL"):
        return itertools.repeat(mean)
    shortest = mean // 2
    spread = 2 * (mean - shortest) + 1
    return (shortest + int(number * GOLDEN % 1 * spread) for number in itertools.count())


def longest(mean: int) -> int:
    """The largest number that :func:`lengths` gives."""
    return mean if os.environ.get("BENCH_EQUAL") else mean + (mean - mean // 2)

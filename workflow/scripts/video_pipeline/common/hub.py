"""Repeats requests to a busy Hugging Face hub: its own client repeats only some of them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from video_pipeline.common.faults import is_environment_fault, is_unreachable

logger = logging.getLogger(__name__)

WAITS = (5.0, 20.0, 60.0)
"""Seconds before each new attempt. There is only one if the hub cannot be reached."""

_Answer = TypeVar("_Answer")


def ask_hub(ask: Callable[[], _Answer], subject: str) -> _Answer:
    """Return the answer of ``ask``, which is called again while the hub or the network is at fault.

    Raises what the last ``ask`` raises. The errors of the hub's client differ between its versions.
    """
    for attempt, seconds in enumerate(WAITS):
        try:
            return ask()
        except Exception as error:
            if not is_environment_fault(error) or (attempt and is_unreachable(error)):
                raise
            words = hub_words(error)
            logger.warning("%s: %s. The hub is asked again in %g s", subject, words, seconds)
            time.sleep(seconds)
    return ask()


def hub_words(error: Exception) -> str:
    """What the hub's client says, without its own exceptions' names and its advice."""
    return re.sub(r"^Got: \w+: ", "", str(error)).partition("\n")[0].rstrip(".")

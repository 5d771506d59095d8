"""Repeats requests to a busy Hugging Face hub: its own client repeats only some of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from video_pipeline.common.faults import is_environment_fault

logger = logging.getLogger(__name__)

WAITS = (5.0, 20.0, 60.0)
"""Seconds before each new attempt."""

_Answer = TypeVar("_Answer")


def ask_hub(ask: Callable[[], _Answer], subject: str) -> _Answer:
    """Return the answer of ``ask``, which is called again while the hub or the network is at fault.

    Raises what the last ``ask`` raises. The errors of the hub's client differ between its versions.
    """
    for seconds in WAITS:
        try:
            return ask()
        except Exception as error:
            if not is_environment_fault(error):
                raise
            logger.warning("%s: %s. The hub is asked again in %g s", subject, error, seconds)
            time.sleep(seconds)
    return ask()

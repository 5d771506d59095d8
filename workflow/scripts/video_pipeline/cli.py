"""What the thin command lines in ``workflow/scripts`` share: logging, and errors for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from video_pipeline.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Run ``main`` as a program: log lines to stderr, a :class:`UserError` without a traceback.

    Exits with status 1 after a user's error; any other exception keeps its traceback.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)

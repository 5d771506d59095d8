"""Keeps the log of each attempt of a job.

Snakemake deletes the ``log:`` of a rule before each attempt. So the log gets a second name, which
Snakemake does not know: ``infer.rank3.log`` is that of the last attempt, and
``infer.rank3.attempt2.log`` stays.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
import sys
from itertools import count
from pathlib import Path

from video_pipeline.common.locks import describe, holder

MAX_ATTEMPTS = 10
"""The logs of this many attempts of a job are kept."""

ERROR = "error: "
"""If a job fails, the last words of its log begin with this."""

_TAIL_BYTES = 1 << 16


def begin_attempt(log: Path) -> Path:
    """Give ``log``, which takes this process's output, a second name for this attempt, and write a
    line about the attempt.

    Returns the absolute path with the second name, or of ``log`` if hard links are not supported.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()  # `tee` may not have made it yet.
    own = _link(log)
    moment = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    with open(log, "a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(f"=== {moment} on {describe(holder())}: {shlex.join(sys.argv)}\n")
    return own.absolute()


def last_error(log: Path) -> str | None:
    """The error that ended the last attempt that wrote to ``log``; None if the log names none."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return None
    _, mark, message = f"\n{text}".rpartition(f"\n{ERROR}")
    return message.strip() if mark else None


def _link(log: Path) -> Path:
    """Link ``log`` under the name of a new attempt, and remove the oldest ones."""
    earlier = _attempts(log)
    for attempt in count(max(earlier, default=0) + 1):
        own = log.with_name(f"{log.stem}.attempt{attempt}.log")
        try:
            own.hardlink_to(log)
        except FileExistsError:  # A second job of this rank has made it.
            continue
        except OSError:
            return log
        for old in sorted(earlier)[: max(0, len(earlier) + 1 - MAX_ATTEMPTS)]:
            earlier[old].unlink(missing_ok=True)
        return own
    raise AssertionError("count() does not end")


def _attempts(log: Path) -> dict[int, Path]:
    """The logs of earlier attempts, by number."""
    name = re.compile(rf"{re.escape(log.stem)}\.attempt(\d+)\.log")
    matches = ((name.fullmatch(path.name), path) for path in log.parent.iterdir())
    return {int(match[1]): path for match, path in matches if match}

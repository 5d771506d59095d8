"""Logs that survive: each attempt of a job keeps its own.

Snakemake deletes the ``log:`` of a rule before each attempt. So the log gets a second name, which
Snakemake does not know: ``infer.rank3.log`` is that of the last attempt, and
``infer.rank3.attempt2.log`` stays what it is.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
import socket
import sys
from itertools import count
from pathlib import Path

KEPT = 10
"""So many attempts of a job keep their logs."""

ERROR = "error: "
"""What the last words of a log begin with where the job failed."""

_TAIL_BYTES = 1 << 16


def begin(log: Path) -> Path:
    """Give ``log``, which this process's output goes to, a name of its own for this attempt, and
    write to it what this attempt is.

    Returns the name, as an absolute path; that of ``log`` where the file system has no hard links.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()  # `tee` may not have come to it yet
    own = _link(log)
    moment = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    job = os.environ.get("SLURM_JOB_ID")
    place = f"{socket.gethostname()}, process {os.getpid()}" + (f", SLURM job {job}" if job else "")
    with open(log, "a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(f"=== {moment} on {place}: {shlex.join(sys.argv)}\n")
    return own.absolute()


def last_error(log: Path) -> str | None:
    """What the last attempt that wrote to ``log`` failed of; None if it does not say."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return None
    _, found, message = f"\n{text}".rpartition(f"\n{ERROR}")
    return message.strip() if found else None


def _link(log: Path) -> Path:
    kept = _attempts(log)
    for number in count(max(kept, default=0) + 1):
        own = log.with_name(f"{log.stem}.attempt{number}.log")
        try:
            own.hardlink_to(log)
        except FileExistsError:  # a second job of this rank
            continue
        except OSError:
            return log
        for old in sorted(kept)[: max(0, len(kept) + 1 - KEPT)]:
            kept[old].unlink(missing_ok=True)
        return own
    raise AssertionError("there are always more numbers")


def _attempts(log: Path) -> dict[int, Path]:
    """The logs of earlier attempts, by number."""
    name = re.compile(rf"{re.escape(log.stem)}\.attempt(\d+)\.log")
    found = ((name.fullmatch(path.name), path) for path in log.parent.iterdir())
    return {int(match[1]): path for match, path in found if match}

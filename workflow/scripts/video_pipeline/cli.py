"""What the thin command lines in ``workflow/scripts`` share: logging, and errors for people."""

from __future__ import annotations

import argparse
import copy
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from numbers import Number
from pathlib import Path
from typing import Any, NoReturn

from video_pipeline import attempts
from video_pipeline.errors import Failure, UserError, explain
from video_pipeline.printable import printable as plain
from video_pipeline.processes import end_with_snakemake


def run(main: Callable[[], None]) -> None:
    """Run ``main`` as a program: log lines to stderr, a :class:`Failure` without a traceback. The
    program ends with the Snakemake that started it.

    Exits with status 1 after a failure and where a file cannot be written; any other exception is a
    bug and keeps its traceback. The last thing said is what went wrong, with the log's path.
    """
    end_with_snakemake()
    # Of what killed processes leave behind, it warns when this one is gone, after the last words.
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [warnings, "ignore:resource_tracker"]))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        PlainFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        main()
    except Failure as error:
        _end(str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            place = f" ({error.filename})" if error.filename else ""
            _end(
                f"{error.strerror}{place}. Fix that and run the same command again: what is in the "
                "journal stays done"
            )
        traceback.print_exc()
        _end(f"a bug of video-pipeline, please report it with the traceback: {explain(error)}")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a script of the workflow, with ``--log``: the file that its output goes to,
    which then survives the next attempt (see :mod:`video_pipeline.attempts`)."""
    parser.add_argument("--log", type=Path, help="where the output of this program goes")
    args = parser.parse_args()
    if args.log is not None:
        _logs.append(attempts.begin(args.log))
    return args


_logs: list[Path] = []


def _end(message: str) -> NoReturn:
    """Exit, with ``message`` as the last words."""
    sys.stdout.flush()
    log = "".join(f" (log: {path})" for path in _logs)
    print(f"{attempts.ERROR}{plain(message)}{plain(log)}", file=sys.stderr, flush=True)
    sys.exit(1)


def enter(folder: Path) -> None:
    """Make ``folder`` the working directory, as ``--directory`` says. Raises :class:`UserError`."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"--directory {folder}: {error.strerror}") from None


_CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # not allowed
}


class PlainFormatter(logging.Formatter):
    """Escapes what the arguments of a log line bring along, such as a sample's key or an error: in
    a terminal or a log, none can end the line, forge another one, or move the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_Plain.of, record.args))
        elif record.args:
            record.args = {name: _Plain.of(value) for name, value in record.args.items()}
        return super().format(record)


class _Plain:
    """Stands for a value, wherever it is written as text."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return plain(self._value, newlines=False)

    def __repr__(self) -> str:
        return plain(repr(self._value), newlines=False)

    @classmethod
    def of(cls, value: Any) -> Any:
        """``value`` itself if it is a number, which may be formatted as one."""
        return value if isinstance(value, Number) else cls(value)

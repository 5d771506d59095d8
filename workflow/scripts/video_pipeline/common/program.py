"""What every program of the project shares: logging, errors for people, the exit status."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from video_pipeline.common import logs
from video_pipeline.common.printable import PrintableFormatter, printable
from video_pipeline.common.processes import exit_with_snakemake
from video_pipeline.errors import Failure, explain

_CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # not allowed
}

_logs: list[Path] = []
"""Where the output of this program goes, if ``--log`` says so."""


def run(main: Callable[[], None]) -> None:
    """Run ``main`` as a program: log lines to stderr, a :class:`Failure` without a traceback. The
    program ends with the Snakemake that started it.

    Exits with status 1 after a failure and if a file cannot be written; any other exception is a
    bug and keeps its traceback. The last words say what went wrong, with the log's path.
    """
    exit_with_snakemake()
    # The resource tracker warns of what killed processes left behind, after the last words.
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [warnings, "ignore:resource_tracker"]))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        PrintableFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.stdout = sys.stdout or open(os.devnull, "w")  # Python has none after ``>&-``.
    if isinstance(sys.stdout, io.TextIOWrapper):  # Its encoding may lack some characters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Failure as error:
        _exit(str(error))
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit):
            if _is_own(error):
                raise
            _exit(f"code that is not of video-pipeline has ended the program: {explain(error)}")
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os._exit(1)  # As after ``| head``: the interpreter would try to write the rest.
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            place = f" ({error.filename})" if error.filename else ""
            _exit(
                f"{error.strerror}{place}. Fix that and run the same command again: what is in the "
                "journal stays done"
            )
        traceback.print_exc()
        _exit(f"a bug of video-pipeline, please report it with the traceback: {explain(error)}")


def script_parser(doc: str | None, *, of_shards: bool = True) -> argparse.ArgumentParser:
    """The parser of a script of the workflow, which takes a configuration and, if ``of_shards``, a
    number of shards. The file of ``--log`` survives the next attempt, see
    :mod:`video_pipeline.common.logs`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--config", type=Path, required=True, help="the resolved configuration")
    if of_shards:
        parser.add_argument("--num-shards", type=int, required=True, help="how many chunks")
    parser.add_argument("--log", type=Path, help="where the output of this program goes")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of a script, and give its ``--log`` a second name."""
    args = parser.parse_args()
    if args.log is not None:
        _logs.append(logs.begin_attempt(args.log))
    return args


def _is_own(end: SystemExit) -> bool:
    """Whether argparse, a command, or rich (after ``| head``) has ended the program: from a plugin,
    0 is no success."""
    file = Path(traceback.extract_tb(end.__traceback__)[-1].filename)
    is_known = file == Path(argparse.__file__) or file.parts[-2:] == ("rich", "console.py")
    return is_known or file.is_relative_to(Path(__file__).parents[1])


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _exit(message: str) -> NoReturn:
    """Exit, with ``message`` as the last words."""
    sys.stdout.flush()
    log = "".join(f" (log: {path})" for path in _logs)
    print(f"{logs.ERROR}{printable(message)}{printable(log)}", file=sys.stderr, flush=True)
    sys.exit(1)

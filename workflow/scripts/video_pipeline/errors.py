"""Errors for people, and the line of the user's code that an exception came from."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOT_THE_USERS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
    "<frozen",
)


class Failure(Exception):
    """Stops a job, with a message for people.

    The message says what went wrong, where, and what to do next. Programs print it without a
    traceback (see :mod:`video_pipeline.common.program`); every other exception is a bug and keeps
    it.
    """


class UserError(Failure):
    """The user can fix it: input, configuration, plugin. Another attempt would fail, too."""


class EnvironmentFault(Failure):
    """The machine, the network or the engine is at fault: another attempt may succeed, on a cluster
    maybe on another node. See :mod:`video_pipeline.common.faults`."""


class TaskError(UserError):
    """A user's task or dataset broke the contract of its base class."""


SPLIT_AGAIN = "run snakemake again with `--forcerun split` (of a stage: `--forcerun split_<stage>`)"
"""The advice about chunks that are not those of this run."""


def user_frame(error: BaseException) -> traceback.FrameSummary:
    """The line that an exception came from: the user's own, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    return ([frame for frame in frames if _is_users(frame)] or frames)[-1]


def _is_users(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith(_NOT_THE_USERS)


def where(error: BaseException) -> str:
    """``file, line N`` of :func:`user_frame`."""
    frame = user_frame(error)
    return f"{frame.filename}, line {frame.lineno}"


def place_of(error: BaseException) -> str:
    """`` (file, line N)``: the user's line that an exception came from; empty if there is none."""
    return f" ({where(error)})" if _is_users(user_frame(error)) else ""


def text_of(error: BaseException) -> str:
    """The first 10,000 characters of an exception's message. User code may raise anything."""
    try:
        return f"{error!s:.10000}"
    except Exception as failure:
        return f"its __str__ raises {type(failure).__name__}"


def explain(error: BaseException) -> str:
    """Type and message of an exception, with the user's line if there is one."""
    text = text_of(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{place_of(error)}"


@contextmanager
def user_code(place: str, advice: str = "") -> Iterator[None]:
    """In the block, an exception of the user's code becomes a :class:`TaskError` that names
    ``place`` and the line, and ends with ``advice``. So does ``sys.exit()``, here and in
    all other places that call the user's code: a job that ended there would pass for a success."""
    try:
        yield
    except Failure:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{place}: {explain(error)}{advice}") from error

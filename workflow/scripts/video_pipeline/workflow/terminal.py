"""Shortens what Snakemake writes to the terminal, where its own lines would hide those about the
samples. The file that Snakemake calls its complete log keeps all of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from snakemake_interface_logger_plugins.common import LogEvent

_ABOUT_JOBS = (
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.RUN_INFO,
)
"""Events that say again what the line at the start of each job says. A dry run shows them."""

_NOISE = re.compile(
    r"Select jobs to execute|Using shell: |(Conda environments|Singularity containers): ignored$"
    r"|RuleException:\nCalledProcessError|WorkflowError:\nAt least one job did not complete"
)

_PARTS_OF_ERROR = re.compile(
    r"^    (message: None|(input|output): .*|shell:(\n        .*)+)\n?", re.MULTILINE
)
"""The parts of an error of a job that do not say what went wrong, or where."""

_MISTAKE = re.compile(
    r'WorkflowError in file ".*", line \d+:\n(?P<message>(.*\n)*?)'
    r'(  File .*\n)*  File ".*/snakemake_internals\.py", line \d+, in call\Z'
)
"""An error that ``fails_as_workflow_error`` has raised: its message is written for people."""


def shorten(handler: logging.Handler, *, is_dry_run: Callable[[], bool]) -> None:
    """Let ``handler``, which writes to the terminal, write less. ``is_dry_run`` is called only when
    Snakemake knows it."""
    handler.setFormatter(_Shorter(handler.formatter or logging.Formatter(), is_dry_run))


class _Shorter(logging.Formatter):
    def __init__(self, whole: logging.Formatter, is_dry_run: Callable[[], bool]) -> None:
        super().__init__()
        self._whole = whole
        self._is_dry_run = is_dry_run

    def format(self, record: logging.LogRecord) -> str:
        """The text of ``record``; Snakemake's handler does not write an empty one."""
        text = self._whole.format(record)
        event = getattr(record, "event", None)
        if _NOISE.match(text) or (event in _ABOUT_JOBS and not self._is_dry_run()):
            return ""
        if event == LogEvent.JOB_ERROR:
            return _PARTS_OF_ERROR.sub("", text).rstrip()
        if mistake := _MISTAKE.match(text):
            return f"error: {mistake['message'].rstrip()}"
        return text

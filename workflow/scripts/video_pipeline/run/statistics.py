"""The statistics of an inference job, and their file, which the job writes while it runs."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from video_pipeline.common.figures import time_bin
from video_pipeline.common.files import write_text
from video_pipeline.common.versions import check_version
from video_pipeline.journal.format import ATTEMPTS, clean_text, split_of

if TYPE_CHECKING:
    from video_pipeline.decode.preparing import Prepared
    from video_pipeline.engine.base import Answer
    from video_pipeline.model.flops import ModelFlops

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the files of statistics."""

MOST_STEPS = 120
"""Steps of a :class:`Series`. If there would be more, two become one."""

OVER_TIME = ("series", "histograms")
"""The parts of a job's statistics that are for charts."""

State = Literal["starting", "running", "done", "failed"]


class Series:
    """Counts over time, from the begin of the job on: ``columns``, by name, with a value for each
    ``step`` in seconds. The steps grow with the run: a day takes no more room than a minute."""

    NAMES = (
        *("finished", "inferred", "failed", "tokens", "prompt_tokens", "flops"),
        *("busy", "decode", "network", "engine"),
    )

    def __init__(self) -> None:
        self.step = 1.0
        self.columns: dict[str, list[float]] = {name: [] for name in self.NAMES}

    def add(self, seconds: float, **counts: float) -> None:
        """Add ``counts``, by name, to the step at ``seconds`` after the begin of the job."""
        while seconds >= self.step * MOST_STEPS:
            self.step *= 2
            for name, column in self.columns.items():
                self.columns[name] = [sum(column[i : i + 2]) for i in range(0, len(column), 2)]
        index = int(seconds / self.step)
        for name, column in self.columns.items():
            column.extend([0.0] * (index + 1 - len(column)))
            column[index] += counts.get(name, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """``step``, and a list for each name."""
        rounded = {name: [round(v, 3) for v in column] for name, column in self.columns.items()}
        return {"step": self.step, **rounded}


@dataclass
class JobStatistics:
    """The statistics of one attempt of one rank.

    Lengths of time come from a clock that never jumps, so that no part is longer than the whole.
    Moments are in Unix seconds.
    """

    rank: int
    num_workers: int  # decode processes
    task: str = ""
    model: str = ""
    quantization: str | None = None  # vllm.quantization
    host: str = field(default_factory=socket.gethostname)
    gpus: int = 0  # that the job holds
    card: str | None = None  # their name in nvidia-smi; None if it is not known or they differ
    peak_flops: float | None = None  # of one GPU in the model's precision, see gpu/peaks.py
    samples: int = 0  # of the chunk
    pending: int = 0  # when the attempt began
    state: State = "starting"  # stays as it is if a signal ends the attempt
    started_at: float = field(default_factory=time.time)  # the job had its GPUs
    ready_at: float | None = None  # the first request went to the engine
    updated_at: float = 0.0  # by the machine's clock
    lasted: float = 0.0  # seconds from started_at to updated_at
    inferred: int = 0  # samples that the model answered, whether or not the answer counts
    failed: int = 0
    finished: int = 0  # samples of the chunk, those of earlier attempts included
    finished_failed: int = 0  # those of them that failed
    errors: Counter[str] = field(default_factory=Counter)  # failed samples by stage
    truncated: Counter[str] = field(default_factory=Counter)  # by the setting that cut them off
    unparsed: int = 0  # only the first answers are parsed at once
    last_error: dict[str, Any] | None = None  # key, stage, type, message, at
    prompt_tokens: int = 0  # visual ones included
    cached_tokens: int = 0  # those of them that the engine had computed before
    completion_tokens: int = 0
    patches: int = 0  # that the vision encoder was given for the answered samples
    flops: float | None = None  # operations of the model so far, see model/flops.py
    seconds: float = 0.0  # from the first request on: without the start of the model
    engine_busy_seconds: float = 0.0  # the part of seconds with a request in the engine
    # Time within seconds of all decode processes together, on samples that became ready; and the
    # same for the whole attempt, because they begin while the model loads.
    decode_busy_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_answer_seconds: float = 0.0  # from the first request
    feeding_cpu_seconds: float = 0.0  # of this process within seconds: feeding and writing down
    video_seconds: float = 0.0  # length of the videos of the answered samples
    # How many of seconds the run waited for each; network is a part of decode.
    limits: dict[str, float] = field(
        default_factory=lambda: {"decode": 0.0, "network": 0.0, "engine": 0.0}
    )
    series: Series = field(default_factory=Series)
    # Counts by time_bin, of a sample in its decode process and of a request in the engine.
    histograms: dict[str, Counter[int]] = field(
        default_factory=lambda: {"decode_seconds": Counter(), "engine_seconds": Counter()}
    )

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._first_request: float | None = None
        self._cpu_at_first_request = 0.0
        self._in_engine = 0
        self._busy_since = 0.0
        self._in_series: dict[str, float] = {"finished": self.finished}  # By earlier attempts.
        self._model_flops: ModelFlops | None = None

    def count_flops(self, model_flops: ModelFlops | None, peak_flops: float | None) -> None:
        """From now on count the operations of this model, on GPUs with this peak."""
        self._model_flops, self.peak_flops = model_flops, peak_flops

    def tick(self, limits: Mapping[str, float]) -> None:
        """Bring the statistics up to date; ``limits`` are those so far.

        The counts since the last call go to the end of ``series``, whose finest step is a second:
        call this once a second.
        """
        now = self._read_clock()
        if self._first_request is not None:
            self.seconds = now - self._first_request
            self.feeding_cpu_seconds = time.process_time() - self._cpu_at_first_request
        if self._in_engine:
            self.engine_busy_seconds += now - self._busy_since
            self._busy_since = now
        self.limits = dict(limits)
        if self._model_flops is not None:
            self.flops = self._model_flops.total(
                self.prompt_tokens - self.cached_tokens, self.completion_tokens, self.patches
            )
        totals = {
            "finished": self.finished,  # An answer that does not count is inferred and failed.
            "inferred": self.inferred,
            "failed": self.failed,
            "tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens": self.prompt_tokens,
            "flops": self.flops or 0.0,
            "busy": self.engine_busy_seconds,
            **self.limits,
        }
        new = {name: total - self._in_series.get(name, 0.0) for name, total in totals.items()}
        self.series.add(now - self._begun, **new)
        self._in_series = totals

    def end(self, state: State) -> None:
        """Note that the job has given up its GPUs."""
        self.state = state
        self._read_clock()

    def _read_clock(self) -> float:
        now = time.monotonic()
        self.updated_at, self.lasted = time.time(), now - self._begun
        return now

    def count_prepared(self, prepared: Prepared) -> None:
        """Count a sample that is ready for the engine."""
        self.decode_seconds += prepared.seconds
        if self._first_request is not None:
            running = time.monotonic() - self._first_request
            self.decode_busy_seconds += min(prepared.seconds, running)
        self.histograms["decode_seconds"][time_bin(prepared.seconds)] += 1

    def count_error(self, key: str, error: dict[str, str]) -> None:
        """Count the failed sample ``key``; ``error`` is its ``__error``."""
        self.failed += 1
        self.errors[error["stage"]] += 1
        error = {**error, "message": clean_text(error["message"])}
        self.last_error = {"key": key, **error, "at": time.time()}

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        if not self.first_answer_seconds and self._first_request is not None:
            self.first_answer_seconds = time.monotonic() - self._first_request
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens

    def count_sample(self, prepared: Prepared, cut_off: str | None, patches: int) -> None:
        """Count an answered sample. ``cut_off``: the setting that cut an answer off, if one did;
        ``patches``: those that the vision encoder was given."""
        self.inferred += 1
        self.patches += patches
        self.video_seconds += prepared.video_seconds
        if cut_off is not None:
            self.truncated[cut_off] += 1

    @contextmanager
    def engine_busy(self) -> Iterator[None]:
        """Count the block as time in which the engine has a request. Blocks may overlap."""
        begun = time.monotonic()
        if self._in_engine == 0:
            self._busy_since = begun
        if self._first_request is None:
            self._first_request = begun
            self._cpu_at_first_request = time.process_time()
            self.state = "running"
            self.ready_at = self.started_at + (begun - self._begun)
        self._in_engine += 1
        try:
            yield
        finally:
            self._in_engine -= 1
            ended = time.monotonic()
            self.histograms["engine_seconds"][time_bin(ended - begun)] += 1
            if self._in_engine == 0:
                self.engine_busy_seconds += ended - self._busy_since

    def as_dict(self) -> dict[str, Any]:
        """The statistics as the file holds them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"version": VERSION, **values, "series": self.series.as_dict()}

    def snapshot(self) -> tuple[float, str]:
        """The arguments of :meth:`StatisticsFile.write`: ``lasted`` and the content of the file."""
        return self.lasted, json.dumps(self.as_dict()) + "\n"


class StatisticsFile:
    """The file of one attempt's statistics. It lies beside the attempt's journal file, so that both
    are copied together."""

    ENDING = ".statistics.json"

    def __init__(self, journal_file: Path) -> None:
        self.path = journal_file.with_suffix(self.ENDING)
        self._written = -math.inf
        self._lock = threading.Lock()

    def write(self, lasted: float, text: str) -> None:
        """Write a :meth:`JobStatistics.snapshot`, unless the file holds a newer one. Several
        threads may call this at once."""
        with self._lock:
            if lasted >= self._written:
                self._written = lasted
                write_text(self.path, text)


def read_statistics(journal: Path, splits: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The statistics of the attempts that wrote to the folder ``journal``, in the order in which
    they began; with ``splits`` only of those that worked on one of these splits."""
    attempts = []
    for path in journal.glob(f"{ATTEMPTS}*{StatisticsFile.ENDING}"):
        if splits is not None and split_of(path.name) not in splits:
            continue
        try:
            attempt = json.loads(path.read_text(encoding="utf-8"))
            check_version(path, attempt.get("version"), VERSION)
            attempts.append(_completed(attempt))
        except FileNotFoundError:
            continue  # `journal prune` has removed it meanwhile.
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged, its counts are left out: %s", path, error)
    return sorted(attempts, key=lambda attempt: attempt["started_at"])


def _completed(attempt: dict[str, Any]) -> dict[str, Any]:
    """``attempt``, with zeros for all that an earlier version did not write."""
    blank = JobStatistics(0, 0, host="", started_at=0.0).as_dict()
    nested = {name: {**blank[name], **attempt.get(name, {})} for name in ("histograms", "limits")}
    return {**blank, **attempt, **nested}

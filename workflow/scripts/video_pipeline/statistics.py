"""What an inference job spends, written down while it runs: for the summary, the report and whoever
watches the run."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from video_pipeline.files import write_text
from video_pipeline.journal import ATTEMPTS, clean_text, split_of
from video_pipeline.versions import check_version

if TYPE_CHECKING:
    from video_pipeline.decode.preparing import Prepared
    from video_pipeline.engine.base import Answer
    from video_pipeline.flops import ModelFlops

logger = logging.getLogger(__name__)

MOST_STEPS = 120
"""Steps of a :class:`Series`; when there are more, two become one."""

BINS_PER_OCTAVE = 4
"""Bins of a histogram between a time and its double."""

SHORTEST_SECONDS = 1e-3
"""What takes less is counted in the first bin of a histogram."""

OVER_TIME = ("series", "histograms")
"""The parts of a job's statistics that are for charts."""

State = Literal["starting", "running", "done", "failed"]


class Series:
    """What was counted in each step of time, from the begin of the job on. The steps grow with the
    run, so that a day takes no more room than a minute.

    Attributes:
        step: Seconds of a step.
        columns: A value for each step, by name.
    """

    NAMES = (
        *("inferred", "failed", "tokens", "prompt_tokens", "flops"),
        *("busy", "decode", "engine"),
    )

    def __init__(self) -> None:
        self.step = 1.0
        self.columns: dict[str, list[float]] = {name: [] for name in self.NAMES}

    def add(self, seconds: float, **counts: float) -> None:
        """Add ``counts`` to the step that ``seconds`` after the begin lie in."""
        while seconds >= self.step * MOST_STEPS:
            self.step *= 2
            for name, column in self.columns.items():
                self.columns[name] = [sum(column[at : at + 2]) for at in range(0, len(column), 2)]
        at = int(seconds / self.step)
        for name, column in self.columns.items():
            column.extend([0.0] * (at + 1 - len(column)))
            column[at] += counts.get(name, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """``step``, and a list for each name."""
        rounded = {name: [round(v, 3) for v in column] for name, column in self.columns.items()}
        return {"step": self.step, **rounded}


def time_bin(seconds: float) -> int:
    """The bin of a histogram: those of four times their seconds differ by 8."""
    return math.floor(BINS_PER_OCTAVE * math.log2(max(seconds, SHORTEST_SECONDS)))


@dataclass
class JobStatistics:
    """Counts of one attempt of one rank.

    What passes between its moments is measured by a clock that never jumps, so that no share of it
    is more than the whole.

    Attributes:
        rank: The rank.
        num_workers: Decode processes.
        task: Name of the task.
        model: Name of the model.
        quantization: ``vllm.quantization``, where it is set.
        host: The machine.
        gpus: Devices that the job holds.
        card: What they are, as nvidia-smi says it; None where it does not, or they differ.
        peak_flops: Floating point operations a second of one of them at its peak, in the precision
            of the model, see :mod:`video_pipeline.peaks`; None where that is not known.
        samples: Samples of the chunk.
        pending: Of these, to be inferred when the attempt began.
        state: How far it is. An attempt that was killed stays what it was.
        started_at: When it had its devices, in Unix seconds.
        ready_at: When the first request went to the engine, in Unix seconds.
        updated_at: When this was written down, in Unix seconds, by the machine's clock.
        lasted: Seconds from ``started_at`` until then. Of an attempt that was killed, its last sign
            of life ends it.
        inferred: Samples that the model answered, whatever became of the answer.
        failed: Samples that failed.
        finished: Samples of the chunk that are done, those of earlier attempts included.
        finished_failed: Of these, how many failed.
        errors: Failed samples by stage.
        truncated: Samples with an answer that was cut off, by the setting that did it.
        unparsed: Of the first answers, which are parsed as they come, those that ``parse`` failed
            on.
        last_error: ``key``, ``stage``, ``type``, ``message`` of the last that failed, and ``at`` in
            Unix seconds.
        prompt_tokens: Tokens of the prompts, visual ones included.
        cached_tokens: Of these, how many the engine had computed before.
        completion_tokens: Tokens of the answers.
        patches: Patches of the answered samples that the vision encoder was given.
        flops: Floating point operations of the model for all these, see
            :mod:`video_pipeline.flops`; None where that is not known.
        seconds: From the first request to the last answer: without the start of the model and of
            the decode processes.
        engine_busy_seconds: Of these, with at least one request in the engine.
        decode_busy_seconds: Of ``seconds``, summed over the decode processes, how long they were
            with a sample that then was ready.
        decode_seconds: The same of the whole attempt: they begin while the model loads.
        first_answer_seconds: From the first request to the first answer.
        feeding_cpu_seconds: CPU that this process spent in ``seconds``: what it costs to feed the
            engine and to write its answers down.
        video_seconds: Length of the videos of the answered samples.
        limits: Of ``seconds``, how many the run was waiting for ``decode`` or for the ``engine``.
        series: The same over time: ``busy``, ``decode`` and ``engine`` are seconds in a step.
        histograms: ``decode_seconds`` (of a sample in its decode process) and ``engine_seconds``
            (of a request): how many, by :func:`time_bin`.
    """

    rank: int
    num_workers: int
    task: str = ""
    model: str = ""
    quantization: str | None = None
    host: str = field(default_factory=socket.gethostname)
    gpus: int = 0
    card: str | None = None
    peak_flops: float | None = None
    samples: int = 0
    pending: int = 0
    state: State = "starting"
    started_at: float = field(default_factory=time.time)
    ready_at: float | None = None
    updated_at: float = 0.0
    lasted: float = 0.0
    inferred: int = 0
    failed: int = 0
    finished: int = 0
    finished_failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    unparsed: int = 0
    last_error: dict[str, Any] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    patches: int = 0
    flops: float | None = None
    seconds: float = 0.0
    engine_busy_seconds: float = 0.0
    decode_busy_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_answer_seconds: float = 0.0
    feeding_cpu_seconds: float = 0.0
    video_seconds: float = 0.0
    limits: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "engine": 0.0})
    series: Series = field(default_factory=Series)
    histograms: dict[str, Counter[int]] = field(
        default_factory=lambda: {"decode_seconds": Counter(), "engine_seconds": Counter()}
    )

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._started: float | None = None
        self._cpu_started = 0.0
        self._in_engine = 0
        self._busy_since = 0.0
        self._in_series: Counter[str] = Counter()
        self._of_model: ModelFlops | None = None

    def rate(self, of_model: ModelFlops | None, peak: float | None) -> None:
        """Count operations from now on: those of the model, and ``peak_flops``."""
        self._of_model, self.peak_flops = of_model, peak

    def tick(self, limits: dict[str, float]) -> None:
        """Bring the times up to now; ``limits`` is the window's. What is new since the last call
        goes to the end of ``series``: a second apart, calls are as fine as it can show."""
        now = self._look_at_clock()
        if self._started is not None:
            self.seconds = now - self._started
            self.feeding_cpu_seconds = time.process_time() - self._cpu_started
        if self._in_engine:
            self.engine_busy_seconds += now - self._busy_since
            self._busy_since = now
        self.limits = dict(limits)
        if self._of_model is not None:
            self.flops = self._of_model.total(
                self.prompt_tokens - self.cached_tokens, self.completion_tokens, self.patches
            )
        counted = Counter(
            inferred=self.inferred,
            failed=self.failed,
            tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens=self.prompt_tokens,
            flops=self.flops or 0.0,
            busy=self.engine_busy_seconds,
            **self.limits,
        )
        self.series.add(now - self._begun, **{n: counted[n] - self._in_series[n] for n in counted})
        self._in_series = counted

    def end(self, state: State) -> None:
        """The job has given up its devices."""
        self.state = state
        self._look_at_clock()

    def _look_at_clock(self) -> float:
        now = time.monotonic()
        self.updated_at, self.lasted = time.time(), now - self._begun
        return now

    def count_prepared(self, prepared: Prepared) -> None:
        """Count a sample that is ready for the engine."""
        self.decode_seconds += prepared.seconds
        if self._started is not None:
            running = time.monotonic() - self._started
            self.decode_busy_seconds += min(prepared.seconds, running)
        self.histograms["decode_seconds"][time_bin(prepared.seconds)] += 1

    def count_error(self, key: str, error: dict[str, str]) -> None:
        """Count the sample ``key`` as failed, for ``error``."""
        self.failed += 1
        self.errors[error["stage"]] += 1
        error = {**error, "message": clean_text(error["message"])}
        self.last_error = {"key": key, **error, "at": time.time()}

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        if not self.first_answer_seconds:
            self.first_answer_seconds = time.monotonic() - self._started
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens

    def count_sample(
        self, prepared: Prepared, cut_off: str | None = None, patches: int = 0
    ) -> None:
        """Count a sample that was answered; ``cut_off`` is the setting that cut an answer off,
        ``patches`` is what the vision encoder was given."""
        self.inferred += 1
        self.patches += patches
        self.video_seconds += prepared.video_seconds
        if cut_off is not None:
            self.truncated[cut_off] += 1

    @contextmanager
    def engine_busy(self) -> Iterator[None]:
        """The engine has a request while the block runs; blocks may overlap."""
        begun = time.monotonic()
        if self._in_engine == 0:
            self._busy_since = begun
        if self._started is None:
            self._started = begun
            self._cpu_started = time.process_time()
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
        """For a JSON file."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"version": VERSION, **values, "series": self.series.as_dict()}

    def snapshot(self) -> tuple[float, str]:
        """For :meth:`StatisticsFile.write`: ``lasted``, and the content of the file."""
        return self.lasted, json.dumps(self.as_dict()) + "\n"


class StatisticsFile:
    """The file of one attempt's statistics, beside its journal file: it goes where that goes, and
    what other attempts spent is never mistaken for its own."""

    ENDING = ".statistics.json"

    def __init__(self, journal_file: Path) -> None:
        self.path = journal_file.with_suffix(self.ENDING)
        self._written = -math.inf
        self._lock = threading.Lock()

    def write(self, lasted: float, text: str) -> None:
        """Write a :meth:`JobStatistics.snapshot` down, unless a newer one is there. Several threads
        may call it at once."""
        with self._lock:
            if lasted >= self._written:
                self._written = lasted
                write_text(self.path, text)


VERSION = 1
"""Of the files of statistics."""


def _completed(job: dict[str, Any]) -> dict[str, Any]:
    """``job``, with what an earlier version did not write down, as if it had been nothing."""
    blank = JobStatistics(0, 0, host="", started_at=0.0).as_dict()
    job = {**blank, **job}
    for name in ("histograms", "limits"):
        job[name] = {**blank[name], **job[name]}
    return job


def read_statistics(journal: Path, splits: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The statistics of the attempts that wrote to the folder ``journal``, in the order in which
    they began; only those that worked on one of ``splits``, if given."""
    found = []
    for path in journal.glob(f"{ATTEMPTS}*{StatisticsFile.ENDING}"):
        if splits is not None and split_of(path.name) not in splits:
            continue
        try:
            job = json.loads(path.read_text(encoding="utf-8"))
            check_version(path, job.get("version"), VERSION)
            found.append(_completed(job))
        except FileNotFoundError:
            continue  # pruned meanwhile
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged, what it counted is left out: %s", path, error)
    return sorted(found, key=lambda attempt: attempt["started_at"])


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of ``spans`` lasts, each a begin and an end."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def throughput(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast a run was while models were running, and what bounds it, from the statistics of its
    attempts. docs/report.md says what each number means."""
    jobs = [job for job in jobs if job["seconds"] > 0]
    if not jobs:
        return {"bound": "nothing was inferred"}
    total = {
        name: sum(job[name] for job in jobs)
        for name in (
            *("inferred", "video_seconds", "prompt_tokens", "completion_tokens", "seconds"),
            *("engine_busy_seconds", "decode_busy_seconds"),
        )
    }
    running = covered((job["ready_at"], job["ready_at"] + job["seconds"]) for job in jobs)
    busy = min(1.0, total["engine_busy_seconds"] / total["seconds"])
    waits = {name: sum(job["limits"][name] for job in jobs) for name in ("decode", "engine")}
    workers = sum(job["num_workers"] * job["seconds"] for job in jobs)
    tokens = total["prompt_tokens"] + total["completion_tokens"]
    return {
        "seconds": round(running, 3),
        "videos_per_second": round(total["inferred"] / running, 3),
        "video_hours_per_hour": round(total["video_seconds"] / running, 3),
        "tokens_per_second": round(tokens / running, 1),
        **_of_a_card(jobs),
        "engine_busy_share": round(busy, 4),
        "engine_waiting_share": round(1 - busy, 4),
        "decode_workers_load": round(min(1.0, total["decode_busy_seconds"] / workers), 4),
        "bound": (
            "decode-bound: give it more cores"
            if waits["decode"] > waits["engine"]
            else "engine-bound"
        ),
    }


def _of_a_card(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast one card was: nothing on a machine without GPUs, no share where one of the cards,
    or the model, is not known."""
    jobs = [job for job in jobs if job["gpus"]]
    if not jobs:
        return {"cards": [], "prompt_tokens_per_second_per_gpu": None, "share_of_peak": None}
    held = sum(job["gpus"] * job["seconds"] for job in jobs)
    share = None
    if all(job["peak_flops"] and job["flops"] is not None for job in jobs):
        at_peak = sum(job["peak_flops"] * job["gpus"] * job["seconds"] for job in jobs)
        share = round(sum(job["flops"] for job in jobs) / at_peak, 4)
    return {
        "cards": sorted({job["card"] for job in jobs if job["card"]}),
        "prompt_tokens_per_second_per_gpu": round(sum(j["prompt_tokens"] for j in jobs) / held, 1),
        "share_of_peak": share,
    }


def cost(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run took, from the statistics of its attempts: also those that failed and those that
    were killed, these up to their last sign of life. docs/report.md says what each number means."""
    held = sum(job["gpus"] * job["lasted"] for job in jobs)
    # on a machine without GPUs, a job is what there is one of
    running = sum(max(job["gpus"], 1) * job["seconds"] for job in jobs)
    inferred = sum(job["inferred"] for job in jobs)
    spans = ((job["started_at"], job["started_at"] + job["lasted"]) for job in jobs)
    return {
        "wall_seconds": round(covered(spans), 1),
        "gpu_hours": round(held / 3600, 4),
        "video_hours": round(sum(job["video_seconds"] for job in jobs) / 3600, 4),
        "videos_per_second_per_gpu": round(inferred / running, 3) if running else 0.0,
    }

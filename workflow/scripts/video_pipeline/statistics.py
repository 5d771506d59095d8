"""What an inference job spent, for the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_pipeline.files import write_text

if TYPE_CHECKING:
    from video_pipeline.data.workers import Prepared
    from video_pipeline.engine.base import Answer


@dataclass
class JobStatistics:
    """Counts of one attempt of one rank.

    Attributes:
        rank: The rank.
        num_workers: Decode processes.
        inferred: Samples answered.
        failed: Samples that failed.
        prompt_tokens: Tokens of the prompts, visual ones included.
        completion_tokens: Tokens of the answers.
        seconds: From the first request to the last answer: without the start of the model and of
            the decode processes.
        engine_busy_seconds: Of these, with at least one request in the engine.
        decode_seconds: Sum over the decode processes of their time with a sample.
        first_answer_seconds: From the first request to the first answer.
        feeding_cpu_seconds: CPU that this process spent in ``seconds``: what it costs to feed the
            engine and to write its answers down.
        video_seconds: Length of the videos of the answered samples.
        limits: Of ``seconds``, how many the run was waiting for ``decode`` or for the ``engine``.
    """

    rank: int
    num_workers: int
    inferred: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    engine_busy_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_answer_seconds: float = 0.0
    feeding_cpu_seconds: float = 0.0
    video_seconds: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started: float | None = None
        self._cpu_started = 0.0
        self._in_engine = 0
        self._busy_since = 0.0

    def finish(self) -> None:
        """The last answer is in the journal."""
        if self._started is not None:
            self.seconds = time.monotonic() - self._started
            self.feeding_cpu_seconds = time.process_time() - self._cpu_started

    def count_prepared(self, prepared: Prepared) -> None:
        """Count a sample that is ready for the engine."""
        self.decode_seconds += prepared.seconds

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        if self.completion_tokens == 0:
            self.first_answer_seconds = time.monotonic() - self._started
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    def count_sample(self, prepared: Prepared) -> None:
        """Count a sample that was asked about."""
        self.inferred += 1
        self.video_seconds += prepared.video_seconds

    @contextmanager
    def engine_busy(self) -> Iterator[None]:
        """The engine has a request while the block runs; blocks may overlap."""
        if self._in_engine == 0:
            self._busy_since = time.monotonic()
        if self._started is None:
            self._started = time.monotonic()
            self._cpu_started = time.process_time()
        self._in_engine += 1
        try:
            yield
        finally:
            self._in_engine -= 1
            if self._in_engine == 0:
                self.engine_busy_seconds += time.monotonic() - self._busy_since

    def append_to(self, path: Path) -> None:
        """Add this attempt to the list in the JSON file ``path``."""
        write_text(path, json.dumps([*read_statistics(path), asdict(self)], indent=2) + "\n")


def read_statistics(path: Path) -> list[dict[str, Any]]:
    """The attempts in ``path``, none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def throughput(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """What bounds a run, in figures and in words, from the statistics of its jobs.

    Rates are those of all ranks together; ranks are taken to run side by side, attempts of one
    rank one after the other.
    """
    jobs = [job for job in jobs if job["seconds"] > 0]
    by_rank: dict[int, float] = {}
    for job in jobs:
        by_rank[job["rank"]] = by_rank.get(job["rank"], 0.0) + job["seconds"]
    if not by_rank:
        return {"bound": "nothing was inferred"}
    total = {
        name: sum(job[name] for job in jobs)
        for name in (
            *("inferred", "video_seconds", "prompt_tokens", "completion_tokens", "seconds"),
            *("engine_busy_seconds", "decode_seconds"),
        )
    }
    wall = max(by_rank.values())
    busy = total["engine_busy_seconds"] / total["seconds"]
    waits = {
        name: sum(job["limits"].get(name, 0.0) for job in jobs) for name in ("decode", "engine")
    }
    workers = sum(job["num_workers"] * job["seconds"] for job in jobs)
    return {
        "seconds": round(wall, 3),
        "videos_per_second": round(total["inferred"] / wall, 3),
        "video_hours_per_hour": round(total["video_seconds"] / wall, 3),
        "tokens_per_second": round((total["prompt_tokens"] + total["completion_tokens"]) / wall, 1),
        "engine_busy_share": round(busy, 4),
        "engine_waiting_share": round(1 - busy, 4),
        "decode_workers_load": round(total["decode_seconds"] / workers, 4),
        "bound": (
            "decode-bound: give it more cores" if waits["decode"] > waits["engine"] else "GPU-bound"
        ),
    }

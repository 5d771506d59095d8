"""What an inference job spent, for the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from video_pipeline.engine.base import Answer
from video_pipeline.files import write_text


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
        seconds: From the first sample asked for to the last answer; loading the model is not in it.
        engine_busy_seconds: Of these, with at least one request in the engine.
        decode_seconds: Sum over the decode processes of their time with a sample.
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

    def __post_init__(self) -> None:
        self._started = 0.0
        self._in_engine = 0
        self._busy_since = 0.0

    def start(self) -> None:
        """The first sample is about to be read."""
        self._started = time.monotonic()

    def finish(self) -> None:
        """The last answer is in the journal."""
        self.seconds = time.monotonic() - self._started

    def count(self, answer: Answer) -> None:
        """Count an answered sample."""
        self.inferred += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    @contextmanager
    def engine_busy(self) -> Iterator[None]:
        """The engine has a request while the block runs; blocks may overlap."""
        if self._in_engine == 0:
            self._busy_since = time.monotonic()
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


def read_statistics(path: Path) -> list[dict[str, float]]:
    """The attempts in ``path``, none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

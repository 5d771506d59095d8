"""Adds up the costs of the samples that were looked at."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from video_pipeline.config import Config
from video_pipeline.errors import Failure, explain
from video_pipeline.estimate.counting import PromptCost, ShownMedium
from video_pipeline.model.token_count import TokenCount
from video_pipeline.report.plan import FLAGS
from video_pipeline.run.chunks import ChunkEntry

ERROR_KINDS = 1000
"""The most kinds of errors that are counted separately; the lines of the samples hold all."""

_REFUSED = frozenset({"prompt_too_long", "item_too_large"})


@dataclass(frozen=True)
class SampleCost:
    """The cost of a sample."""

    entry: ChunkEntry
    seconds: float = 0.0  # Those of its videos, or of their segments.
    prompts: dict[str, PromptCost] = field(default_factory=dict)  # Empty if it cannot be read.
    error: dict[str, str] | None = None  # The __error of the record that a run would write.

    @property
    def media(self) -> list[ShownMedium]:
        """Its videos and images, each once."""
        media = (medium for prompt in self.prompts.values() for medium in prompt.media)
        return list({id(medium): medium for medium in media}.values())

    @property
    def tokens(self) -> list[TokenCount]:
        """The tokens of each conversation."""
        return [prompt.tokens for prompt in self.prompts.values()]


class CostTotals:
    """The totals of the samples that were looked at, in samples unless a comment says otherwise."""

    def __init__(self, config: Config, lines: BinaryIO) -> None:
        self._config = config
        self._lines = lines
        self.max_item_tokens: int | None = None  # see engine/base.py
        self.why_unknown = ""  # why that is not known
        self.looked_at = 0
        self.unreadable = 0  # would become error records
        self.errors: Counter[tuple[str, str, str]] = Counter()  # by stage, type and message
        self.examples: dict[tuple[str, str, str], Any] = {}  # the first video with that error
        self.prompt_tokens = array("q")  # of each prompt
        self.visual_tokens = array("q")  # of each prompt
        self.sound_tokens = array("q")  # of each prompt with sound
        self.refused = 0  # prompts that vLLM would refuse
        self.tokens_to_run = 0  # of the other prompts
        self.flagged: Counter[str] = Counter()  # by FLAGS
        self.seconds = array("d")  # of each sample with videos
        self.num_bytes = 0  # of all videos together
        self.sizes: Counter[str] = Counter()  # of videos, such as 1920x1080
        self.codecs: Counter[str] = Counter()  # of videos

    def note(self, cost: SampleCost) -> None:
        """Count a sample, and write its line."""
        video = cost.entry.raw.get(self._config.data.video_field)
        line: dict[str, Any] = {"key": cost.entry.key, "path": video}
        self.looked_at += 1
        if cost.error is not None:
            self._note_error(cost.error, video)
            line |= {"readable": False, "error": cost.error}
        else:
            line |= {"readable": True, **self._note_readable(cost)}
        self._lines.write(orjson.dumps(line) + b"\n")

    async def ask(self, max_item_tokens: Future[int | None]) -> None:
        """Wait for the answer of another process. On a machine without a GPU, a vLLM that was built
        for GPUs may not know it."""
        try:
            self.max_item_tokens = await asyncio.wrap_future(max_item_tokens)
        except Exception as error:
            self.why_unknown = str(error) if isinstance(error, Failure) else explain(error)

    @property
    def prompts_per_sample(self) -> float:
        """The mean number of conversations about a sample."""
        readable = self.looked_at - self.unreadable
        return len(self.prompt_tokens) / readable if readable else 1.0

    def _note_error(self, error: dict[str, str], video: Any) -> None:
        self.unreadable += 1
        kind = (error["stage"], error["type"], error["message"])
        if kind not in self.errors and len(self.errors) >= ERROR_KINDS:
            kind = (error["stage"], error["type"], "(other messages)")
        self.errors[kind] += 1
        self.examples.setdefault(kind, video)

    def _note_readable(self, cost: SampleCost) -> dict[str, Any]:
        flags: set[str] = set()
        for tokens in cost.tokens:
            wrong = self._flags(tokens)
            flags |= wrong
            self.prompt_tokens.append(tokens.prompt)
            self.visual_tokens.append(tokens.visual)
            if tokens.sound:
                self.sound_tokens.append(tokens.sound)
            if wrong & _REFUSED:
                self.refused += 1
            else:
                self.tokens_to_run += tokens.prompt
        self.flagged.update(flags)
        media = cost.media
        files = [medium.info for medium in media if medium.info is not None]
        for file in files:
            self.num_bytes += file.num_bytes
            self.sizes[f"{file.width}x{file.height}"] += 1
            self.codecs[file.codec] += 1
        if cost.seconds:
            self.seconds.append(cost.seconds)
        first = files[0] if files else None
        sound = sum(tokens.sound for tokens in cost.tokens)
        several = {part: prompt.tokens.prompt for part, prompt in cost.prompts.items()}
        return {
            "seconds": round(cost.seconds, 3),
            "width": first and first.width,
            "height": first and first.height,
            "codec": first and first.codec,
            "bytes": sum(file.num_bytes for file in files) if files else None,
            "frames": sum(medium.num_frames for medium in media),
            "prompt_tokens": sum(several.values()),
            "visual_tokens": sum(tokens.visual for tokens in cost.tokens),
            **({"sound_tokens": sound} if sound else {}),
            **({"prompt_tokens_of": several} if len(several) > 1 else {}),
            "flags": [flag for flag in FLAGS if flag in flags],
        }

    def _flags(self, tokens: TokenCount) -> set[str]:
        """The faults of a prompt, see :data:`FLAGS`."""
        most = self._config.vllm.max_model_len
        flags = set()
        if tokens.prompt >= most:
            flags.add("prompt_too_long")
        elif tokens.prompt + self._config.most_tokens > most:
            flags.add("answer_may_be_cut")
        if self.max_item_tokens is not None and tokens.largest > self.max_item_tokens:
            flags.add("item_too_large")
        return flags

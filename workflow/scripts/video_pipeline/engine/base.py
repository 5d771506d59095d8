"""The base class of engines."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_pipeline.errors import EnvironmentFault
from video_pipeline.gpu.peaks import Precision
from video_pipeline.model.flops import ModelFlops
from video_pipeline.tasks.base import Task

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset


class RequestRefused(Exception):
    """The engine refuses one request. The others continue.

    Attributes:
        type: Name of the engine's own exception.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type

    def __reduce__(self) -> tuple[Any, ...]:
        return RequestRefused, (self.type, str(self))


class EngineDead(EnvironmentFault):
    """The engine is gone or stuck. The job must end, but another attempt may succeed."""


@dataclass(frozen=True)
class Constraints:
    """The constraints of one answer beyond the section ``sampling``.

    Attributes:
        json_schema: The JSON Schema that it must follow, as JSON, or a JSON list of texts, one of
            which is the answer; None for free text.
        sampling_json: Sampling parameters in place of those of the section, as a JSON object.
    """

    json_schema: str | None = None
    sampling_json: str | None = None

    @classmethod
    def of(cls, task: Task, part: str, sample: dict[str, Any]) -> Constraints:
        """The constraints of the answer to ``task``'s conversation ``part`` about ``sample``."""
        return cls(task.json_schema(part), task.sampling_json(sample, part))

    @property
    def choices(self) -> list[str] | None:
        """The texts, one of which the answer must be."""
        schema = json.loads(self.json_schema or "null")
        return schema if isinstance(schema, list) else None

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters in place of those of the section."""
        sampling: dict[str, Any] = json.loads(self.sampling_json or "{}")
        return sampling

    def with_max_tokens(self, max_tokens: int) -> Constraints:
        """These constraints, with another limit on the tokens of the answer."""
        sampling = {**self.sampling, "max_tokens": max_tokens}
        return replace(self, sampling_json=json.dumps(sampling))


@dataclass(frozen=True)
class Answer:
    """An answer of the model, or ``sampling.n`` of them. Then text, reasoning and log probabilities
    are lists with an entry for each answer.

    Attributes:
        output_text: The text, without the reasoning of a thinking model.
        prompt_tokens: Number of tokens of the prompt, visual ones included.
        finish_reason: ``stop``, ``length``, or another word of the engine, see
            :mod:`video_pipeline.run.answers`.
        cached_tokens: Number of tokens of the prompt that the engine had computed before.
        sound_tokens: Number of tokens of the prompt that stand for sound.
        logprobs: The log probability of each token of the text, if that was asked for, see
            :func:`video_pipeline.tasks.scores.label_scores`.
        longest: Tokens of the longest of several answers.
        max_tokens: The limit on its tokens, if the task itself has set it.
    """

    output_text: str | list[str]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    reasoning: str | list[str] | None = None
    cached_tokens: int = 0
    sound_tokens: int = 0
    logprobs: list[Any] | None = None
    longest: int | None = None
    max_tokens: int | None = None

    @property
    def is_truncated(self) -> bool:
        """Whether the answer was cut off at its last token."""
        return self.finish_reason == "length"

    @property
    def usage(self) -> dict[str, Any]:
        """``__usage`` of the record."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reason": self.finish_reason,
        }
        optional = {"sound_tokens": self.sound_tokens or None}
        if self.is_truncated:  # These tell which limit has cut it off.
            optional |= {"longest": self.longest, "max_tokens": self.max_tokens}
        return usage | {name: value for name, value in optional.items() if value is not None}

    def as_record(self) -> dict[str, Any]:
        """The arguments of ``JournalWriter.answer`` that the engine knows."""
        names = ("output_text", "usage", "reasoning", "logprobs")
        return {name: getattr(self, name) for name in names}


class Preparer(ABC):
    """The engine's part of preparing a sample. It is pickled for the decode processes."""

    @abstractmethod
    def start(self) -> None:
        """Load the libraries and the model's processor; called once in each decode process."""

    def read(self, dataset: BaseDataset, position: int) -> Any:
        """The dataset's item for the sample at ``position``."""
        return dataset[position]

    @abstractmethod
    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        """Make the requests for :meth:`Engine.generate`, by part, from the ``llm_input`` of each
        conversation about one sample. Media that several conversations share are prepared once.
        Raises :class:`RequestRefused` if the engine would refuse a request."""


class Engine(ABC):
    """Answers requests, many at the same time, in one asyncio loop.

    Attributes:
        dataset_model: ``model`` of the datasets.
        steps: A number that grows while the engine computes, and stands still if it is stuck.
        flops: Floating point operations of the model; None if they are not known.
        precision: The precision in which the model multiplies; None if it is not known.
    """

    dataset_model: str
    steps: int = 0
    flops: ModelFlops | None = None
    precision: Precision | None = None

    @property
    def max_item_tokens(self) -> int | None:
        """Visual tokens of the largest image or video that the engine takes; None for no limit."""
        return None

    @abstractmethod
    def preparer(self) -> Preparer:
        """The work of the decode processes for this engine."""

    @abstractmethod
    def check(self, constraints: Constraints) -> None:
        """Raise :class:`UserError` for constraints that the engine cannot enforce."""

    @abstractmethod
    async def start(self, folder: Path) -> None:
        """Load the model; ``folder`` exists as long as the job. Raises :class:`UserError` if the
        user's settings cannot work, :class:`EngineDead` for any other reason."""

    @abstractmethod
    async def generate(self, name: str, request: Any, constraints: Constraints) -> Answer:
        """Answer one request; called for many at once.

        Args:
            name: A name that no other request has.
            request: A request of :meth:`Preparer.prepare`.

        Raises:
            RequestRefused: The engine refuses this request alone.
            EngineDead: No request will be answered any more.
        """

    def patches(self, requests: Iterable[Any]) -> int:
        """Number of patches that the vision encoder computes for the requests of one sample. Shared
        media count once."""
        return 0

    @abstractmethod
    def is_saturated(self) -> bool:
        """Whether requests wait inside the engine, so that more requests would not speed it up."""

    @abstractmethod
    def stop(self) -> None:
        """End the engine's processes."""

"""The base class of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_pipeline.errors import EnvironmentFault
from video_pipeline.flops import ModelFlops
from video_pipeline.peaks import Precision
from video_pipeline.tasks.base import Task

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset


class RequestRefused(Exception):
    """The engine refuses one request; the others go on.

    Attributes:
        type: Name of the engine's own exception.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type

    def __reduce__(self) -> tuple[Any, ...]:
        return RequestRefused, (self.type, str(self))


class EngineDead(EnvironmentFault):
    """The engine is gone or stuck; the job cannot go on, but another attempt may."""


@dataclass(frozen=True)
class Constraints:
    """What one answer is held to.

    Attributes:
        json_schema: The JSON Schema that it must follow, as JSON; None for free text.
        max_tokens: Its tokens, at most; None for ``sampling.max_tokens``.
    """

    json_schema: str | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, task: Task, part: str) -> Constraints:
        """What the answer to the conversation of ``task`` named ``part`` is held to."""
        return cls(task.json_schema(part))


FREE = Constraints()


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        output_text: The text, without the reasoning.
        prompt_tokens: Tokens of the prompt, visual ones included.
        completion_tokens: Tokens of the answer.
        finish_reason: ``stop``, ``length``, or what else the engine says, see
            :mod:`video_pipeline.answers`.
        reasoning: What a thinking model thought before it answered, else None.
        cached_tokens: Tokens of the prompt that the engine had computed before.
    """

    output_text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    reasoning: str | None = None
    cached_tokens: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether the answer was cut off at its last token."""
        return self.finish_reason == "length"

    @property
    def usage(self) -> dict[str, Any]:
        """``__usage`` of the record."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reason": self.finish_reason,
        }

    def as_record(self) -> dict[str, Any]:
        """``output_text``, ``usage`` and maybe ``reasoning``, for the journal."""
        reasoning = {} if self.reasoning is None else {"reasoning": self.reasoning}
        return {"output_text": self.output_text, "usage": self.usage, **reasoning}


class Preparer(ABC):
    """The engine's part of preparing a sample. It crosses to the decode processes as a pickle."""

    @abstractmethod
    def start(self) -> None:
        """Load what is needed; called once in each decode process."""

    def read(self, dataset: BaseDataset, position: int) -> Any:
        """Have ``dataset`` make an item of the sample at ``position``."""
        return dataset[position]

    @abstractmethod
    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        """Turn what a dataset made of the sample ``key``, an ``llm_input`` for each of its parts,
        into requests for :meth:`Engine.generate`. Media that several parts share are prepared once.

        Raises :class:`RequestRefused` where the engine would refuse one."""


class Engine(ABC):
    """Answers requests, many at the same time, in one asyncio loop.

    Attributes:
        dataset_model: ``model`` of the datasets.
        max_item_tokens: Visual tokens of the largest image or video it takes; None: any.
        steps: A number that grows while the engine computes, and stands still if it is stuck.
        flops: What the model computes for a token; None where that is not known.
        precision: In which it multiplies; None likewise.
    """

    dataset_model: str
    max_item_tokens: int | None = None
    steps: int = 0
    flops: ModelFlops | None = None
    precision: Precision | None = None

    @abstractmethod
    def preparer(self) -> Preparer:
        """What the decode processes do for this engine."""

    @abstractmethod
    def check(self, constraints: Constraints) -> None:
        """Raise :class:`UserError` for constraints that the engine cannot hold an answer to."""

    @abstractmethod
    async def start(self, folder: Path) -> None:
        """Load the model; ``folder`` lasts as long as the job.

        Raises :class:`UserError` where the user's settings cannot work, and :class:`EngineDead`."""

    @abstractmethod
    async def generate(self, name: str, request: Any, constraints: Constraints = FREE) -> Answer:
        """Answer one request, whose ``name`` no other request has; called for many at once.

        Raises :class:`RequestRefused` for this request alone, :class:`EngineDead` for all.
        """

    def patches(self, requests: Iterable[Any]) -> int:
        """Patches that the vision encoder is given for the requests of one sample; media that they
        share count once."""
        return 0

    @abstractmethod
    def is_saturated(self) -> bool:
        """Whether requests wait inside the engine: more of them would not make it faster."""

    @abstractmethod
    def stop(self) -> None:
        """End the engine's processes."""

"""The base class of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
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
    """The limits of one answer.

    Attributes:
        json_schema: The JSON Schema that it must follow, as JSON; None for free text.
        max_tokens: The most tokens that it may have; None for ``sampling.max_tokens``.
    """

    json_schema: str | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, task: Task, part: str) -> Constraints:
        """The constraints of the answer to the conversation ``part`` of ``task``."""
        return cls(task.json_schema(part))


UNCONSTRAINED = Constraints()
"""Free text of up to ``sampling.max_tokens`` tokens."""


@dataclass(frozen=True)
class Answer:
    """An answer of the model.

    Attributes:
        output_text: The text, without the reasoning of a thinking model.
        prompt_tokens: Number of tokens of the prompt, visual ones included.
        finish_reason: ``stop``, ``length``, or another word of the engine, see
            :mod:`video_pipeline.run.answers`.
        cached_tokens: Number of tokens of the prompt that the engine had computed before.
        sound_tokens: Number of tokens of the prompt that stand for sound.
    """

    output_text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    reasoning: str | None = None
    cached_tokens: int = 0
    sound_tokens: int = 0

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
            **({"sound_tokens": self.sound_tokens} if self.sound_tokens else {}),
        }

    def as_record(self) -> dict[str, Any]:
        """The arguments of ``JournalWriter.answer`` that the engine knows: ``output_text``,
        ``usage`` and maybe ``reasoning``."""
        reasoning = {} if self.reasoning is None else {"reasoning": self.reasoning}
        return {"output_text": self.output_text, "usage": self.usage, **reasoning}


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
        """Make requests for :meth:`Engine.generate` of the ``llm_input`` of each conversation about
        one sample, by part. Media that several conversations share are prepared once. Raises
        :class:`RequestRefused` if the engine would refuse a request."""


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
    async def generate(
        self, name: str, request: Any, constraints: Constraints = UNCONSTRAINED
    ) -> Answer:
        """Answer one request; called for many at once.

        Args:
            name: No other request has it.
            request: One of those of :meth:`Preparer.prepare`.

        Raises:
            RequestRefused: The engine refuses this request alone.
            EngineDead: No request will be answered any more.
        """

    def patches(self, requests: Iterable[Any]) -> int:
        """Number of patches that the vision encoder computes for the requests of one sample. Media
        that they share count once."""
        return 0

    @abstractmethod
    def is_saturated(self) -> bool:
        """Whether requests wait inside the engine, so that more of them would not speed it up."""

    @abstractmethod
    def stop(self) -> None:
        """End the engine's processes."""

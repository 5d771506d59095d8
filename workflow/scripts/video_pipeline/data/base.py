"""The base class of datasets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from video_pipeline.tasks.base import Task


class BaseDataset(Dataset):
    """Turns samples into inputs of the model. Runs in decode processes, one thread each.

    Attributes:
        version: Part of the resume fingerprint. Raise it when the inputs a dataset builds change.
        samples: The samples: dicts, the input object plus ``__key`` and ``__video_uri``. Read
            lazily, so keep none.
        task: The task; ``task.messages(sample)`` gives the checked conversation.
        model: Name or folder of the model, for its processor and chat template.
        video_field: The field of a sample that holds the path as it is in the input.
        vision_kwargs: The ``vision`` section: keys for the video item of the messages.
        params: ``task_params`` of the configuration.
    """

    version: int = 1

    def __init__(
        self,
        *,
        samples: Sequence[dict[str, Any]],
        task: Task,
        model: str,
        video_field: str,
        vision_kwargs: dict[str, Any],
        params: dict[str, Any],
    ) -> None:
        self.samples = samples
        self.task = task
        self.model = model
        self.video_field = video_field
        self.vision_kwargs = vision_kwargs
        self.params = params

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def __getitem__(self, i: int) -> dict[str, Any]:
        """The input of sample ``i``::

            {"__key": the sample's key, "raw": the input object,
             "llm_input": {"prompt": text, "multi_modal_data": {...}, "mm_processor_kwargs": {...}}}

        ``llm_input`` is what vLLM's ``LLM.generate`` takes. An exception makes the sample an error
        record of stage ``read``; its text is the message.
        """


def raw_of(sample: dict[str, Any]) -> dict[str, Any]:
    """The input object of a sample: without what the pipeline added."""
    return {k: v for k, v in sample.items() if k not in ("__key", "__video_uri")}

"""The base class of datasets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from video_pipeline.errors import TaskError
from video_pipeline.tasks.base import ONLY_PART

if TYPE_CHECKING:
    from video_pipeline.tasks.base import Task


class BaseDataset(Dataset):
    """Turns samples into inputs of the model. Runs in decode processes, one thread each.

    Attributes:
        version: Part of the resume fingerprint. Raise it when the inputs a dataset builds change.
        needs_video: Whether every sample must name a video.
        sample_fields: Fields of a sample that :meth:`__getitem__` reads, beside those that the
            task's messages show, the video, ``video_start`` and ``video_end``. Where the value of
            one changes, the sample is inferred again.
        video_root: What a relative path in a message is relative to.
        samples: The samples: dicts, the input object plus ``__key`` and ``__video_uri``. Read
            lazily, so keep none.
        task: The task; ``task.messages(sample)`` gives the checked conversation,
            ``task.conversations(sample)`` all of them by name.
        model: Name or folder of the model, for its processor and chat template.
        video_field: The field of a sample that holds the path as it is in the input.
        vision_kwargs: The ``vision`` section: keys for the video item of the messages.
        params: ``task_params`` of the configuration.
    """

    version: int = 1
    needs_video: bool = True
    sample_fields: tuple[str, ...] = ()
    video_root: str = ""

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

    @classmethod
    def expand(cls, sample: dict[str, Any], params: dict[str, Any]) -> list[dict[str, Any]]:
        """The input objects that the one in ``sample`` stands for: usually itself. Split calls this
        in a decode process. An exception makes its line a bad one; a sample that kills the process,
        or is not ready after ``data.sample_timeout_s``, stays as it is."""
        return [raw_of(sample)]

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def __getitem__(self, i: int) -> dict[str, Any]:
        """The input of sample ``i``::

            {"__key": the sample's key, "raw": the input object,
             "llm_input": {"prompt": text, "multi_modal_data": {...}, "mm_processor_kwargs": {...}}}

        ``llm_input`` is what vLLM's ``LLM.generate`` takes. A task that asks several things by name
        (``task.conversations(sample)``) needs ``llm_inputs`` in its place, one for each name; media
        objects that are in more than one of them are prepared and encoded once. An exception makes
        the sample an error record of stage ``read``; its text is the message.
        """


def item(sample: dict[str, Any], llm_inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What ``__getitem__`` returns, from the inputs of the sample's conversations."""
    given = (
        {"llm_input": llm_inputs[ONLY_PART]}
        if ONLY_PART in llm_inputs
        else {"llm_inputs": llm_inputs}
    )
    return {"__key": sample["__key"], "raw": raw_of(sample), **given}


def expanded(
    dataset: type[BaseDataset], sample: dict[str, Any], params: dict[str, Any]
) -> list[dict[str, Any]]:
    """:meth:`BaseDataset.expand`, checked: input objects. Raises :class:`TaskError` if it returns
    something else and :class:`ValueError` if it returns none."""
    found = dataset.expand(sample, params)
    if not isinstance(found, list) or not all(isinstance(raw, dict) for raw in found):
        raise TaskError(
            f"dataset {dataset.__name__}: expand must return a list of input objects (dicts), it "
            f"returned {found!r:.200}"
        )
    if not found:
        raise ValueError("the dataset made no sample of it")
    return [raw_of(raw) for raw in found]


def inputs_of(item: Any, dataset: BaseDataset, key: str) -> dict[str, dict[str, Any]]:
    """The inputs in what ``__getitem__`` of ``dataset`` returned for the sample ``key``, by
    conversation. Raises :class:`TaskError` where it breaks the contract."""
    name = type(dataset).__name__
    given = item if isinstance(item, dict) else {}
    named = given.get("llm_inputs")
    inputs = named if isinstance(named, dict) and named else {ONLY_PART: given.get("llm_input")}
    if not all(isinstance(llm_input, dict) for llm_input in inputs.values()):
        raise TaskError(
            f"dataset {name}: __getitem__ must return a dict with '__key', 'raw' and "
            f"'llm_input', which is a dict too; it returned {item!r:.200}"
        )
    if given.get("__key") != key:
        raise TaskError(
            f"dataset {name}: __getitem__ was asked for sample {key!r} and returned "
            f"{given.get('__key')!r}; give back sample['__key'] as it came"
        )
    return inputs


def check_complete(
    inputs: Collection[str], parts: Collection[str], dataset: BaseDataset, key: str
) -> None:
    """Raise :class:`TaskError` if the ``inputs`` of the sample ``key`` lack one of the
    conversations ``parts``."""
    lacking = sorted(set(parts) - set(inputs))
    if lacking:
        missing = ", ".join(filter(None, lacking)) or "the whole sample"
        raise TaskError(
            f"dataset {type(dataset).__name__}: __getitem__ returned nothing for {missing} of "
            f"sample {key!r}, though the task asks about it. A task with named conversations needs "
            "`llm_inputs`, by name; one without needs `llm_input`"
        )


def raw_of(sample: dict[str, Any]) -> dict[str, Any]:
    """The input object of a sample: without what the pipeline added."""
    return {k: v for k, v in sample.items() if k not in ("__key", "__video_uri")}

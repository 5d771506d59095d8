"""The base class of datasets, and the checks of its contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch.utils.data import Dataset

from video_pipeline.errors import TaskError
from video_pipeline.tasks.base import ONLY_PART, Task


class BaseDataset(Dataset[dict[str, Any]]):
    """Turns samples into inputs of the model: a ``torch.utils.data.Dataset``.

    Decode processes create and index it, one thread in each.

    Attributes:
        version: Part of the resume fingerprint. Raise it when the inputs that the dataset builds
            change.
        needs_video: Whether every sample must name a video.
        sample_fields: Fields of a sample that :meth:`__getitem__` reads, beside those in the task's
            messages, the video, ``video_start`` and ``video_end``. If the value of such a field
            changes, the sample is inferred again.
        video_root: The folder that relative paths in messages start from; set after ``__init__``.
        chat_template_kwargs: ``vllm.chat_template_kwargs``, for the :class:`Prompter` of a dataset
            that makes prompts; set after ``__init__``.
        processor_kwargs: ``vllm.mm_processor_kwargs``, for a dataset that samples frames as the
            model's processor does; vLLM hands them to the processor itself. Set after ``__init__``.
        samples: The samples: dicts, the input object plus ``__key`` (text) and ``__video_uri``
            (an absolute path or an address). They are read when you ask for them, so keep none.
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
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({})
    processor_kwargs: Mapping[str, Any] = MappingProxyType({})

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
        """The arguments become attributes of the same names. A subclass with an ``__init__`` of
        its own takes ``**kwargs`` and passes them on."""
        self.samples = samples
        self.task = task
        self.model = model
        self.video_field = video_field
        self.vision_kwargs = vision_kwargs
        self.params = params

    @classmethod
    def expand(cls, sample: dict[str, Any], params: dict[str, Any]) -> list[dict[str, Any]]:
        """List the input objects that a line of the input stands for: usually only its own.

        Split calls this in a decode process. A sample that kills the process, or is not ready
        after ``data.sample_timeout_s``, stays as it is.

        Args:
            sample: The input object plus ``__key`` and ``__video_uri``.
            params: ``task_params`` of the configuration.

        Returns:
            At least one input object; each becomes a sample of its own.

        Raises:
            Exception: Any but :class:`UserError` makes the line a bad one, and its text says why.
        """
        return [raw_of(sample)]

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def __getitem__(self, i: int) -> dict[str, Any]:
        """Build the input of one sample.

        Args:
            i: Position of the sample in :attr:`samples`.

        Returns:
            A dict with

            * ``__key``: ``sample["__key"]``, unchanged;
            * ``raw``: the input object;
            * ``llm_input``: what vLLM's ``LLM.generate`` takes, a dict with the entries below.

            ``prompt`` is text with one placeholder of the model for each image and video. A dataset
            may give ``prompt_token_ids`` instead, or ``messages``: a conversation, from which vLLM
            makes the prompt with the model's chat template and ``vllm.chat_template_kwargs``.
            Special tokens in its text are plain characters, and its media come in the same order
            in ``multi_modal_data``.

            ``multi_modal_data`` is ``{"image": [...], "video": [...]}``. An image is in RGB, as
            ``PIL.Image``. A video is a pair of its frames (uint8, frames x 3 x height x width, in
            pixels) and its metadata (``fps`` in frames per second, ``frames_indices``,
            ``total_num_frames``).

            ``mm_processor_kwargs`` are settings of the model's processor for this sample.

            A task that asks several things by name (``task.conversations(sample)``) needs
            ``llm_inputs`` in place of ``llm_input``: such a dict for each name. Media objects that
            are in several of them are prepared and encoded once.

        Raises:
            Exception: Any but :class:`UserError`, which ends the job, makes the sample an error
                record of stage ``read``, with its text as the message.
        """


def item(sample: dict[str, Any], llm_inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The result of ``__getitem__`` for ``sample``, from the ``llm_input`` of each conversation."""
    has_names = ONLY_PART not in llm_inputs
    inputs = {"llm_inputs": llm_inputs} if has_names else {"llm_input": llm_inputs[ONLY_PART]}
    return {"__key": sample["__key"], "raw": raw_of(sample), **inputs}


def expanded(
    dataset: type[BaseDataset], sample: dict[str, Any], params: dict[str, Any]
) -> list[dict[str, Any]]:
    """Call :meth:`BaseDataset.expand`. Raises :class:`TaskError` if the result is no list of input
    objects, :class:`ValueError` if it is empty."""
    expanded_objects: Any = dataset.expand(sample, params)  # User code may return anything.
    if not isinstance(expanded_objects, list) or not all(
        isinstance(raw, dict) for raw in expanded_objects
    ):
        raise TaskError(
            f"dataset {dataset.__name__}: expand must return a list of input objects (dicts), it "
            f"returned {expanded_objects!r:.200}"
        )
    if not expanded_objects:
        raise ValueError("the dataset made no sample of it")
    return [raw_of(raw) for raw in expanded_objects]


def inputs_of(item: Any, dataset: BaseDataset, key: str) -> dict[str, dict[str, Any]]:
    """The ``llm_input`` of each conversation, from the ``item`` that ``__getitem__`` of ``dataset``
    returned for the sample ``key``. Raises :class:`TaskError` if it breaks the contract."""
    name = type(dataset).__name__
    fields = item if isinstance(item, dict) else {}
    named = fields.get("llm_inputs")
    inputs: dict[str, Any] = (
        named if isinstance(named, dict) and named else {ONLY_PART: fields.get("llm_input")}
    )
    if not all(isinstance(llm_input, dict) for llm_input in inputs.values()):
        raise TaskError(
            f"dataset {name}: __getitem__ must return a dict with '__key', 'raw' and "
            f"'llm_input', which is a dict too; it returned {item!r:.200}"
        )
    if fields.get("__key") != key:
        raise TaskError(
            f"dataset {name}: __getitem__ was asked for sample {key!r} and returned "
            f"{fields.get('__key')!r}; give back sample['__key'] as it came"
        )
    return inputs


def check_complete(
    inputs: Collection[str], parts: Collection[str], dataset: BaseDataset, key: str
) -> None:
    """Raise :class:`TaskError` if the sample ``key`` lacks an input for one of ``parts``."""
    lacking = sorted(set(parts) - set(inputs))
    if lacking:
        missing = ", ".join(filter(None, lacking)) or "the whole sample"
        raise TaskError(
            f"dataset {type(dataset).__name__}: __getitem__ returned nothing for {missing} of "
            f"sample {key!r}, though the task asks about it. A task with named conversations needs "
            "`llm_inputs`, by name; one without needs `llm_input`"
        )


def raw_of(sample: dict[str, Any]) -> dict[str, Any]:
    """The input object of a sample: without the fields that the pipeline added."""
    return {k: v for k, v in sample.items() if k not in ("__key", "__video_uri")}

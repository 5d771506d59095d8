"""Chooses the dataset that reads the samples of a run, and checks that it suits the model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeGuard

from video_pipeline.common.registry import is_built_in
from video_pipeline.common.suggest import did_you_mean
from video_pipeline.config import Config
from video_pipeline.data.base import BaseDataset
from video_pipeline.data.clips import ClipsDataset
from video_pipeline.data.frames import FramesDataset
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import get_dataset
from video_pipeline.data.stills import FirstFrameDataset, ImageDataset
from video_pipeline.data.video import VideoDataset
from video_pipeline.errors import UserError, user_code
from video_pipeline.model.family import family_of, is_qwen_vl
from video_pipeline.tasks.base import Task

PARAMS = ("prompt", "prompt_file", "questions", "clip_seconds")
"""The ``task_params`` of the built-in tasks and datasets. :func:`check_params` refuses others."""


def dataset_of(config: Config, task: Task) -> type[BaseDataset]:
    """The dataset that reads the samples of ``task``, see :func:`dataset_name`.

    Raises:
        UserError: There is no such dataset, or it cannot serve the model.
    """
    name = dataset_name(config, task)
    dataset = get_dataset(name)
    if _prepares_for_qwen(dataset) and is_qwen_vl(config) is False:
        if dataset is QwenVideoDataset or dataset.llm_inputs is not QwenVideoDataset.llm_inputs:
            raise UserError(
                f"vllm.model: {config.vllm.model} is no Qwen-VL model, and dataset {name!r} "
                "prepares videos for these alone; use run.dataset: video"
            )
        dataset = for_any_model(dataset)
    if config.vision.use_audio_in_video and dataset.needs_video:
        _check_hears(config, name, dataset)
    if _prepares_for_qwen(dataset):
        nframes = config.vision.nframes
        shows_all = issubclass(dataset, FirstFrameDataset | FramesDataset | ImageDataset)
        # qwen-vl-utils would round it without a word.
        if nframes is not None and nframes % 2 and not shows_all:
            raise UserError(
                f"vision.nframes: {nframes} is odd, and dataset {name!r} takes frames in pairs; "
                f"set {nframes - 1} or {nframes + 1}"
            )
        _check_processor_kwargs(config, name, _SIZES | _FRAMES)
    elif issubclass(dataset, VideoDataset):
        _check_processor_kwargs(config, name, _SAMPLED)
    return dataset


def depends_on_family(config: Config, task: Task) -> bool:
    """Whether :func:`dataset_of` must know the model's family."""
    chooses = config.run.dataset is None and not task.names_dataset
    if chooses or config.vision.use_audio_in_video:
        return True
    return _prepares_for_qwen(get_dataset(dataset_name(config, task)))


def _prepares_for_qwen(dataset: type[BaseDataset]) -> TypeGuard[type[QwenVideoDataset]]:
    """Whether a dataset prepares its media with qwen-vl-utils."""
    return (
        issubclass(dataset, QwenVideoDataset)
        and not issubclass(dataset, VideoDataset)
        and dataset.read is QwenVideoDataset.read
    )


def for_any_model(dataset: type[BaseDataset]) -> type[BaseDataset]:
    """A class that shows the same as ``dataset``, which derives from :class:`QwenVideoDataset`, and
    prepares it for any model: in the order of the new class's bases :class:`VideoDataset` comes
    between the two."""
    names = {
        "__module__": dataset.__module__,
        "__doc__": dataset.__doc__,
        "version": dataset.version + VideoDataset.version,  # Changes if one of them changes.
    }
    return type(dataset.__name__, (dataset, VideoDataset), names)


def _check_hears(config: Config, name: str, dataset: type[BaseDataset]) -> None:
    """Raise :class:`UserError` if the model, or ``dataset``, a built-in one, takes no sound."""
    recipe = "docs/sound.md has a recipe with transcripts for all other models"
    if family_of(config) not in ("qwen_omni", None):
        raise UserError(
            f"vision.use_audio_in_video: vllm.model {config.vllm.model} hears no sound. The omni "
            f"models of Qwen do (Qwen2.5-Omni, Qwen3-Omni); {recipe}"
        )
    reads_sound = dataset is VideoDataset or issubclass(dataset, ClipsDataset)
    if is_built_in(dataset) and not (reads_sound and issubclass(dataset, VideoDataset)):
        raise UserError(
            f"vision.use_audio_in_video: dataset {name!r} reads no sound; use run.dataset: video, "
            f"and an omni model of Qwen. {recipe}"
        )


_SAMPLED = {"do_sample_frames": "the section vision"}
_FRAMES = {
    **_SAMPLED,
    **{"fps": "vision.fps", "num_frames": "vision.nframes"},
    **{"min_frames": "vision.min_frames", "max_frames": "vision.max_frames"},
}
_SIZES = {
    **{"min_pixels": "vision.min_pixels", "max_pixels": "vision.max_pixels"},
    **{"size": "vision.min_pixels and vision.max_pixels", "do_resize": "the section vision"},
    "resample": "vision.resize",
}
"""Settings of a processor for steps that datasets do before it, and the keys that decide there."""


def _check_processor_kwargs(config: Config, dataset: str, without_effect: dict[str, str]) -> None:
    """Raise :class:`UserError` for the first of ``vllm.mm_processor_kwargs`` that the model's
    processor would get too late."""
    settings = config.vllm.arguments.get("mm_processor_kwargs") or {}
    scopes = (value for value in settings.values() if isinstance(value, dict))
    for name in chain(settings, *scopes):
        if name in without_effect:
            raise UserError(
                f"vllm.mm_processor_kwargs: {name} has no effect, because dataset {dataset!r} "
                "samples the frames before the model's processor gets them; "
                f"{without_effect[name]} decides"
            )


def dataset_name(config: Config, task: Task) -> str:
    """The name of the dataset that reads the samples of ``task``: ``run.dataset``, the task's own,
    or the one for the model."""
    if config.run.dataset is not None:
        return config.run.dataset
    if not task.names_dataset and is_qwen_vl(config) is False:
        return "video"
    return task.dataset_name


def check_params(config: Config, task: Task, dataset: type[BaseDataset]) -> None:
    """Raise :class:`UserError`, with the most similar name, for one of ``task_params`` that nothing
    takes. A user's own task or dataset may take any. Built-in ones take each other's, because
    stages share ``task_params``."""
    if not (is_built_in(type(task)) and is_built_in(dataset)):
        return
    for name in config.task_params:
        if name not in PARAMS:
            hint = did_you_mean(name, PARAMS) or ";"
            raise UserError(
                f"task_params.{name}: no built-in task or dataset takes that{hint} "
                f"known: {', '.join(PARAMS)}"
            )


def create_dataset(
    config: Config, task: Task, samples: Sequence[dict[str, Any]], model: str
) -> BaseDataset:
    """Create the dataset of ``task`` over ``samples``, for the processor of ``model``. Raises
    :class:`TaskError` if the ``__init__`` of a user's dataset fails."""
    cls = dataset_of(config, task)
    advice = (
        ". It must take what BaseDataset's takes: def __init__(self, **kwargs), and "
        "super().__init__(**kwargs)"
    )
    with user_code(f"dataset {cls.__name__}: its __init__ failed", advice):
        dataset = cls(
            samples=samples,
            task=task,
            model=model,
            video_field=config.data.video_field,
            vision_kwargs=config.vision.video_kwargs(),
            params=dict(config.task_params),
        )
    dataset.video_root = config.video_root
    dataset.chat_template_kwargs = config.vllm.chat_template_kwargs
    dataset.processor_kwargs = config.vllm.arguments.get("mm_processor_kwargs") or {}
    return dataset

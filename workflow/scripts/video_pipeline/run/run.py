"""A run: its configuration, task, dataset and model. Each of them is looked up once, only here."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_pipeline.config import Config
from video_pipeline.config.source import shown
from video_pipeline.errors import TaskError, UserError
from video_pipeline.model.family import fetch_family
from video_pipeline.model.model import Model, with_commit
from video_pipeline.run.changes import JournalSettings
from video_pipeline.run.fingerprint import fingerprint, settings_digest, settings_of
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import origin_of
from video_pipeline.tasks.base import Task, checked_names
from video_pipeline.tasks.registry import load_task

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset


def _function_of_expand(dataset: type[BaseDataset], title: str) -> Any:
    """The function behind the class method ``expand``."""
    method = inspect.getattr_static(dataset, "expand")
    if not isinstance(method, classmethod):
        raise TaskError(
            f"{title}: expand must be a classmethod: @classmethod, (cls, sample, params)"
        )
    return method.__func__


@dataclass(frozen=True)
class DatasetNeeds:
    """What a dataset needs, as plain values for other processes: a dataset imports torch."""

    name: str
    version: int
    reader_version: int
    needs_video: bool = True  # A sample without a video is bad.
    expands: bool = False  # A line of the input may stand for several samples.
    sample_fields: tuple[str, ...] = ()  # Fields that change its input, beside the messages.
    reads_files: bool = False  # The path of a sample is that of a file, or a folder of images.
    reads_patterns: bool = False  # The path may also be a pattern of names.
    own_rules: bool = False  # The model's processor chooses frames, and vLLM writes the prompt.
    ignored: tuple[str, ...] = ()  # Keys of vision that are set and have no effect.

    @classmethod
    def of(cls, config: Config, task: Task | None = None) -> DatasetNeeds:
        """What the dataset of ``config`` needs; ``task`` is its task, if that is loaded already.

        For a user's own :class:`BaseDataset` a path may mean anything: a name in an archive, a key
        of a store.

        Raises :class:`UserError` if there is no such task or dataset, nothing takes one of
        ``task_params``, the dataset breaks its contract, or it does not work with
        ``data.group_by``; and what :func:`fetch_family` raises.
        """
        # These import torch.
        from video_pipeline.data import choosing
        from video_pipeline.data.base import BaseDataset
        from video_pipeline.data.frames import FramesDataset
        from video_pipeline.data.qwen_video import QwenVideoDataset
        from video_pipeline.data.video import VideoDataset, ignored_keys
        from video_pipeline.video import READER_VERSION

        task = task or load_task(config)
        if choosing.depends_on_family(config, task):
            fetch_family(config)
        dataset = choosing.dataset_of(config, task)
        choosing.check_params(config, task, dataset)
        title = f"dataset {dataset.__name__}"
        own, inherited = (_function_of_expand(kind, title) for kind in (dataset, BaseDataset))
        own_rules = issubclass(dataset, VideoDataset)
        name, expands = choosing.dataset_name(config, task), own is not inherited
        if expands and config.data.group_by is not None:
            raise UserError(
                f"data.group_by: dataset {name!r} would cut the videos again that it puts "
                "together; choose another one for this stage (run.dataset), such as text"
            )
        return cls(
            name,
            dataset.version,
            READER_VERSION,
            needs_video=dataset.needs_video,
            expands=expands,
            sample_fields=checked_names(dataset.sample_fields, f"{title}: sample_fields"),
            reads_files=dataset.needs_video and issubclass(dataset, QwenVideoDataset),
            reads_patterns=issubclass(dataset, FramesDataset),
            own_rules=own_rules,
            ignored=ignored_keys(config, dataset) if own_rules else (),
        )


class Run:
    """A configuration with its task, dataset and model, for one process. A model of the hub has a
    ``commit``, if it is known."""

    def __init__(self, config: Config, layout: Layout, commit: str | None = None) -> None:
        self.config = config
        self.layout = layout
        self.commit = commit or Model.of(config).known_commit(layout.commits)

    def __getstate__(self) -> dict[str, Any]:
        # Another process loads the user's task itself.
        return {name: value for name, value in vars(self).items() if name != "task"}

    @cached_property
    def task(self) -> Task:
        """The task. Raises :class:`UserError` if a plugin cannot be loaded or has no such task."""
        return load_task(self.config)

    @cached_property
    def dataset(self) -> DatasetNeeds:
        """What the dataset needs. Imports torch, unless another process has looked it up."""
        return DatasetNeeds.of(with_commit(self.config, self.commit), self.task)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that change an answer, see
        :func:`video_pipeline.run.fingerprint.settings_of`."""
        return settings_of(self.config, self.task.in_messages, self.commit)

    @cached_property
    def settings_digest(self) -> str:
        """The digest of :attr:`settings` in the manifest."""
        return settings_digest(self.settings)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """The origin of the samples when this process first looked, see
        :func:`video_pipeline.run.origin.origin_of`."""
        return origin_of(self.config)

    def journal(self, run_id: str = "") -> Path:
        """The folder of the journal. A run without ``data.resume`` has a ``run_id``."""
        dataset = self.dataset
        name = fingerprint(self.settings, dataset.name, dataset.version, dataset.reader_version)
        return self.layout.journal / (f"{name}-{run_id}" if run_id else name)

    def journal_settings(self, run_id: str = "") -> JournalSettings:
        """The settings of :meth:`journal`."""
        parts = {
            **self.settings,
            "dataset": self.dataset.name,
            "dataset_version": self.dataset.version,
            "reader_version": self.dataset.reader_version,
        }
        root = shown(self.config.video_root)
        return JournalSettings.of(self.journal(run_id), parts, self.origin, root)

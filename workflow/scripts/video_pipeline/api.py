"""The names that plugins import: base classes of tasks and datasets, their registries, errors.

    from video_pipeline.api import Task, register_task

The modules that define these names may be imported, too. A dataset derives from a class of torch,
which takes seconds to import. So the names of datasets are resolved when a plugin first asks for
them (PEP 562), and a plugin with only tasks does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from video_pipeline.errors import TaskError, UserError
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.prompts import Prompt
from video_pipeline.tasks.registry import register_task
from video_pipeline.tasks.scores import label_scores

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset
    from video_pipeline.data.qwen_video import QwenVideoDataset
    from video_pipeline.data.registry import register_dataset
    from video_pipeline.model.prompt import Prompter

__all__ = [
    "BaseDataset",
    "Prompt",
    "Prompter",
    "QwenVideoDataset",
    "Task",
    "TaskError",
    "UserError",
    "label_scores",
    "register_dataset",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from video_pipeline.data.base import BaseDataset
    from video_pipeline.data.qwen_video import QwenVideoDataset
    from video_pipeline.data.registry import register_dataset
    from video_pipeline.model.prompt import Prompter

    loaded = (BaseDataset, Prompter, QwenVideoDataset, register_dataset)
    globals().update({value.__name__: value for value in loaded})
    return globals()[name]

"""Whether a model is of the Qwen-VL line, whose videos qwen-vl-utils prepares."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from video_pipeline.config import Config
from video_pipeline.model.model import Model, is_commit
from video_pipeline.model.processor import PROCESSOR_FILES, processor_folder

_PROCESSOR = re.compile(r"Qwen(2|2_5_|3)VLProcessor")
_MODEL_TYPE = re.compile(r"qwen(2|2_5|3)_vl(_moe)?|qwen3_5(_moe)?")


def files_of_model(config: Config) -> Path | None:
    """A folder with the model's files that are not weights; None if there is no model here, or it
    is one of the hub that was not fetched and whose commit is not known yet.

    Raises:
        UserError, EnvironmentFault: The hub does not give them.
    """
    model = Model.of(config)
    if config.run.engine == "simulated":
        return None
    if not model.is_on_hub:
        folder = Path(model.name)
        return folder if folder.is_dir() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # without the network, because each decode process comes here
        folder_name = snapshot_download(
            model.name,
            revision=model.revision,
            allow_patterns=PROCESSOR_FILES,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        if not is_commit(model.revision):
            return None
        folder_name = processor_folder(model.name, model.revision)
    return Path(folder_name)


def is_qwen_vl(config: Config) -> bool | None:
    """Whether the model is of the Qwen-VL line; None if its files do not tell. Raises what
    :func:`files_of_model` does."""
    folder = files_of_model(config)
    return None if folder is None else is_qwen_vl_folder(folder)


def is_qwen_vl_folder(folder: Path) -> bool | None:
    """Whether a folder holds a model of the Qwen-VL line, by the processor that its files name;
    None if they do not tell."""
    if processor := _processor_class(folder):
        return _PROCESSOR.fullmatch(processor) is not None
    if model_type := _read(folder / "config.json").get("model_type"):
        return _MODEL_TYPE.fullmatch(model_type) is not None
    return None


@cache
def is_told_one_rate(model: str) -> bool:
    """Whether the processor of ``model`` gets the rate of sampled frames as a setting, and not with
    each video: those of Qwen's omni models."""
    return "Omni" in _processor_class(Path(model))


def _processor_class(folder: Path) -> str:
    """The class of the processor that the files of a model name; empty if they do not."""
    for name in ("processor_config", "preprocessor_config", "tokenizer_config"):
        if processor := _read(folder / f"{name}.json").get("processor_class"):
            return str(processor)
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # The engine says what is wrong with the model.
        return {}
    return settings

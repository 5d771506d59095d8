"""Whether a model is of the Qwen-VL line, whose videos qwen-vl-utils prepares."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from video_pipeline.config import Config
from video_pipeline.model.model import Model
from video_pipeline.model.processor import local_folder, processor_folder

_PROCESSOR = re.compile(r"Qwen(2|2_5_|3)VLProcessor")
_HUB_NAME = re.compile(r"Qwen(2|2\.5|3)-VL-|Qwen3\.5-")
_MODEL_TYPE = re.compile(r"qwen(2|2_5|3)_vl(_moe)?|qwen3_5(_moe)?")


def is_qwen_vl(config: Config) -> bool | None:
    """Whether the model is of the Qwen-VL line: by its name on the hub, or by its files; None if
    they are not here or do not tell. Asks no network."""
    model = Model.of(config)
    if config.run.engine == "simulated":
        return None
    if model.is_on_hub and _HUB_NAME.search(model.name):
        return True
    folder = local_folder(model)
    return None if folder is None else is_qwen_vl_folder(folder)


def fetch_family(config: Config) -> None:
    """Fetch the files that tell the family of a model of the hub, unless its name does.

    Raises:
        UserError, EnvironmentFault: The hub does not give them.
    """
    model = Model.of(config)
    if model.is_on_hub and is_qwen_vl(config) is None:
        processor_folder(model.name, model.revision)


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

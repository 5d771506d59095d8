"""Tells the family of a model: the Qwen-VL line, whose videos qwen-vl-utils prepares; Qwen's omni
models, which hear; or any other."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

from video_pipeline.common.files import read_object
from video_pipeline.config import Config
from video_pipeline.model.model import Model
from video_pipeline.model.processor import local_folder, processor_folder

Family = Literal["qwen_vl", "qwen_omni", "other"]

_PROCESSORS: dict[Family, re.Pattern[str]] = {
    "qwen_vl": re.compile(r"Qwen(2|2_5_|3)VLProcessor"),
    "qwen_omni": re.compile(r"Qwen(2_5Omni|3OmniMoe)Processor"),
}
_HUB_NAMES: dict[Family, re.Pattern[str]] = {
    "qwen_vl": re.compile(r"Qwen(2|2\.5|3)-VL-|Qwen3\.5-"),
    "qwen_omni": re.compile(r"Qwen(2\.5|3)-Omni-"),
}
_MODEL_TYPES: dict[Family, re.Pattern[str]] = {
    "qwen_vl": re.compile(r"qwen(2|2_5|3)_vl(_moe)?|qwen3_5(_moe)?"),
    "qwen_omni": re.compile(r"qwen2_5_omni|qwen3_omni_moe"),
}


def family_of(config: Config) -> Family | None:
    """The family of the model: by its name on the hub, or by its files; None if they are not here
    or do not tell. Asks no network."""
    model = Model.of(config)
    if config.run.engine == "simulated":
        return None
    if model.is_on_hub:
        for family, pattern in _HUB_NAMES.items():
            if pattern.search(model.name):
                return family
    folder = local_folder(model)
    return None if folder is None else family_of_folder(str(folder))


def is_qwen_vl(config: Config) -> bool | None:
    """Whether the model is of the Qwen-VL line; None if that is not known, see
    :func:`family_of`."""
    family = family_of(config)
    return None if family is None else family == "qwen_vl"


def fetch_family(config: Config) -> None:
    """Fetch the files that tell the family of a model of the hub, unless its name does.

    Raises:
        UserError, EnvironmentFault: The hub does not give them.
    """
    model = Model.of(config)
    if model.is_on_hub and family_of(config) is None:
        processor_folder(model.name, model.revision)


@cache
def family_of_folder(folder: str) -> Family | None:
    """The family of the model in a folder, by its processor's files; None if they do not tell."""
    if processor := processor_class(folder):
        return _matching(_PROCESSORS, processor)
    if model_type := read_object(Path(folder, "config.json")).get("model_type"):
        return _matching(_MODEL_TYPES, model_type)
    return None


def _matching(patterns: dict[Family, re.Pattern[str]], name: str) -> Family:
    return next((family for family, known in patterns.items() if known.fullmatch(name)), "other")


def processor_class(folder: str) -> str:
    """The class of the processor that the files of a model name; empty if they name none, or are
    damaged, which the engine reports."""
    for name in ("processor_config", "preprocessor_config", "tokenizer_config"):
        if processor := read_object(Path(folder, f"{name}.json")).get("processor_class"):
            return str(processor)
    return ""

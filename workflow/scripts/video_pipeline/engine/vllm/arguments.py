"""Turns the sections ``vllm`` and ``sampling`` into vLLM's own objects."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open

from video_pipeline.common.faults import failure_of, is_environment_fault
from video_pipeline.config import Config
from video_pipeline.config.vllm_names import check_names
from video_pipeline.engine.vllm.causes import one_line
from video_pipeline.engine.vllm.compat import (
    ENGINE_ARGUMENTS,
    LORA_RANKS,
    REFUSALS,
    SAMPLING_PARAMETERS,
    LoRARequest,
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsConfig,
    StructuredOutputsParams,
    VllmConfig,
    adapts_encoders,
    configure,
    prunes_videos,
)
from video_pipeline.errors import UserError
from video_pipeline.gpu.leases import LeaseHolder
from video_pipeline.model.family import family_of, fetch_family
from video_pipeline.model.processor import processor_folder

# Each video is used once, so caches of processed media only cost memory and hashing. A user's own
# engine arguments replace these.
_DEFAULTS = {
    "mm_processor_cache_gb": 0,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    # Without the spaces that JSON allows: a model may fill its answer with them. For that vLLM must
    # know the backend. This is its own first choice.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}


def vllm_config_of(config: Config) -> VllmConfig:
    """vLLM's configuration for the section ``vllm``. Raises :class:`UserError` for settings that
    vLLM refuses, :class:`EnvironmentFault` if the machine or the hub is at fault."""
    check_names("vllm", config.vllm.arguments, ENGINE_ARGUMENTS)
    if config.vllm.arguments.get("worker_extension_cls"):
        raise UserError(
            "vllm.worker_extension_cls: is in use, so that vLLM's workers keep the lease of "
            "their GPUs; nothing here calls another extension"
        )
    arguments = {
        **_DEFAULTS,
        **_cache_arguments(config),
        **_lora_arguments(config),
        **config.vllm.arguments,
        "worker_extension_cls": _worker(config),
    }
    try:
        vllm_config = _configured(arguments)
        if not _same_normalisation(vllm_config):
            # On the device vLLM normalises videos with the image processor's mean and std.
            vllm_config = _configured({**arguments, "mm_device_do_normalize": False})
    except REFUSALS as error:
        keys = "" if is_environment_fault(error) else _refused_keys(config, arguments)
        message = f"vLLM refuses {keys or 'the section vllm'}: {reason_of(error)}"
        raise failure_of(error, message) from error
    if config.vllm.prunes_videos and not prunes_videos(vllm_config):
        raise UserError(
            "vllm.video_pruning_rate: vLLM leaves out no tokens of the videos of this model "
            f"({', '.join(vllm_config.model_config.architectures)}); take the key out"
        )
    if config.vllm.lora_path is not None:
        _check_adapter(config.vllm.lora_path, vllm_config)
    return vllm_config


def _cache_arguments(config: Config) -> dict[str, Any]:
    """With several answers to a prompt: vLLM's own choice, which is to keep the prompt wherever the
    model can. It asks for each answer with the whole prompt."""
    several = (config.sampling.model_dump().get("n") or 1) > 1
    return {"enable_prefix_caching": None} if several else {}


def _worker(config: Config) -> str:
    """The name of the class that vLLM's workers get as a base."""
    fetch_family(config)
    # This is a name, because only vLLM's workers may import the module.
    if family_of(config) == "qwen_omni":
        return "video_pipeline.engine.vllm.omni.OmniWorker"
    return f"{LeaseHolder.__module__}.{LeaseHolder.__qualname__}"


def _configured(arguments: Mapping[str, Any]) -> VllmConfig:
    structured = StructuredOutputsConfig(**arguments["structured_outputs_config"])
    return configure({**arguments, "structured_outputs_config": structured})


def _refused_keys(config: Config, arguments: Mapping[str, Any]) -> str:
    """The keys of the section ``vllm`` that vLLM refuses: without any single one of them it takes
    the others. Empty if there is none."""
    keys = []
    for name in config.vllm.model_fields_set - {"model"}:
        if name not in arguments:
            continue
        default = {name: _DEFAULTS[name]} if name in _DEFAULTS else {}
        others = {key: value for key, value in arguments.items() if key != name}
        with contextlib.suppress(*REFUSALS):
            _configured({**others, **default})
            keys.append(f"vllm.{name}")
    return " or ".join(sorted(keys))


def _same_normalisation(vllm_config: VllmConfig) -> bool:
    """Whether images and videos are normalised alike by the model's processor."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    model_config = vllm_config.model_config
    if not model_config.is_multimodal_model:
        return True
    folder = processor_folder(model_config.model, model_config.revision)
    # Always set: without it transformers asks at the terminal whether to run the code.
    code = {"trust_remote_code": model_config.trust_remote_code}
    try:  # Not AutoProcessor: its tokenizer takes seconds.
        image = AutoImageProcessor.from_pretrained(folder, **code)  # type: ignore[no-untyped-call]
        video = AutoVideoProcessor.from_pretrained(folder, **code)  # type: ignore[no-untyped-call]
    except (OSError, ValueError):
        return False  # It is not known, so each is normalised by its own processor.
    return all(getattr(image, name, None) == getattr(video, name, None) for name in _NORMALISATION)


_NORMALISATION = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")


def reason_of(error: BaseException) -> str:
    """The reason why vLLM refuses a setting, in one line."""
    if isinstance(error, ValidationError):  # Its text has the whole configuration in it.
        reasons = (
            ": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")])
            for fault in error.errors(include_url=False, include_input=False)
        )
        return one_line("; ".join(reasons))
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return one_line(str(text) or type(error).__name__)


def sampling_params(config: Config) -> SamplingParams:
    """The section ``sampling``. Raises :class:`UserError` for settings that vLLM refuses."""
    settings = config.sampling.model_dump()
    check_names("sampling", settings, SAMPLING_PARAMETERS)
    try:
        return final_only(settings)
    except REFUSALS as error:
        raise UserError(f"vLLM refuses the section sampling: {reason_of(error)}") from error


def final_only(settings: Mapping[str, Any]) -> SamplingParams:
    """vLLM's parameters for ``settings``, with which it returns only whole answers."""
    objects: dict[str, Any] = {}
    if settings.get("logit_bias"):  # In the resolved configuration its keys are texts.
        objects["logit_bias"] = {int(token): v for token, v in settings["logit_bias"].items()}
    for name, of_vllm in _SAMPLING_OBJECTS.items():
        if settings.get(name) is not None:
            # vLLM would ignore a name that it does not know.
            known = [field.name for field in dataclasses.fields(of_vllm)]
            check_names(f"sampling.{name}", settings[name], known)
            objects[name] = of_vllm(**settings[name])
    return SamplingParams(**{**settings, **objects, "output_kind": RequestOutputKind.FINAL_ONLY})


_SAMPLING_OBJECTS: dict[str, Any] = {
    "structured_outputs": StructuredOutputsParams,
    "repetition_detection": RepetitionDetectionParams,
}
"""Sampling parameters that vLLM does not take as mappings."""


def lora_request(config: Config) -> LoRARequest | None:
    """The part of each request that names the adapter in ``vllm.lora_path``; None without one."""
    path = config.vllm.lora_path
    return LoRARequest(path.name, 1, str(path.absolute())) if path is not None else None


def _lora_arguments(config: Config) -> dict[str, Any]:
    """The engine arguments that the adapter in ``vllm.lora_path`` needs."""
    if config.vllm.lora_path is None:
        return {}
    path = config.vllm.lora_path / "adapter_config.json"
    try:
        rank = json.loads(path.read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"vllm.lora_path: {path} does not say the rank of an adapter ({error}); the folder "
            "must hold what peft's save_pretrained writes"
        ) from error
    max_rank = min((limit for limit in LORA_RANKS if limit >= rank), default=None)
    if max_rank is None:
        raise UserError(
            f"vllm.lora_path: {path}: rank {rank} is more than vLLM takes ({max(LORA_RANKS)})"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_rank}


def _check_adapter(folder: Path, vllm_config: VllmConfig) -> None:
    """Raise :class:`UserError` for an adapter that vLLM would apply only in part: it leaves out the
    weights of the vision encoder, and the run goes on."""
    path = folder / "adapter_model.safetensors"
    try:
        if path.is_file():
            with safe_open(path, "pt") as weights:
                names = list(weights.keys())
        else:
            path = path.with_suffix(".bin")  # As older versions of peft write it.
            path = path if path.is_file() else path.with_suffix(".pt")
            names = list(torch.load(path, map_location="meta", weights_only=True))
    except Exception as error:  # Each format has exceptions of its own.
        raise UserError(f"vllm.lora_path: {path} holds no weights ({error})") from error
    outside = next(filter(is_outside_language_model, names), None)
    if outside is None:
        return
    part = f"vllm.lora_path: {path} does not adapt the language model alone ({outside})"
    if "lora_" not in outside or not adapts_encoders(vllm_config):
        raise UserError(
            f"{part}, and vLLM applies nothing else of it. Merge the adapter into the "
            "model (peft's merge_and_unload), and name the result in vllm.model"
        )
    if vllm_config.lora_config is None or not vllm_config.lora_config.enable_tower_connector_lora:
        raise UserError(f"{part}; that needs vllm.enable_tower_connector_lora: true")


_ENCODERS = re.compile("visual|vision|image|audio|vpm|sampler|projector|connector|merger|mlp1")


def is_outside_language_model(name: str) -> bool:
    """Whether a weight belongs to an encoder or a connector, by its name: vLLM's own mapping needs
    the loaded model. Names within a ``language_model`` may have projectors of its own."""
    return "language_model" not in name and _ENCODERS.search(name) is not None

"""All uses of vLLM. No other module imports vLLM, except for ``omni``, which corrects a family of
models within vLLM's workers.

Some of them are not public API and may change with any version. A function says what it relies on,
and ``tests/unit/test_vllm_compat.py`` tests that with the installed vLLM. If something is missing,
the import of this module raises :class:`VllmUnsupported` (see :func:`_check`), or a function raises
it before the first sample is prepared.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, get_args

from video_pipeline.config.vllm_version import unsupported

# vLLM must start its engine process by spawn: this process has threads.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

try:
    from vllm import SamplingParams
    from vllm.config import LoggingConfig, MultiModalConfig, StructuredOutputsConfig, VllmConfig
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMClientError, VLLMError
    from vllm.logger import DEFAULT_LOGGING_CONFIG
    from vllm.lora.request import LoRARequest
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache
    from vllm.multimodal.encoder_budget import MultiModalBudget
    from vllm.multimodal.inputs import MultiModalFieldElem, PlaceholderRange
    from vllm.multimodal.processing.context import BaseProcessingInfo
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.reasoning import ReasoningParser, ReasoningParserManager
    from vllm.renderers.base import BaseRenderer
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.renderers.params import ChatParams
    from vllm.renderers.registry import renderer_from_config
    from vllm.sampling_params import (
        RepetitionDetectionParams,
        RequestOutputKind,
        StructuredOutputsParams,
    )
    from vllm.tokenizers.registry import cached_tokenizer_from_config
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import SchedulerStats
except (ImportError, AttributeError) as error:
    raise unsupported(error) from error

__all__ = [
    "REFUSALS",
    "AsyncLLM",
    "CompletionOutput",
    "EngineDeadError",
    "LoRARequest",
    "RepetitionDetectionParams",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsConfig",
    "StructuredOutputsParams",
    "VLLMClientError",
    "VllmConfig",
]

REFUSALS = (
    *(ValueError, TypeError, OSError, ImportError, LookupError, RuntimeError, AssertionError),
    VLLMError,
)
"""The exceptions of vLLM for settings that cannot work. NotImplementedError is a RuntimeError."""

ENGINE_ARGUMENTS: dict[str, Any] = {
    field.name: field.type
    for field in dataclasses.fields(AsyncEngineArgs)
    if not field.name.startswith("_")
}
SAMPLING_PARAMETERS: dict[str, Any] = {
    name: parameter.annotation
    for name, parameter in inspect.signature(SamplingParams).parameters.items()
    if not name.startswith("_")
}
"""The names of vLLM's settings, and the type of each."""

LORA_RANKS: tuple[int, ...] = get_args(MaxLoRARanks)
"""The values of ``max_lora_rank``; an adapter runs under the next larger one."""


# --- the engine -----------------------------------------------------------------------------------


def configure(arguments: Mapping[str, Any]) -> VllmConfig:
    """vLLM's configuration for engine arguments, with batch sizes for throughput (offline use)."""
    return AsyncEngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)


def prunes_videos(vllm_config: VllmConfig) -> bool:
    """Whether vLLM can leave out tokens of the videos of this model. For other models it ignores
    ``video_pruning_rate``."""
    try:
        return bool(vllm_config.model_config._model_info.supported_video_pruning_methods)
    except AttributeError as error:
        raise unsupported(error) from error


def adapts_encoders(vllm_config: VllmConfig) -> bool:
    """Whether vLLM can apply an adapter to the encoders of this model, not only to its language
    model. Loads the code of the model, which few runs need."""
    from vllm.model_executor.model_loader import get_model_cls

    return getattr(get_model_cls(vllm_config.model_config), "supports_tower_connector_lora", False)


def encoder_cache_size(vllm_config: VllmConfig) -> int:
    """The visual tokens of the largest image or video that the engine takes."""
    budget = MultiModalBudget(vllm_config, MULTIMODAL_REGISTRY, enable_cache=False)
    return budget.encoder_cache_size


def start_engine(vllm_config: VllmConfig, note_step: Callable[[int, int | None], None]) -> AsyncLLM:
    """Load the model. ``note_step`` is called after each step of a scheduler with the index of its
    data-parallel engine, and the number of requests that wait there, None if vLLM does not say."""
    # The process that feeds the engine gets prepared samples, so it needs no processor. AsyncLLM
    # would warm it up with this method, for 15 s of CPU while the engine starts.
    BaseRenderer.start_mm_warmup_in_background = lambda self: None  # type: ignore[method-assign]
    return AsyncLLM.from_vllm_config(
        vllm_config,
        stat_loggers=[lambda _, index: StepLogger(note_step, index)],
        disable_log_stats=True,
    )


def engine_processes() -> list[BaseProcess]:
    """The processes that :func:`start_engine` has started. Relies on vLLM starting them with
    :mod:`multiprocessing`, with these names."""
    children = multiprocessing.active_children()
    return [process for process in children if process.name.startswith("EngineCore")]


class StepLogger(StatLoggerBase):
    """Gets the statistics of the scheduler of one engine after each step."""

    def __init__(self, note_step: Callable[[int, int | None], None], index: int) -> None:
        self._note_step = note_step
        self._index = index

    def record(self, scheduler_stats: SchedulerStats | None, *_: Any, **__: Any) -> None:
        waiting = None if scheduler_stats is None else scheduler_stats.num_waiting_reqs
        self._note_step(self._index, waiting)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def verify_sampling(sampling: SamplingParams, vllm_config: VllmConfig) -> None:
    """Let vLLM check sampling parameters, as it does for each request. Raises one of
    :data:`REFUSALS`."""
    sampling.verify(
        vllm_config.model_config,
        vllm_config.speculative_config,
        vllm_config.structured_outputs_config,
        cached_tokenizer_from_config(vllm_config.model_config),
    )


def token_logprobs(completion: CompletionOutput) -> list[dict[str, Any]]:
    """The log probabilities of an answer in the form of OpenAI's chat completions: ``token`` and
    ``logprob`` of each token, and in ``top_logprobs`` the likely tokens at its place, itself
    included. Tokens that a schema rules out are left out; their logarithm is minus infinity."""
    tokens = []
    places: Any = completion.logprobs  # With `flat_logprobs` it is another kind of list.
    for token_id, candidates in zip(completion.token_ids, places, strict=False):
        likely = sorted(candidates.values(), key=lambda entry: -entry.logprob)
        tokens.append(
            {
                **_token(candidates[token_id]),
                "top_logprobs": [_token(entry) for entry in likely if entry.logprob > -math.inf],
            }
        )
    return tokens


def _token(entry: Any) -> dict[str, Any]:
    # vLLM computes with 32 bits, so about six digits after the point have a meaning.
    return {"token": entry.decoded_token, "logprob": round(entry.logprob, 6)}


def default_logging(level: str, dates: str) -> dict[str, Any]:
    """vLLM's logging configuration, a schema for :func:`logging.config.dictConfig`, with ``dates``
    as the format of times. Relies on its one logger and handler, both called ``vllm``."""
    logging_config = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
    logging_config["loggers"]["vllm"]["level"] = level
    logging_config["handlers"]["vllm"]["level"] = level
    for formatter in logging_config["formatters"].values():
        formatter |= {"datefmt": dates, "log_level": level}
    return logging_config


# --- reasoning ------------------------------------------------------------------------------------


def reasoning_parser(
    vllm_config: VllmConfig, chat_template_kwargs: Mapping[str, Any]
) -> ReasoningParser | None:
    """The parser that ``reasoning_parser`` names; None if it names none. The switches of the
    prompts tell it whether the model thinks at all. Raises one of :data:`REFUSALS`."""
    name = vllm_config.structured_outputs_config.reasoning_parser
    if not name:
        return None
    parser_class = ReasoningParserManager.get_reasoning_parser(name)
    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    return parser_class(tokenizer, chat_template_kwargs=dict(chat_template_kwargs))


def split_reasoning(parser: ReasoningParser, text: str) -> tuple[str | None, str | None]:
    """The reasoning in ``text``, and the answer."""
    return parser.extract_reasoning(text, _NO_CHAT_REQUEST)


_NO_CHAT_REQUEST = ChatCompletionRequest(messages=[], seed=None)
"""Stands for the request of a chat server, which reasoning parsers take."""


# --- prepared requests ----------------------------------------------------------------------------


class SampleRenderer:
    """Turns prompts into the engine's input. The prompts of a sample share their media."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """Changes ``vllm_config``, which must not be the engine's."""
        self._model_config = vllm_config.model_config
        if self._model_config.multimodal_config is not None:
            # A renderer makes its caches when this is not 0.
            self._model_config.multimodal_config.mm_processor_cache_gb = _SHARED_MEDIA_GB
        self._renderer = renderer_from_config(vllm_config)
        _tell_exact_times(getattr(self._renderer, "mm_processor", None))
        try:
            self._cache: MultiModalProcessorOnlyCache | None = (
                self._renderer._mm_processor_only_cache
            )
        except AttributeError as error:
            raise unsupported(error) from error

    def render(self, llm_input: Mapping[str, Any]) -> dict[str, Any]:
        """The input for ``AsyncLLM.generate``. With ``skip_mm_cache`` vLLM looks up media only in
        the cache of this process: it would believe that the engine shares the other cache."""
        prompt = parse_model_prompt(self._model_config, llm_input)
        engine_input: dict[str, Any]
        (engine_input,) = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        return engine_input

    def render_messages(
        self, messages: list[Any], chat_template_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The ``prompt`` of messages whose media are announced by :func:`announcement`; the
        ``prompt_token_ids`` for a few models, whose renderers make tokens at once."""
        switches = {**chat_template_kwargs, "add_generation_prompt": True, "tokenize": False}
        _, rendered = self._renderer.render_messages(
            messages, ChatParams(chat_template_kwargs=switches)
        )
        names = ("prompt", "prompt_token_ids")
        return {name: rendered[name] for name in names if name in rendered}

    def takes(self, modality: str) -> bool:
        """Whether the model takes images or videos at all."""
        processor = getattr(self._renderer, "mm_processor", None)
        limits = {} if processor is None else processor.info.supported_mm_limits
        return bool(limits.get(modality, 0) != 0)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers that vLLM uses."""
        return self._renderer.get_tokenizer()

    def forget_media(self) -> None:
        """Empty the cache: no other sample has the media of this one."""
        if self._cache is not None:
            self._cache.clear_cache()


_SHARED_MEDIA_GB = 2
"""Enough for the prepared media of one sample."""


def _tell_exact_times(processor: Any) -> None:
    """Tell GLM-4.6V the times of its frames to a tenth of a second, as its own processor does. vLLM
    cuts them to whole seconds, in a method of that family."""
    info = getattr(processor, "info", None)
    cut = getattr(info, "_get_video_second_idx_glm46v", None)
    if info is None or cut is None:
        return

    def exact(metadata: Mapping[str, Any], total_frames: int) -> list[float]:
        if metadata.get("do_sample_frames", True):
            return list(cut(metadata, total_frames))
        return [index / metadata["fps"] for index in metadata["frames_indices"][::2]]

    info._get_video_second_idx_glm46v = exact


def announcement(modality: str, name: str) -> dict[str, Any]:
    """The part of a message for an image or a video that is decoded already. vLLM has no such part,
    but it takes a part without an address for a medium that it knows by ``name``."""
    return {"type": f"{modality}_url", f"{modality}_url": None, "uuid": name}


def media_of(engine_input: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Modality, name and fields of each medium. The tensor of a field is its attribute ``data``."""
    for modality, items in (engine_input.get("mm_kwargs") or {}).items():
        for name, item in zip(engine_input["mm_hashes"][modality], items, strict=True):
            yield modality, name, item


def media_ranges(engine_input: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The begin and end of each medium in ``prompt_token_ids``, in order."""
    ranges = (engine_input.get("mm_placeholders") or {}).values()
    return sorted((r.offset, r.offset + r.length) for of_modality in ranges for r in of_modality)


def media_tokens(engine_input: Mapping[str, Any]) -> dict[str, list[int]]:
    """The number of tokens of each medium, by modality, without the text between its frames."""
    ranges = engine_input.get("mm_placeholders") or {}
    return {
        modality: [place.get_num_embeds() for place in of_modality]
        for modality, of_modality in ranges.items()
    }


# --- the check of the installed vLLM --------------------------------------------------------------


def _check() -> None:
    """Check that the installed vLLM has everything that is used, beyond the imported names: now,
    and not in the middle of a run."""
    try:
        _takes(AsyncLLM.from_vllm_config, "config", options=("stat_loggers", "disable_log_stats"))
        options = ("request_id", "lora_request", "reasoning_parser_kwargs")
        _takes(AsyncLLM.generate, "self", "prompt", "sampling", options=options)
        _takes(AsyncLLM.shutdown, "self", options=("timeout",))
        _takes(BaseRenderer.start_mm_warmup_in_background, "self")
        _takes(BaseRenderer.get_tokenizer, "self")
        _takes(BaseRenderer.render_cmpl, "self", "prompts", options=("skip_mm_cache",))
        _takes(BaseRenderer.render_messages, "self", "messages", "params")
        _takes(ChatParams, options=("chat_template_kwargs",))
        _takes(MultiModalBudget, "config", "registry", options=("enable_cache",))
        _takes(MultiModalProcessorOnlyCache.clear_cache, "self")
        _takes(PlaceholderRange.get_num_embeds, "self")
        _takes(ReasoningParser.extract_content_ids, "self", "ids")
        _takes(ReasoningParser.extract_reasoning, "self", "text", "request")
        _takes(SamplingParams.verify, "self", "model", "speculative", "structured", "tokenizer")
        _takes(parse_model_prompt, "model", "prompt")
        _takes(renderer_from_config, "config")
        _has(AsyncLLM, "errored")
        _has(LoggingConfig, "configure_logging", "formatter", "log_level", "pylogging_config_file")
        _has(MultiModalConfig, "mm_processor_cache_gb")
        _has(MultiModalFieldElem, "data")
        _has(PlaceholderRange, "offset", "length")
        _has(BaseProcessingInfo, "supported_mm_limits")
        _has(CompletionOutput, "logprobs")
        _has(SchedulerStats, "num_waiting_reqs")
        StepLogger(lambda index, waiting: None, 0)  # No other method is abstract.
        default_logging("INFO", "")
        min(LORA_RANKS)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unsupported(f"{type(error).__name__}: {error}") from error


def _takes(function: Callable[..., Any], *arguments: str, options: Sequence[str] = ()) -> None:
    """Raise :class:`TypeError` if a function cannot be called with this number of positional
    arguments, and these keyword arguments."""
    try:
        inspect.signature(function).bind(*arguments, **dict.fromkeys(options))
    except TypeError as error:
        raise TypeError(f"{function.__qualname__}: {error}") from None


def _has(owner: type, *attributes: str) -> None:
    """Raise :class:`AttributeError` if a class lacks an attribute, or a dataclass a field."""
    for name in attributes:
        if name not in getattr(owner, "__dataclass_fields__", ()) and not hasattr(owner, name):
            raise AttributeError(f"{owner.__qualname__} has no {name}")


_check()

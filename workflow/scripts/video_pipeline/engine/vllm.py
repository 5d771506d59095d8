"""The engine that people come for: vLLM's own asynchronous engine."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Iterable
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, get_args

from video_pipeline.budget import check_budget
from video_pipeline.config import Config
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.engine.base import (
    FREE,
    Answer,
    Constraints,
    Engine,
    EngineDead,
    Preparer,
    RequestRefused,
)
from video_pipeline.engine.causes import Cause, noting, root_cause
from video_pipeline.errors import UserError
from video_pipeline.faults import failure_of, is_refusal
from video_pipeline.flops import ModelFlops
from video_pipeline.gpus import LeaseHolder
from video_pipeline.model.processor import processor_folder
from video_pipeline.model.prompt import PlaceholderError
from video_pipeline.model.special_tokens import SpecialTokenError
from video_pipeline.peaks import precision_of
from video_pipeline.processes import how_it_ended
from video_pipeline.tasks.base import WHOLE
from video_pipeline.testing.clips import write_clip
from video_pipeline.vllm_names import check_names

# vLLM must start its engine process by spawn: this process has threads.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

import torch
from vllm import SamplingParams
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.logger import DEFAULT_LOGGING_CONFIG
from vllm.lora.request import LoRARequest
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import MultiModalBudget
from vllm.outputs import RequestOutput
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.renderers.base import BaseRenderer
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.renderers.registry import renderer_from_config
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

logger = logging.getLogger(__name__)

# The process that feeds the engine is given prepared samples: it needs no processor, whose warm-up
# takes 15 s of CPU beside the engine's start.
BaseRenderer.start_mm_warmup_in_background = lambda self: None

# Each video is seen once: caches of processed media only cost memory and hashing. A user's own
# engine arguments come after these.
_DEFAULTS = {
    "mm_processor_cache_gb": 0,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    # Without spaces, which JSON allows and a model may fill its answer with. vLLM wants the backend
    # to be named for that: this is the one that it would choose first.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}

# What vLLM raises for settings that cannot work.
_REFUSALS = (ValueError, TypeError, OSError, VLLMError)

_SHARED_MEDIA_GB = 2
"""Holds the prepared media of one sample in a decode process, for its next question."""

DATES = "%Y-%m-%d %H:%M:%S"
"""Of log lines; vLLM's own have no year."""

_LEASE_HOLDER = f"{LeaseHolder.__module__}.{LeaseHolder.__qualname__}"


class VllmEngine(Engine):
    """vLLM with continuous batching: requests join and leave while others run.

    Attributes:
        waiting: How many requests wait in the scheduler of each data-parallel engine.
    """

    def __init__(self, config: Config, *, with_videos: bool = True) -> None:
        """Raises :class:`UserError` for settings that vLLM refuses and, ``with_videos``, where the
        longest video does not fit into the model."""
        check_names("vllm", config.vllm.arguments, names_of_vllm()["vllm"])
        if config.vllm.arguments.get("worker_extension_cls"):
            raise UserError(
                "vllm.worker_extension_cls: is in use, so that vLLM's workers keep the lease of "
                "their GPUs; nothing here calls another extension"
            )
        arguments = {
            **_DEFAULTS,
            **_lora_arguments(config),
            **config.vllm.arguments,
            "worker_extension_cls": _LEASE_HOLDER,
        }
        self._sampling = _sampling_params(config)
        self._sampling_under: dict[Constraints, SamplingParams] = {FREE: self._sampling}
        try:
            structured = StructuredOutputsConfig(**arguments["structured_outputs_config"])
            arguments["structured_outputs_config"] = structured
            engine_args = AsyncEngineArgs(**arguments)
            # offline use: vLLM then chooses batch sizes for throughput
            self._vllm_config = engine_args.create_engine_config(UsageContext.LLM_CLASS)
            if not _same_normalisation(self._vllm_config):
                # On the device vLLM normalises videos with the image processor's mean and std.
                engine_args = AsyncEngineArgs(**{**arguments, "mm_device_do_normalize": False})
                self._vllm_config = engine_args.create_engine_config(UsageContext.LLM_CLASS)
        except _REFUSALS as error:
            raise failure_of(error, f"vLLM refuses the section vllm: {error}") from error
        vision = getattr(self._vllm_config.model_config.hf_config, "vision_config", None)
        if with_videos and hasattr(vision, "patch_size"):
            check_budget(config, vision.patch_size)
        model_config = self._vllm_config.model_config
        self.dataset_model = processor_folder(model_config.model, model_config.revision)
        settings = model_config.hf_config.to_dict()
        self.flops = ModelFlops.of(settings)
        self.precision = precision_of(
            str(model_config.dtype).removeprefix("torch."),
            model_config.quantization,
            settings.get("quantization_config"),
        )
        self._lora = _lora_request(config)
        self._reasoning = _reasoning_parser(self._vllm_config)
        self._llm: AsyncLLM | None = None
        self._processes: list[BaseProcess] = []
        self._causes: Path | None = None
        self.waiting: dict[int, int] = {}

    @cached_property
    def max_item_tokens(self) -> int | None:
        """What vLLM sets its encoder cache to: ``max_num_batched_tokens`` (whose default depends on
        the device), or the largest item that the model's processor gives where that is more."""
        if not self._vllm_config.model_config.is_multimodal_model:
            return None
        budget = MultiModalBudget(self._vllm_config, MULTIMODAL_REGISTRY, enable_cache=False)
        return budget.encoder_cache_size

    def preparer(self) -> Preparer:
        return Renderer(self._vllm_config)

    async def start(self, folder: Path) -> None:
        self._note_causes(folder)
        try:
            # In a thread, so that samples are prepared while the model loads.
            self._llm = await asyncio.to_thread(
                AsyncLLM.from_vllm_config,
                self._vllm_config,
                stat_loggers=[lambda _, index: _Scheduler(self, index)],
                disable_log_stats=True,
            )
        except Exception as error:
            cause = self._cause()
            final = cause.is_refusal if cause is not None else is_refusal(error)
            failure = UserError if final else EngineDead
            raise failure(f"vLLM's engine did not start: {self._why(error)}") from error
        self._processes = multiprocessing.active_children()

    def _note_causes(self, folder: Path) -> None:
        """Have the engine's processes write down, in ``folder``, what they die of; a logging
        configuration of the user's stays as it is beside that."""
        given = self._vllm_config.logging_config
        if not given.configure_logging or given.formatter != "text":
            return
        if given.pylogging_config_file is not None:
            logged = json.loads(Path(given.pylogging_config_file).read_text(encoding="utf-8"))
        else:
            logged = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
            logged["loggers"]["vllm"]["level"] = given.log_level
            logged["handlers"]["vllm"]["level"] = given.log_level
            for formatter in logged["formatters"].values():
                formatter |= {"datefmt": DATES, "log_level": given.log_level}
        self._causes = folder / "engine.errors.jsonl"
        path = folder / "engine.logging.json"
        path.write_text(json.dumps(noting(logged, self._causes)), encoding="utf-8")
        self._vllm_config.logging_config = dataclasses.replace(
            given, pylogging_config_file=str(path)
        )

    def _cause(self) -> Cause | None:
        return root_cause(self._causes) if self._causes is not None else None

    def _why(self, error: BaseException) -> str:
        """Why the engine does not start or is dead: its processes' own word, how they ended, or
        else ``error``."""
        cause = self._cause()
        if cause is not None and cause.is_exception:
            return cause.text
        ends = [
            f"its process {process.name} ended: {how_it_ended(process.exitcode)}"
            for process in self._processes
            if process.name.startswith("EngineCore") and process.exitcode is not None
        ]
        said = [cause.text] if cause is not None else []
        return "; ".join([*said, *ends]) or f"{type(error).__name__}: {error}"

    def check(self, constraints: Constraints) -> None:
        self._sampling_of(constraints)

    def _sampling_of(self, constraints: Constraints) -> SamplingParams:
        if constraints not in self._sampling_under:
            sampling = self._sampling.clone()
            if constraints.max_tokens is not None:
                sampling.max_tokens = constraints.max_tokens
            if constraints.json_schema is not None:
                sampling.structured_outputs = StructuredOutputsParams(json=constraints.json_schema)
            model_config = self._vllm_config.model_config
            try:
                sampling.verify(
                    model_config,
                    self._vllm_config.speculative_config,
                    self._vllm_config.structured_outputs_config,
                    cached_tokenizer_from_config(model_config),
                )
            except _REFUSALS as error:
                raise UserError(
                    f"vLLM refuses the task's output_schema: {error}. Another backend may take it: "
                    "vllm.structured_outputs_config: {backend: guidance, disable_any_whitespace: "
                    "true}"
                ) from error
            self._sampling_under[constraints] = sampling
        return self._sampling_under[constraints]

    async def generate(self, name: str, request: Any, constraints: Constraints = FREE) -> Answer:
        sampling = self._sampling_of(constraints)
        try:
            output = await self._output(name, request, sampling)
        except _Recoverable as first:
            logger.warning("sample %s: asked again, because vLLM failed: %s", name, first)
            try:
                output = await self._output(name, request, sampling)
            except _Recoverable as second:
                cause = second.__cause__
                if cause is not None and is_refusal(cause):
                    raise RequestRefused(type(cause).__name__, str(cause)) from cause
                raise EngineDead(f"it failed twice with one request: {second}") from second
        completion = output.outputs[0]
        if completion.finish_reason == "abort":
            # Nobody here cancels a request: the engine was told to end and hands back what it has.
            raise EngineDead("it gave up a request: it was told to end")
        reasoning, text = self.split(completion.text)
        return Answer(
            text,
            len(output.prompt_token_ids),
            len(completion.token_ids),
            completion.finish_reason or "unknown",
            reasoning,
            output.num_cached_tokens or 0,
        )

    async def _output(self, name: str, request: Any, sampling: SamplingParams) -> RequestOutput:
        """What vLLM answers, by the classes of its exceptions. Raises :class:`_Recoverable` where
        the same request may succeed."""
        try:
            outputs = self._llm.generate(
                request, sampling, request_id=name, lora_request=self._lora
            )
            output = [output async for output in outputs][-1:]
        except EngineDeadError as error:
            raise EngineDead(self._why(error)) from error
        except VLLMClientError as error:
            raise RequestRefused(type(error).__name__, str(error)) from error
        except Exception as error:  # EngineGenerateError and what else may come
            if self._llm.errored:
                raise EngineDead(self._why(error)) from error
            cause = error.__cause__ or error
            raise _Recoverable(f"{type(cause).__name__}: {cause}") from cause
        if not output:
            raise _Recoverable("it ended a request without an answer")
        if output[0].outputs[0].finish_reason == "error":
            raise _Recoverable("it ended a request with an error of its own; its log may say why")
        return output[0]

    def split(self, text: str) -> tuple[str | None, str]:
        """What a model that thinks has thought, and its answer; None and ``text`` of any other."""
        if self._reasoning is None:
            return None, text
        reasoning, answer = self._reasoning.extract_reasoning(text, _NO_REQUEST)
        return (reasoning or "").strip(), (answer or "").strip()

    def patches(self, requests: Iterable[Any]) -> int:
        grids = {}
        for request in requests:
            for modality, items in (request.get("mm_kwargs") or {}).items():
                names = request["mm_hashes"][modality]
                for name, item in zip(names, items, strict=True):
                    if f"{modality}_grid_thw" in item:
                        grids[modality, name] = int(item[f"{modality}_grid_thw"].data.prod())
        return sum(grids.values())

    def is_saturated(self) -> bool:
        return any(self.waiting.values())

    def stop(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


class _Recoverable(Exception):
    """vLLM failed with a request and goes on; its exception is the cause, where there is one."""


class _Scheduler(StatLoggerBase):
    """Hears from the scheduler of engine ``index`` after each of its steps."""

    def __init__(self, engine: VllmEngine, index: int) -> None:
        self._engine = engine
        self._index = index

    def record(self, scheduler_stats: SchedulerStats | None, *_: Any, **__: Any) -> None:
        self._engine.steps += 1
        if scheduler_stats is not None:
            self._engine.waiting[self._index] = scheduler_stats.num_waiting_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class Renderer(Preparer):
    """vLLM's own preparation of a prompt (tokens, pixel values, positions), run in a decode
    process so that the engine's process only passes the result on."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._vllm_config = vllm_config

    def start(self) -> None:
        # the configuration of this process alone: the engine's own caches stay as they are
        media = self._vllm_config.model_config.multimodal_config
        if media is not None:
            media.mm_processor_cache_gb = _SHARED_MEDIA_GB
        self._renderer = renderer_from_config(self._vllm_config)
        self._shared_media = self._renderer._mm_processor_only_cache
        model_config = self._vllm_config.model_config
        self._warm_up(processor_folder(model_config.model, model_config.revision))

    def _warm_up(self, model: str) -> None:
        """Prepare a made-up video: what vLLM, transformers and FFmpeg load when they first need it
        is then there for all samples."""
        dataset = QwenVideoDataset(
            samples=(), task=None, model=model, video_field="", vision_kwargs={}, params={}
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                clip = write_clip(Path(folder) / "clip.mp4", seconds=0.5)
                video = dataset.visual({"type": "video", "video": str(clip), "nframes": 2}, {})
                content = [video, {"type": "text", "text": "What happens?"}]
                messages = {WHOLE: [{"role": "user", "content": content}]}
                self.prepare(dataset.llm_inputs(messages), "made-up")
        except Exception as error:  # a model that takes no video; what is wrong each sample says
            logger.debug("a made-up video could not be prepared: %s", error)

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        # Without names of our own each process counts its items from 1, two different videos
        # share a name, and the encoder cache answers for the wrong one.
        names: dict[int, str] = {}
        requests = {}
        try:
            for part, llm_input in llm_inputs.items():
                uuids = {
                    modality: [
                        names.setdefault(id(item), f"{key}-{modality}-{len(names)}")
                        for item in (items if isinstance(items, list) else [items])
                    ]
                    for modality, items in (llm_input.get("multi_modal_data") or {}).items()
                }
                requests[part] = self._render({**llm_input, "multi_modal_uuids": uuids})
        except Exception as error:
            raise RequestRefused(type(error).__name__, str(error)) from error
        finally:
            if self._shared_media is not None:
                self._shared_media.clear_cache()
        return requests

    def _render(self, llm_input: dict[str, Any]) -> Any:
        prompt = parse_model_prompt(self._vllm_config.model_config, llm_input)
        (engine_input,) = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        _check_ids(engine_input, self._vllm_config.model_config.hf_config, llm_input)
        vision = getattr(self._vllm_config.model_config.hf_config, "vision_config", None)
        for video in (engine_input.get("mm_kwargs") or {}).get("video", []):
            if "second_per_grid_ts" in video:
                _round_as_transformers(video, getattr(vision, "tokens_per_second", 1.0))
        return engine_input


def _check_ids(engine_input: Any, hf_config: Any, llm_input: dict[str, Any]) -> None:
    """Look at what vLLM made of a prompt, beside its media.

    Raises :class:`SpecialTokenError` if a prompt that came as tokens has others now: where vLLM
    does not find a placeholder among them, it turns to their text, in which special tokens act.
    Raises :class:`PlaceholderError` for a placeholder that no medium took.
    """
    ids, begin, others = engine_input.get("prompt_token_ids") or [], 0, []
    media = [place for of in (engine_input.get("mm_placeholders") or {}).values() for place in of]
    for place in sorted(media, key=lambda place: place.offset):
        others += ids[begin : place.offset]
        begin = max(begin, place.offset + place.length)
    others += ids[begin:]
    given = iter(llm_input.get("prompt_token_ids") or others)
    if not all(id in given for id in others):  # in this order
        raise SpecialTokenError("vLLM changes the tokens of this prompt")
    for modality in ("image", "video"):
        if getattr(hf_config, f"{modality}_token_id", None) in others:
            raise PlaceholderError(
                f"the prompt has more placeholders of the kind {modality} than there are media"
            )


def names_of_vllm() -> dict[str, list[str]]:
    """The names that the sections ``vllm`` and ``sampling`` may have."""
    names = {
        "vllm": [field.name for field in dataclasses.fields(AsyncEngineArgs)],
        "sampling": list(inspect.signature(SamplingParams).parameters),
    }
    return {
        section: sorted(name for name in found if not name.startswith("_"))
        for section, found in names.items()
    }


_NO_REQUEST = ChatCompletionRequest(messages=[])
"""Reasoning parsers want to see the request of a chat server; there is none."""


def _reasoning_parser(vllm_config: VllmConfig) -> ReasoningParser | None:
    name = vllm_config.structured_outputs_config.reasoning_parser
    if not name:
        return None
    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)
        return parser(cached_tokenizer_from_config(vllm_config.model_config))
    except (KeyError, *_REFUSALS) as error:
        raise UserError(f"vLLM refuses vllm.reasoning_parser: {name}: {error}") from error


def _lora_arguments(config: Config) -> dict[str, Any]:
    """What vLLM must know ahead of the adapter in ``vllm.lora_path``."""
    if config.vllm.lora_path is None:
        return {}
    path = config.vllm.lora_path / "adapter_config.json"
    try:
        rank = json.loads(path.read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"vllm.lora_path: {path} does not tell the rank of an adapter ({error}); the folder "
            "must hold what peft's save_pretrained writes"
        ) from error
    fitting = [most for most in get_args(MaxLoRARanks) if most >= rank]
    if not fitting:
        raise UserError(f"vllm.lora_path: {path}: rank {rank} is more than vLLM takes")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": min(fitting)}


def _lora_request(config: Config) -> LoRARequest | None:
    path = config.vllm.lora_path
    return LoRARequest(path.name, 1, str(path.absolute())) if path is not None else None


def _sampling_params(config: Config) -> SamplingParams:
    given = config.sampling.model_dump()
    check_names("sampling", given, names_of_vllm()["sampling"])
    if given.get("n", 1) != 1:
        raise UserError("sampling.n: a record holds one answer; leave n at 1")
    try:
        return SamplingParams(**{**given, "output_kind": RequestOutputKind.FINAL_ONLY})
    except _REFUSALS as error:
        raise UserError(f"vLLM refuses the section sampling: {error}") from error


def _same_normalisation(vllm_config: VllmConfig) -> bool:
    """Whether images and videos are normalised alike by the model's processor."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    model_config = vllm_config.model_config
    if not model_config.is_multimodal_model:
        return True
    folder = processor_folder(model_config.model, model_config.revision)
    try:  # without the tokenizer, which takes seconds
        image = AutoImageProcessor.from_pretrained(folder)
        video = AutoVideoProcessor.from_pretrained(folder)
    except (OSError, ValueError):
        return False  # not known: then each is normalised by its own
    return all(getattr(image, name, None) == getattr(video, name, None) for name in _NORMALISATION)


_NORMALISATION = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")


def _round_as_transformers(video: Any, tokens_per_second: float) -> None:
    """Make vLLM cut the time of a patch to the position that transformers cuts it to.

    transformers multiplies in float32, where a product that should be whole comes out whole. vLLM
    multiplies the same float32 number in float64, where it comes out as 4.9999 and is cut to 4,
    unless the number is one bit larger.
    """
    seconds = video["second_per_grid_ts"].data
    patches = torch.arange(int(video["video_grid_thw"].data[0]))
    wanted = (patches * (tokens_per_second * seconds)).long()
    for candidate in (seconds, torch.nextafter(seconds, torch.tensor(torch.inf))):
        if torch.equal((patches.double() * (candidate.item() * tokens_per_second)).long(), wanted):
            video["second_per_grid_ts"].data = candidate
            return

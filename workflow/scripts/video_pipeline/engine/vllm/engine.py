"""The engine that runs vLLM's own asynchronous engine."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from video_pipeline.common.faults import is_refusal
from video_pipeline.common.processes import how_it_ended
from video_pipeline.config import Config
from video_pipeline.config.vllm_names import wrong_values
from video_pipeline.engine.base import (
    Answer,
    Constraints,
    Engine,
    EngineDead,
    Preparer,
    RequestRefused,
)
from video_pipeline.engine.vllm.arguments import (
    final_only,
    lora_request,
    reason_of,
    sampling_params,
    vllm_config_of,
)
from video_pipeline.engine.vllm.causes import note_causes, one_line, origin_of, root_cause
from video_pipeline.engine.vllm.compat import (
    REFUSALS,
    AsyncLLM,
    CompletionOutput,
    EngineDeadError,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
    VLLMClientError,
    encoder_cache_size,
    engine_processes,
    media_of,
    media_tokens,
    reasoning_parser,
    split_reasoning,
    start_engine,
    token_logprobs,
    verify_sampling,
)
from video_pipeline.engine.vllm.preparer import VllmPreparer
from video_pipeline.errors import UserError
from video_pipeline.gpu.peaks import precision_of
from video_pipeline.model.chat_template import check_template
from video_pipeline.model.flops import ModelFlops
from video_pipeline.model.processor import processor_folder
from video_pipeline.model.token_budget import check_budget
from video_pipeline.run.answers import reason_of_all

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 1.0
"""How long vLLM's engine process may take to give its resources back. It needs a moment. Then it
would hold the GPU for seconds more, while it collects the garbage of its heap, so it is killed."""

_FAILED_PROCESS = re.compile(r"'(EngineCore\w*)': (-?\d+)")

_KEPT_SAMPLINGS = 1000
"""How many sampling parameters are kept: each sample may have its own."""


class VllmEngine(Engine):
    """vLLM with continuous batching: requests join and leave while others run."""

    def __init__(self, config: Config, *, with_videos: bool = True) -> None:
        """See :func:`video_pipeline.engine.create_engine`. Raises :class:`EnvironmentFault` if the
        machine or the hub is at fault."""
        self._sampling = sampling_params(config)  # First, because it takes no time.
        self._sampling_under = {Constraints(): self._sampling}
        self._sampling_section = config.sampling.model_dump()
        self._vllm_config = vllm_config_of(config)
        model_config = self._vllm_config.model_config
        vision = getattr(model_config.hf_config, "vision_config", None)
        patch_size = getattr(vision, "patch_size", None)
        if with_videos and patch_size is not None:
            check_budget(config, patch_size)
        self.dataset_model = processor_folder(model_config.model, model_config.revision)
        check_template(config, Path(self.dataset_model))
        settings = model_config.hf_config.to_dict()
        self.flops = ModelFlops.of(settings)
        self.precision = precision_of(
            str(model_config.dtype).removeprefix("torch."),
            model_config.quantization,
            settings.get("quantization_config"),
        )
        self._chat_template_kwargs = config.vllm.chat_template_kwargs
        self._lora = lora_request(config)
        try:
            self._reasoning = reasoning_parser(self._vllm_config, self._chat_template_kwargs)
        except REFUSALS as error:
            name = self._vllm_config.structured_outputs_config.reasoning_parser
            raise UserError(
                f"vLLM refuses vllm.reasoning_parser: {name}: {reason_of(error)}. Name the parser "
                "of this model; null for a model that does not think"
            ) from error
        try:
            verify_sampling(self._sampling, self._vllm_config)
        except REFUSALS as error:
            raise UserError(f"vLLM refuses the section sampling: {reason_of(error)}") from error
        self._llm: AsyncLLM | None = None
        self._processes: list[BaseProcess] = []
        self._causes: Path | None = None
        self._waiting: dict[int, int] = {}

    @cached_property
    def max_item_tokens(self) -> int | None:
        """The size of vLLM's encoder cache: ``max_num_batched_tokens`` (whose default depends on
        the device), or the largest item of the model's processor if that is larger."""
        if not self._vllm_config.model_config.is_multimodal_model:
            return None
        return encoder_cache_size(self._vllm_config)

    def preparer(self) -> Preparer:
        return VllmPreparer(self._vllm_config, self._chat_template_kwargs)

    async def start(self, folder: Path) -> None:
        self._causes = note_causes(self._vllm_config, folder)
        # In a thread, so that samples are prepared while the model loads.
        thread = asyncio.to_thread(start_engine, self._vllm_config, self._note_step)
        starting = asyncio.ensure_future(thread)
        try:
            self._llm = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The job stops. No thread can be cancelled, but this one fails without its processes,
            # which may only come now.
            while not starting.done():
                for process in engine_processes():
                    process.kill()
                await asyncio.wait([starting], timeout=0.1)
            starting.exception()  # Or asyncio would log it.
            raise
        except Exception as error:
            cause = root_cause(self._causes)
            final = cause.is_refusal if cause is not None else is_refusal(error)
            failure = UserError if final else EngineDead
            raise failure(f"vLLM's engine did not start: {self._why(error)}") from error
        self._processes = engine_processes()

    def _note_step(self, index: int, waiting: int | None) -> None:
        self.steps += 1
        if waiting is not None:
            self._waiting[index] = waiting

    def _why(self, error: BaseException) -> str:
        """Why the engine does not start or is dead: what its processes logged and how they ended,
        or else ``error``."""
        cause = root_cause(self._causes)
        if cause is not None and cause.is_exception:
            return cause.text
        logged = [cause.text] if cause is not None else []
        codes = [(process.name, process.exitcode) for process in self._processes]
        # If the engine has not started, vLLM's message has them.
        codes += [(name, int(code)) for name, code in _FAILED_PROCESS.findall(str(error))]
        ends = [
            f"its process {name} ended: {how_it_ended(code)}"
            for name, code in codes
            if code is not None
        ]
        return "; ".join([*logged, *ends]) or ": ".join(origin_of(error))

    def check(self, constraints: Constraints) -> None:
        self._sampling_of(constraints)

    def _sampling_of(self, constraints: Constraints) -> SamplingParams:
        """Raises :class:`UserError` for a refused schema, :class:`RequestRefused` for sampling."""
        if constraints not in self._sampling_under:
            sampling = self._sampling.clone()
            if constraints.sampling_json is not None:
                sampling = self._sampling_instead(constraints.sampling)
            if constraints.choices is not None:
                sampling.structured_outputs = StructuredOutputsParams(choice=constraints.choices)
            elif constraints.json_schema is not None:
                sampling.structured_outputs = StructuredOutputsParams(json=constraints.json_schema)
            try:
                verify_sampling(sampling, self._vllm_config)
            except REFUSALS as error:
                raise UserError(
                    f"vLLM refuses the task's output_schema: {reason_of(error)}. Another backend "
                    "may take it: vllm.structured_outputs_config: {backend: guidance, "
                    "disable_any_whitespace: true}"
                ) from error
            if len(self._sampling_under) == _KEPT_SAMPLINGS:
                self._sampling_under = {Constraints(): self._sampling}
            self._sampling_under[constraints] = sampling
        return self._sampling_under[constraints]

    def _sampling_instead(self, fields: dict[str, Any]) -> SamplingParams:
        """The section ``sampling`` with other values for ``fields``, which a task has set."""
        try:
            if faults := wrong_values("sampling", fields):  # vLLM finds these too late, and hangs.
                raise TypeError(faults[0])
            sampling = final_only({**self._sampling_section, **fields})
            verify_sampling(sampling, self._vllm_config)
        except REFUSALS as error:
            raise RequestRefused(
                type(error).__name__, f"vLLM refuses the task's sampling: {reason_of(error)}"
            ) from error
        return sampling

    async def generate(self, name: str, request: Any, constraints: Constraints) -> Answer:
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
                    raise RequestRefused(type(cause).__name__, one_line(str(cause))) from cause
                raise EngineDead(f"it failed twice with one request: {second}") from second
        completions = output.outputs
        if any(completion.finish_reason == "abort" for completion in completions):
            # Nobody here cancels a request, so the engine was told to end, and returns what it has.
            raise EngineDead("it gave up a request: it was told to end")
        parts = [self.split(completion.text) for completion in completions]
        tokens = [len(completion.token_ids) for completion in completions]
        return Answer(
            _one_or_all([text for _, text in parts]),
            len(output.prompt_token_ids or ()),
            sum(tokens),
            reason_of_all(completion.finish_reason or "unknown" for completion in completions),
            _one_or_all([reasoning for reasoning, _ in parts]),
            # Of several answers vLLM tells only what the one that ended last took from the cache,
            # and that is what another one has computed.
            (output.num_cached_tokens or 0) if len(completions) == 1 else 0,
            sum(media_tokens(request).get("audio", ())),
            _one_or_all([self._logprobs(completion) for completion in completions]),
            max(tokens) if len(completions) > 1 else None,
        )

    def _logprobs(self, completion: CompletionOutput) -> list[dict[str, Any]] | None:
        """The log probabilities of an answer's tokens, without those of its reasoning; None if they
        were not asked for."""
        if completion.logprobs is None:
            return None
        tokens = token_logprobs(completion)
        if self._reasoning is None:
            return tokens
        content_ids = self._reasoning.extract_content_ids(list(completion.token_ids))
        return tokens[len(tokens) - len(content_ids) :]

    async def _output(self, name: str, request: Any, sampling: SamplingParams) -> RequestOutput:
        """vLLM's answer. Raises one of our exceptions for vLLM's: :class:`_Recoverable` if the same
        request may succeed when it is repeated."""
        llm = self._llm
        assert llm is not None, "start() comes first"
        try:
            outputs = llm.generate(
                request,
                sampling,
                request_id=name,
                lora_request=self._lora,
                # Where an answer with a schema begins depends on whether the model thinks.
                reasoning_parser_kwargs={"chat_template_kwargs": self._chat_template_kwargs},
            )
            *_, output = [None, *[output async for output in outputs]]
        except EngineDeadError as error:
            raise EngineDead(self._why(error)) from error
        except VLLMClientError as error:
            raise RequestRefused(type(error).__name__, one_line(str(error))) from error
        except Exception as error:  # EngineGenerateError, and any other.
            if llm.errored:
                raise EngineDead(self._why(error)) from error
            cause = error.__cause__ or error
            raise _Recoverable(f"{type(cause).__name__}: {cause}") from cause
        if output is None:
            raise _Recoverable("it ended a request without an answer")
        if any(completion.finish_reason == "error" for completion in output.outputs):
            raise _Recoverable("it ended a request with an error of its own; its log may say why")
        return output

    def split(self, text: str) -> tuple[str | None, str]:
        """The reasoning of a thinking model, and its answer; None and ``text`` for any other."""
        if self._reasoning is None:
            return None, text
        reasoning, answer = split_reasoning(self._reasoning, text)
        return (reasoning or "").strip(), (answer or "").strip()

    def patches(self, requests: Iterable[Any]) -> int:
        grids = {}
        for request in requests:
            for modality, name, item in media_of(request):
                if f"{modality}_grid_thw" in item:
                    grids[modality, name] = int(item[f"{modality}_grid_thw"].data.prod())
        return sum(grids.values())

    def is_saturated(self) -> bool:
        return any(self._waiting.values())

    def stop(self) -> None:
        if self._llm is not None:
            self._llm.shutdown(timeout=SHUTDOWN_SECONDS)
            self._llm = None


def _one_or_all(values: list[Any]) -> Any:
    """The value of the only answer, or the list for several answers; None if they have no value."""
    return values[0] if len(values) == 1 or values[0] is None else values


class _Recoverable(Exception):
    """vLLM failed with one request only. Its own exception, if it has raised one, is the cause."""

"""An engine without a model, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import hashlib
import math
from pathlib import Path
from typing import Any

from video_pipeline.config import Config
from video_pipeline.engine.base import Answer, Constraints, Engine, Preparer, RequestRefused
from video_pipeline.model.processor import SIMULATED_MODEL
from video_pipeline.model.prompt import prompt_of

_PIXELS_PER_TOKEN = 28 * 28 * 2


class SimulatedEngine(Engine):
    """Answers with words made from the request's name, after the time that ``run.simulated`` sets.

    It sleeps for that time. At most ``run.simulated.concurrency`` requests sleep at once. In its
    records ``__model`` is ``simulated``.
    """

    dataset_model = SIMULATED_MODEL

    def __init__(self, config: Config) -> None:
        self._settings = config.run.simulated
        self._sampling = config.sampling.model_dump()
        self._free = asyncio.Semaphore(config.run.simulated.concurrency)

    def preparer(self) -> Preparer:
        return SimulatedPreparer()

    async def start(self, folder: Path) -> None:
        """Nothing to load."""

    def check(self, constraints: Constraints) -> None:
        """Ignores JSON Schemas: its words are no JSON."""

    async def generate(self, name: str, request: Any, constraints: Constraints) -> Answer:
        if not isinstance(request.get("prompt"), str):
            raise RequestRefused("ValueError", "the request has no prompt")
        prompt_tokens = count_tokens(request)
        settings = self._settings
        sampling = {**self._sampling, **constraints.sampling}
        tokens = min(settings.output_tokens, sampling["max_tokens"] or settings.output_tokens)
        async with self._free:
            await asyncio.sleep(
                prompt_tokens * settings.seconds_per_prompt_token
                + tokens * settings.seconds_per_output_token
            )
        self.steps += 1
        reason = "stop" if tokens == settings.output_tokens else "length"
        count = sampling.get("n", 1)
        names = [name, *(f"{name} {index}" for index in range(1, count))]
        texts = [_simulated_answer(name, tokens, constraints.choices) for name in names]
        logprobs = None
        if sampling.get("logprobs") is not None:
            logprobs = [_simulated_logprobs(text, constraints.choices) for text in texts]
        if count == 1:
            (text,) = texts
            return Answer(text, prompt_tokens, tokens, reason, logprobs=logprobs and logprobs[0])
        return Answer(
            texts, prompt_tokens, count * tokens, reason, logprobs=logprobs, longest=tokens
        )

    def is_saturated(self) -> bool:
        return self._free.locked()

    def stop(self) -> None:
        """Nothing to end."""


def _simulated_answer(name: str, num_words: int, choices: list[str] | None) -> str:
    text = simulated_text(name, num_words)
    return choices[int(text.split()[0], 16) % len(choices)] if choices else text


def _simulated_logprobs(text: str, choices: list[str] | None) -> list[dict[str, Any]]:
    """The answer as one token. All choices are equally likely."""
    tokens = choices or [text]
    logprob = -math.log(len(tokens))
    top_logprobs = [{"token": token, "logprob": logprob} for token in tokens]
    return [{"token": text, "logprob": logprob, "top_logprobs": top_logprobs}]


def simulated_text(key: str, num_words: int) -> str:
    """``num_words`` words made from ``key``."""
    return " ".join(
        hashlib.blake2b(f"{key} {i}".encode(), digest_size=3).hexdigest() for i in range(num_words)
    )


def count_tokens(llm_input: dict[str, Any]) -> int:
    """Roughly the tokens of a prompt: one for 4 characters, one for 28 x 28 pixels of 2 frames."""
    pixels: int = sum(
        frames.shape[0] * frames.shape[-2] * frames.shape[-1]
        for frames, _ in llm_input.get("multi_modal_data", {}).get("video", [])
        if hasattr(frames, "shape")
    )
    return len(prompt_of(llm_input)) // 4 + pixels // _PIXELS_PER_TOKEN


class SimulatedPreparer(Preparer):
    """The dataset's ``llm_input`` is the request."""

    def start(self) -> None:
        """Nothing to load."""

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        return llm_inputs

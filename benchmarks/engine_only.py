"""The engine alone: requests that were prepared in advance, submitted at once.

Run by :mod:`benchmarks.steady` as a process of its own, once with each way to drive vLLM. One
request is answered first, as in the run that it is compared with; the clock runs from that answer
to the last one.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.jobs import hand_back, settings_of_this_process


def main() -> None:
    from video_pipeline.config import load_config
    from video_pipeline.engine.vllm.engine import VllmEngine

    settings = settings_of_this_process()
    config = load_config(Path(settings["config"]))
    vllm = config.vllm.model_copy(update=settings["vllm"])
    engine = VllmEngine(config.model_copy(update={"vllm": vllm}))
    requests = prepared_requests(config, engine, settings["paths"])
    if settings["loop"] == "LLMEngine":
        hand_back(answer_all_in_a_loop(engine, requests))
        return
    try:
        hand_back(asyncio.run(answer_all(engine, requests)))
    finally:
        engine.stop()


def prepared_requests(config: Any, engine: Any, paths: list[str]) -> dict[str, Any]:
    """A request of its own for each of ``paths``, by key; each distinct file is read once."""
    from video_pipeline.data.qwen_video import QwenVideoDataset
    from video_pipeline.tasks.describe import Describe

    distinct = sorted(set(paths))
    dataset = QwenVideoDataset(
        samples=[{"path": path, "__key": path, "__video_uri": path} for path in distinct],
        task=Describe(),
        model=engine.dataset_model,
        video_field="path",
        vision_kwargs=config.vision.video_kwargs(),
        params={},
    )
    inputs = {path: dataset[number]["llm_input"] for number, path in enumerate(distinct)}
    preparer = engine.preparer()
    preparer.start()
    return {
        f"request {i}": preparer.prepare({"": inputs[p]}, f"clip {i}")[""]
        for i, p in enumerate(paths)
    }


async def answer_all(engine: Any, requests: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU seconds a request, from the first one's answer to the last answer."""
    from video_pipeline.engine.base import Constraints

    await engine.start(Path(tempfile.mkdtemp()))
    keys = list(requests)
    free = Constraints()
    await engine.generate(keys[0], requests[keys[0]], free)
    cpu, started = time.process_time(), time.monotonic()
    answers = await asyncio.gather(*(engine.generate(key, requests[key], free) for key in keys[1:]))
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return {
        "seconds": seconds / len(answers),
        "cpu": cpu / len(answers),
        "prompt_tokens": answers[0].prompt_tokens,
    }


def answer_all_in_a_loop(engine: Any, requests: dict[str, Any]) -> dict[str, Any]:
    """The same with vLLM's synchronous engine: add requests, ``step`` until all are answered."""
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    llm = LLMEngine.from_vllm_config(
        engine._vllm_config, UsageContext.LLM_CLASS, disable_log_stats=True
    )

    def answer(keys: list[str]) -> list[Any]:
        for key in keys:
            llm.add_request(key, requests[key], engine._sampling.clone())
        outputs = []
        while len(outputs) < len(keys):
            outputs += [output for output in llm.step() if output.finished]
        return outputs

    keys = list(requests)
    answer(keys[:1])
    cpu, started = time.process_time(), time.monotonic()
    outputs = answer(keys[1:])
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return {
        "seconds": seconds / len(outputs),
        "cpu": cpu / len(outputs),
        "prompt_tokens": len(outputs[0].prompt_token_ids),
    }


if __name__ == "__main__":
    main()

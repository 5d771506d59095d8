"""vLLM's ``LLM.chat`` over all samples in one call, with its own video reader (OpenCV).

It has no steady state that can be seen from outside: the rate is that of the whole call, and the
call is as long as the time allows.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.gpu.common import (
    CLOCK,
    MEAN_TOKENS,
    MEASURE,
    SAMPLING,
    VISION,
    VLLM,
    Samplers,
    clips,
    heading,
    save,
)
from benchmarks.gpu.lengths import lengths


def main() -> None:
    from vllm import LLM, SamplingParams

    CLOCK.wait_for_turn()
    result = heading()
    save(result)
    files = clips()
    began = time.time()
    # The same few files stand for many: without caches, none of them is known.
    llm = LLM(
        **VLLM,
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
        allowed_local_media_path="/",
        limit_mm_per_prompt={"video": 1},
        media_io_kwargs={"video": {"fps": VISION["fps"], "num_frames": -1}},
        mm_processor_kwargs={
            "size": {"shortest_edge": 16 * 28 * 28, "longest_edge": VISION["max_pixels"]}
        },
    )
    result["engine_start_seconds"] = time.time() - began
    save(result)
    tokens = lengths(MEAN_TOKENS)

    def ask(count: int) -> tuple[list[Any], float]:
        conversations = [_conversation(files[i % len(files)]) for i in range(count)]
        sampling = [
            SamplingParams(**{**SAMPLING, "max_tokens": next(tokens)}) for _ in range(count)
        ]
        began = time.time()
        return llm.chat(conversations, sampling, use_tqdm=False), time.time() - began

    warm = int(os.environ.get("N_CHAT_WARM") or 8)
    ask(warm)
    outputs, seconds = ask(warm)
    result.update(warm_seconds=seconds, prompt_tokens_each=len(outputs[0].prompt_token_ids))
    save(result)
    # a longer call is faster for each sample than the short one
    fits = int(min(MEASURE - 20, CLOCK.left() - 30) / seconds * warm)
    count = int(os.environ.get("N_CHAT") or max(warm, min(256, fits)))
    samplers = Samplers()
    cpu, began = time.process_time(), time.time()
    outputs, seconds = ask(count)
    ended = time.time()
    samplers.stop()
    result.update(
        answered=len(outputs),
        seconds=seconds,
        videos_per_second=count / seconds,
        front_end_cpu_each=(time.process_time() - cpu) / count,
        completion_tokens_each=sum(len(o.outputs[0].token_ids) for o in outputs) / count,
        machine=samplers.between(began, ended),
    )
    save({**result, "complete": True})


def _conversation(path: str) -> list[dict[str, Any]]:
    question = "Describe this video in detail."
    return [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": f"file://{path}"}},
                {"type": "text", "text": question},
            ],
        },
    ]


if __name__ == "__main__":
    main()

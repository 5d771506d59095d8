"""How long vLLM needs to start, without this project.

Run by :mod:`benchmarks.start` as a process of its own. The time is that from the start of the
process, imports included, until the engine takes requests.
"""

from __future__ import annotations

import asyncio
import os
import time

import psutil

from benchmarks.jobs import hand_back, settings_of_this_process

os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def main() -> None:
    asyncio.run(_start())


async def _start() -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(**settings_of_this_process()["vllm"])
    engine = AsyncLLM.from_engine_args(arguments)
    seconds = time.time() - psutil.Process().create_time()
    engine.shutdown()
    hand_back({"seconds": seconds})


if __name__ == "__main__":
    main()

"""The effect of engine arguments: the floor with each of a short list of them.

One process imports vLLM and prepares the requests; each variant is a fork of it, so only the
engine itself starts again. The variants run in order until the time is over. A variant that
changes the compiled code starts cold and needs more time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

# The engine's process is a fork of this one, too, which never touches the GPU.
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.gpu.common import (
    CLOCK,
    IN_FLIGHT,
    RUNS,
    STEP,
    VLLM,
    Samplers,
    clips,
    configuration,
    heading,
    results,
    save,
    wait_for_gpu,
)
from benchmarks.gpu.floor import Stream

WARM_SECONDS, COLD_SECONDS = 50, 100
"""The time of one variant if the compile cache has its code, and if not."""

HOLD_SECONDS = 45
DISTINCT = 4

VARIANTS: list[tuple[str, dict[str, Any], bool]] = [
    ("compiled encoder", {"compilation_config": {"compile_mm_encoder": True}}, True),
    ("async scheduling off", {"async_scheduling": False}, False),
    ("8192 tokens a step", {"max_num_scheduled_tokens": 8192}, False),
    ("FP8 weights", {"quantization": "fp8"}, True),
    ("encoder CUDA graphs", {"compilation_config": {"cudagraph_mm_encoder": True}}, True),
    ("32768 tokens a step", {"max_num_batched_tokens": 32768}, True),
    ("defaults", {}, False),
]
"""Name, engine arguments, and whether the variant compiles again. On an H100 vLLM's defaults are
16384 tokens a step, 1024 sequences, async scheduling on, FlashAttention in the encoder, nothing of
the encoder compiled or captured. Other numbers of tokens are set for the scheduler alone if that
suffices: ``max_num_batched_tokens`` is part of the key of the compile cache."""


def main() -> None:
    from video_pipeline.config import load_config
    from video_pipeline.engine.vllm.engine import VllmEngine

    from benchmarks.engine_only import prepared_requests

    config = load_config(configuration(RUNS / STEP, VLLM))
    prepared = list(prepared_requests(config, VllmEngine(config), clips()[:DISTINCT]).values())
    import_engine()
    CLOCK.wait_for_turn()
    result = {**heading(), "in_flight": IN_FLIGHT, "variants": {}}
    save(result)
    wanted = os.environ.get("BENCH_TUNE")
    for name, arguments, cold in json.loads(wanted) if wanted else VARIANTS:
        needed = COLD_SECONDS if cold else WARM_SECONDS
        if CLOCK.left() < needed:
            print(f"{name}: {needed} s needed, {CLOCK.left():.0f} left", flush=True)
            continue
        run_variant(name, arguments, prepared)
        one = results()[STEP]["variants"].get(name, {})
        forked = os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
        if forked and "engine did not start" in one.get("failed", "") and CLOCK.left() > needed:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
            run_variant(name, arguments, prepared)
        result["variants"] = results()[STEP]["variants"]
    save({**result, "complete": True})


def import_engine() -> None:
    """Import the modules that the engine's process needs, so that its fork need not."""
    import importlib

    for module in (
        "vllm.v1.engine.core",
        "vllm.v1.worker.gpu_worker",
        "vllm.v1.worker.gpu.model_runner",
        "vllm.v1.worker.gpu_model_runner",
        "vllm.model_executor.models.qwen2_5_vl",
        "vllm.v1.attention.backends.flash_attn",
        "torch._inductor.compile_fx",
        "triton",
    ):
        try:
            importlib.import_module(module)
        except Exception as error:  # then its process will import what it needs
            print(f"not imported ahead: {module}: {error}", flush=True)
    if cuda_is_in_use():
        print("CUDA is in use here: engines are spawned", flush=True)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"


def cuda_is_in_use() -> bool:
    """Whether this process has called CUDA's driver, which its forks then cannot do."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    not_initialized = 3
    return driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != not_initialized


def run_variant(name: str, arguments: dict[str, Any], prepared: list[Any]) -> None:
    """Measure one variant in a fork of this process, and end all of its processes."""
    seconds = CLOCK.left() - 5
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            measure(name, arguments, prepared)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            keep(name, {"arguments": arguments, "failed": traceback.format_exc(limit=-2)})
            os._exit(1)
    begun = time.monotonic()
    while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() - begun < seconds:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    wait_for_gpu()
    print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)


def measure(name: str, arguments: dict[str, Any], prepared: list[Any]) -> None:
    from video_pipeline.config import load_config
    from video_pipeline.engine.vllm.engine import VllmEngine

    begun = time.time()
    engine = VllmEngine(load_config(configuration(RUNS / STEP, {**VLLM, **arguments})))
    configured = time.time()

    async def run() -> None:
        await engine.start(Path(tempfile.mkdtemp()))
        up = time.time()
        stream = Stream(engine, prepared)
        first = await stream.warm_up()
        samplers = Samplers()
        counted = await stream.hold(IN_FLIGHT, min(HOLD_SECONDS, CLOCK.left() - 8))
        samplers.stop()
        steady = counted["steady"]
        one = {
            "arguments": arguments,
            "configuration_seconds": configured - begun,
            "engine_start_seconds": up - configured,
            "prompt_tokens_each": first["prompt_tokens_each"],
            "steady": steady,
            "machine": samplers.of(steady),
        }
        print(name, steady.get("videos_per_second"), flush=True)
        keep(name, one)
        os._exit(0)  # its processes are ended by whoever forked it

    asyncio.run(run())


def keep(name: str, one: dict[str, Any]) -> None:
    """Put a variant into the results."""
    result = results()[STEP]
    result["variants"][name] = one
    save(result)


if __name__ == "__main__":
    main()

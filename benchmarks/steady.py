"""Real vLLM on the CPU: this project's run, a plain loop, and the floor under both.

All three answer the same samples with the same tiny Qwen2.5-VL and the same engine arguments, one
after the other on all cores. What counts is wall time a sample in the steady state: without the
start of the model and of the processes, and with no sample prepared in advance.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.clips import write_natural_clip
from benchmarks.jobs import PLUGINS, Job, measure
from benchmarks.report import Figure, Section, torchcodec_loads

CLIPS, REPEATS = 8, 16
BATCH = 8
VISION = {"fps": 2.0, "max_pixels": 256 * 28 * 28, "total_pixels": 7000 * 28 * 28}
VLLM = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**30,
    "max_model_len": 8192,
}
SAMPLING = {"temperature": 0.0, "max_tokens": 16}
THREADS_BIND = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
ENGINES = {
    "AsyncLLM": ("AsyncLLM", {}),
    "AsyncLLM, `mm_tensor_ipc: torch_shm`": ("AsyncLLM", {"mm_tensor_ipc": "torch_shm"}),
    "LLMEngine in a loop": ("LLMEngine", {}),
}
"""Ways to drive vLLM; the first is this project's."""

BAR_LOOP, BAR_FLOOR, BAR_FEEDING = 0.55, 1.3, 0.1


def run(work: Path) -> Section:
    """Measure this project's run, the plain loop and the floor."""
    from video_pipeline.testing.tiny_model import write_tiny_model

    cores = len(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = THREADS_BIND
    model = str(write_tiny_model(work / "model"))
    clips = [
        str(write_natural_clip(work / "clips" / f"720p-10s-{i}.mp4", 1280, 720, 10, seed=10 + i))
        for i in range(CLIPS)
    ]
    paths = clips * REPEATS
    ours = _ours(work / "steady", paths, model, cores)
    loops = {
        workers: measure(
            "plain_loop",
            work / f"plain-{workers}",
            paths=paths,
            model=model,
            vision=VISION,
            vllm={"model": model, **VLLM},
            sampling=SAMPLING,
            reader="torchcodec" if torchcodec_loads() else "pyav",
            batch_size=BATCH,
            num_workers=workers,
        )
        for workers in (1, 2)
    }
    engines = {
        name: measure(
            "engine_only",
            work / "engine",
            config=str(work / "steady" / "config.yaml"),
            paths=paths,
            loop=loop,
            vllm=more,
        )
        for name, (loop, more) in ENGINES.items()
    }
    return _section(ours, loops, engines, _bare(clips), cores, len(paths))


def _ours(folder: Path, paths: list[str], model: str, cores: int) -> dict[str, Any]:
    job = Job(
        folder,
        [{"id": str(number), "path": path} for number, path in enumerate(paths)],
        {
            "vision": VISION,
            "vllm": {"model": model, **VLLM},
            "sampling": SAMPLING,
            "run": {"plugins": [str(PLUGINS / "gated.py")]},
            "task_params": {"first": "0", "journal": str(folder / "results" / ".journal")},
        },
    )
    statistics = job.infer(cores)
    counted = statistics["inferred"] - 1
    return {
        **statistics,
        "seconds": (statistics["seconds"] - statistics["first_answer_seconds"]) / counted,
        "feeding_cpu": statistics["feeding_cpu_seconds"] / statistics["inferred"],
    }


def _bare(clips: list[str]) -> float:
    """CPU seconds of a bare decode, mean over the clips, the better of two passes."""
    from benchmarks.stock import bare_decode

    passes = []
    for _ in range(2):
        started = time.process_time()
        for clip in clips:
            bare_decode(clip)
        passes.append((time.process_time() - started) / len(clips))
    return min(passes)


def _section(
    ours: dict[str, Any],
    loops: dict[int, dict[str, Any]],
    engines: dict[str, dict[str, Any]],
    bare: float,
    cores: int,
    samples: int,
) -> Section:
    engine = engines["AsyncLLM"]
    workers, loop = min(loops.items(), key=lambda item: item[1]["seconds"])
    tokens = [ours["prompt_tokens"], loop["prompt_tokens"], engine["prompt_tokens"] * samples]
    if len(set(tokens)) > 1 or ours["completion_tokens"] != loop["completion_tokens"]:
        raise RuntimeError(f"not the same work: prompt tokens {tokens}")
    floor = bare / cores + engine["seconds"]
    front_end = min(loop["front_end_cpu"] for loop in loops.values())
    figures = [
        Figure.at_most(
            "wall time a sample, steady state / a plain loop (DataLoader, `LLM.generate`)",
            ours["seconds"] / loop["seconds"],
            BAR_LOOP,
        ),
        Figure.at_most(
            "the same / the floor (bare decode over the cores + engine alone)",
            ours["seconds"] / floor,
            BAR_FLOOR,
        ),
        Figure.at_most(
            "CPU of the feeding process a sample / that of `LLM.generate`'s front end",
            ours["feeding_cpu"] / front_end,
            BAR_FEEDING,
            f"{ours['feeding_cpu'] / front_end:.3f}",
        ),
    ]
    details = [
        ["seconds a sample", ""],
        ["this project, wall", f"{ours['seconds']:.3f}"],
        *(
            [f"plain loop with {n} DataLoader worker(s), wall", f"{row['seconds']:.3f}"]
            for n, row in loops.items()
        ),
        ["of it in `LLM.generate`", f"{loop['generate_seconds']:.3f}"],
        *(
            [f"engine alone, {name}, wall", f"{row['seconds']:.3f}"]
            for name, row in engines.items()
        ),
        [f"bare decode, CPU (over {cores} cores for the floor)", f"{bare:.3f}"],
        ["feeding process of this project, CPU", f"{ours['feeding_cpu']:.4f}"],
        ["front end of `LLM.generate`, CPU", f"{front_end:.4f}"],
        *(
            [f"engine alone, {name}: CPU of the process that submits", f"{row['cpu']:.4f}"]
            for name, row in engines.items()
        ),
    ]
    how = _HOW.format(samples=samples, clips=CLIPS, tokens=engine["prompt_tokens"], workers=workers)
    return Section("Steady state with real vLLM", figures, how, _LIMITS, details)


_HOW = (
    "{samples} samples (720p, 10 s, 2 fps; {clips} files under different ids; {tokens} prompt "
    "tokens, 16 answer tokens), tiny Qwen2.5-VL, vLLM on the CPU, float32, eager, "
    f"`VLLM_CPU_OMP_THREADS_BIND={THREADS_BIND}`. *This project*: `split.py` and `infer.py`; from "
    "the first answer to the last, and decode processes read nothing but the first clip before "
    "the first answer. *Plain loop*: DataLoader (batches of 8, {workers} worker(s): the faster of "
    "1 and 2) with the stock reader, `LLM.generate`, write; from the end of the first batch to "
    "that of the last (its DataLoader reads ahead). Engine arguments are the same, vLLM's own "
    "defaults for the caches of the plain loop, whose clips are told apart by one pixel. *Floor*: "
    "CPU of a bare PyAV decode over the cores + wall time of the engine with prepared requests. "
    "*Feeding process*: all CPU of the process that feeds the engine and writes the journal, from "
    "the first request on; *front end*: CPU of the plain loop's process inside `LLM.generate`, "
    "without the engine's process."
)
_LIMITS = (
    "The cores: a bare decode alone is more than half of the core-seconds that a sample takes, and "
    "the worker of vLLM's CPU backend spins between its steps, at a higher priority than decoding. "
    "Most of the feeding process's CPU is that of vLLM's own client. The engine sends it a message "
    "for each step, and while it waits for samples, a step is that of one or two requests."
)

"""The start of a job, and the memory of a decode process, with a model folder of real size.

A tokenizer of real size costs seconds and hundreds of megabytes in each process that loads it; a
tiny model hides that. The folders have no weights (:mod:`benchmarks.real_model`), so most of the
benchmark asks for no answer, and measures all steps before that. The time until the first request
is that of a model with the true vocabulary and few layers, which a CPU can run.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.clips import write_natural_clip
from benchmarks.jobs import Job, call, measure
from benchmarks.memory import Watch
from benchmarks.report import Figure, Section

MODELS = ("qwen2.5-vl-7b", "qwen3-vl-8b")
CLIPS = 4
VISION = {"fps": 2.0, "max_pixels": 256 * 28 * 28, "total_pixels": 7000 * 28 * 28}
SMALL = {"nframes": 4, "max_pixels": 64 * 28 * 28}  # A CPU answers in seconds.
VLLM = {"dtype": "bfloat16", "max_model_len": 8192, "load_format": "dummy"}

FEW_LAYERS = {
    "text_config": {"num_hidden_layers": 2},
    "vision_config": {"depth": 2, "fullatt_block_indexes": [1]},
}
ON_THE_CPU = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30, "hf_overrides": FEW_LAYERS}
TURNS = 3

BAR_READY, BAR_PRIVATE, BAR_FIRST, BAR_REQUEST = 0.3, 350, 1.2, 1.1


def run(work: Path) -> Section:
    """Measure each of the models."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    clips = [
        str(write_natural_clip(work / "clips" / f"720p-10s-{i}.mp4", 1280, 720, 10, seed=10 + i))
        for i in range(CLIPS)
    ]
    models = {name: _measure(work, name, clips) for name in MODELS}
    return _section(models, *_measure_first_request(work, clips))


def _measure(work: Path, name: str, clips: list[str]) -> dict[str, Any]:
    from benchmarks.real_model import write_real_model

    model = str(write_real_model(work / "models" / name, name))
    samples = [{"id": str(number), "path": clips[number % CLIPS]} for number in range(64)]
    settings = {"vision": VISION, "vllm": {"model": model, **VLLM}, "plan": {"samples": 16}}
    job = Job(work / "start", samples, settings)
    loop = measure("start_loop", work / "start_loop", config=str(job.folder / "config.yaml"))
    scripts = Path(__file__).resolve().parents[1] / "workflow" / "scripts"
    plan = [str(scripts / "plan.py"), "--config", "config.yaml", "--threads", "2"]
    preview = ["-m", "video_pipeline.preview", "--configfile", "config.yaml", "--no-engine"]
    return {
        **loop,
        "plan": _timed(plan, job.folder),
        "preview": _timed([*preview, "--video", clips[0]], job.folder),
    }


def _measure_first_request(work: Path, clips: list[str]) -> tuple[float, float]:
    """Seconds from a job's start to its first request, and those of the engine alone; medians."""
    model = str(work / "models" / MODELS[0])
    vllm = {"model": model, **VLLM, **ON_THE_CPU}
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    samples = [{"id": str(number), "path": path} for number, path in enumerate(clips)]
    settings = {"vision": SMALL, "vllm": vllm, "sampling": {"max_tokens": 1}}
    ours, alone = [], []
    for _ in range(TURNS):
        alone.append(measure("engine_start", work / "engine_start", vllm=vllm)["seconds"])
        job, begun = Job(work / "first_request", samples, settings), time.time()
        ours.append(job.infer(cores)["ready_at"] - begun)
    return statistics.median(ours), statistics.median(alone)


def _timed(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of all processes of a command."""
    watch, begun = Watch(), time.monotonic()
    call(arguments, folder, watch)
    return time.monotonic() - begun, watch.peaks.tree / 1e6


def _section(models: dict[str, dict[str, Any]], first_request: float, alone: float) -> Section:
    worst = {
        name: max(one[name] for one in models.values()) for name in ("ready", "private_mb", "first")
    }
    figures = [
        Figure.at_most("a further decode process: seconds until ready", worst["ready"], BAR_READY),
        Figure.at_most(
            "its private memory after four samples, MB",
            worst["private_mb"],
            BAR_PRIVATE,
            f"{worst['private_mb']:.0f}",
        ),
        Figure.at_most("its first sample / the same sample again", worst["first"], BAR_FIRST),
        Figure.at_most(
            "from the start of a job to its first request / the start of the engine alone",
            first_request / alone,
            BAR_REQUEST,
        ),
    ]
    details = [
        ["", *models],
        *(
            [label, *(f"{one[name]:{form}}" for one in models.values())]
            for label, name, form in _ROWS
        ),
        *(
            [f"`{name}`, {unit}", *(f"{one[name][at]:{form}}" for one in models.values())]
            for name in ("plan", "preview")
            for at, (unit, form) in enumerate(
                [("seconds", ".1f"), ("peak of all processes, MB", ".0f")]
            )
        ),
        ["few layers: start of a job to its first request, seconds", f"{first_request:.1f}", ""],
        ["few layers: the engine alone, seconds", f"{alone:.1f}", ""],
    ]
    return Section("Start, with a vocabulary of real size", figures, _HOW, "", details)


_ROWS = (
    ("configuration of the engine, seconds", "configured", ".1f"),
    ("fork server until it can fork, CPU seconds", "server_cpu", ".1f"),
    ("the same, wall seconds from its start", "server_seconds", ".1f"),
    ("fork server, MB", "server_mb", ".0f"),
    ("a further decode process until ready, seconds", "ready", ".2f"),
    ("its private memory after four samples, MB", "private_mb", ".0f"),
    ("its first sample, seconds", "first_seconds", ".2f"),
    ("the same sample again, seconds", "again_seconds", ".2f"),
    ("15 decode processes and their server, MB", "all_mb", ".0f"),
)
_HOW = (
    "Model folders without weights, dimensions and vocabulary of Qwen2.5-VL-7B and Qwen3-VL-8B; "
    "720p clips of 10 s at 2 fps. Decode processes as in a job of vLLM, median of five that are "
    "forked once the first has had its samples; *private*: unique set size; *15 decode processes*: "
    "proportional set sizes after one sample each. `plan` looks at 16 samples; `preview` asks no "
    "model. The figures are those of the worse model. *Few layers*: Qwen2.5-VL-7B with two layers "
    "and two vision layers, random weights, vLLM on the CPU; the engine alone is `AsyncLLM` with "
    f"the same section `vllm`. Both start with a new Python process; medians of {TURNS} turns, in "
    "each of which the engine alone comes first."
)

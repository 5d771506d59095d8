"""Computes how fast a run was and what it cost, from the statistics of its attempts.

docs/numbers.md says what each number means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from video_pipeline.run.pace import bottleneck


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of ``spans`` lasts; a span is its begin and its end."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


CLEAR_SECONDS = 30.0
"""In a shorter time the first and the last samples, for which one side waits, count too much to say
what bounds a run."""

_ADVICE = {
    "decode-bound": "decode-bound: give it more cores",
    "network-bound": "network-bound: run nearer to the videos",
    "engine-bound": "engine-bound",
}


def throughput(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast a run was while models were running, and what bounds it."""
    attempts = [attempt for attempt in attempts if attempt["seconds"] > 0]
    if not attempts:
        return {"bound": "nothing was inferred"}
    total = {
        name: sum(attempt[name] for attempt in attempts)
        for name in (
            *("inferred", "video_seconds", "prompt_tokens", "completion_tokens", "seconds"),
            *("engine_busy_seconds", "decode_busy_seconds"),
        )
    }
    running = covered((a["ready_at"], a["ready_at"] + a["seconds"]) for a in attempts)
    busy = min(1.0, total["engine_busy_seconds"] / total["seconds"])
    waits = {
        name: sum(a["limits"][name] for a in attempts) for name in ("decode", "network", "engine")
    }
    worker_seconds = sum(a["num_workers"] * a["seconds"] for a in attempts)
    tokens = total["prompt_tokens"] + total["completion_tokens"]
    return {
        "seconds": round(running, 3),
        "videos_per_second": round(total["inferred"] / running, 3),
        "video_hours_per_hour": round(total["video_seconds"] / running, 3),
        "tokens_per_second": round(tokens / running, 1),
        **_per_gpu(attempts),
        "engine_busy_share": round(busy, 4),
        "engine_waiting_share": round(1 - busy, 4),
        "decode_workers_load": round(min(1.0, total["decode_busy_seconds"] / worker_seconds), 4),
        "bound": _ADVICE[bottleneck(**waits)] if running >= CLEAR_SECONDS else "too short to tell",
    }


def _per_gpu(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast one GPU was. Without GPUs there is no number, and without the peak of a GPU or the
    operations of a model no share of the peak."""
    attempts = [attempt for attempt in attempts if attempt["gpus"]]
    if not attempts:
        return {"cards": [], "prompt_tokens_per_second_per_gpu": None, "share_of_peak": None}
    gpu_seconds = sum(a["gpus"] * a["seconds"] for a in attempts)
    prompt_tokens = sum(a["prompt_tokens"] for a in attempts)
    share = None
    if all(a["peak_flops"] and a["flops"] is not None for a in attempts):
        at_peak = sum(a["peak_flops"] * a["gpus"] * a["seconds"] for a in attempts)
        share = round(sum(a["flops"] for a in attempts) / at_peak, 4)
    return {
        "cards": sorted({a["card"] for a in attempts if a["card"]}),
        "prompt_tokens_per_second_per_gpu": round(prompt_tokens / gpu_seconds, 1),
        "share_of_peak": share,
    }


def cost(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run cost. Attempts that failed count too, and so do attempts that were killed, up to
    their last sign of life."""
    gpu_seconds = sum(a["gpus"] * a["lasted"] for a in attempts)
    # Without GPUs, a job counts as one GPU.
    running = sum(max(a["gpus"], 1) * a["seconds"] for a in attempts)
    inferred = sum(a["inferred"] for a in attempts)
    return {
        "wall_seconds": round(
            covered((a["started_at"], a["started_at"] + a["lasted"]) for a in attempts), 1
        ),
        "gpu_hours": round(gpu_seconds / 3600, 4),
        "video_hours": round(sum(a["video_seconds"] for a in attempts) / 3600, 4),
        "videos_per_second_per_gpu": round(inferred / running, 3) if running else 0.0,
    }

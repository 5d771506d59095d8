"""Estimates tokens, GPU-hours and cost of the whole run, from the totals and earlier attempts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from video_pipeline.errors import Failure
from video_pipeline.estimate.totals import CostTotals
from video_pipeline.gpu.devices import card_of, devices
from video_pipeline.run.run import Run
from video_pipeline.run.statistics import read_statistics


def expected_costs(run: Run, totals: CostTotals, scale: float) -> dict[str, Any]:
    """Tokens, GPU-hours and cost of the whole run, if they are known. ``scale``: samples of the run
    for each sample that was looked at."""
    config, earlier = run.config, _earlier_run(run)
    settings = config.plan
    prompts = (len(totals.prompt_tokens) - totals.refused) * scale
    prompt_tokens = totals.tokens_to_run * scale
    if settings.expected_completion_tokens is not None:
        per_prompt = settings.expected_completion_tokens
        source = "plan.expected_completion_tokens"
    elif earlier is not None and earlier.completion_tokens_per_sample is not None:
        per_prompt = earlier.completion_tokens_per_sample / totals.prompts_per_sample
        source = f"the mean of {earlier.words}"
    else:
        per_prompt = config.sampling.max_tokens * getattr(config.sampling, "n", 1)
        source = "sampling.max_tokens, the worst case"
    completion_tokens = prompts * per_prompt
    expected: dict[str, Any] = {
        "prompts": round(prompts),
        "prompt_tokens": round(prompt_tokens),
        "completion_tokens": round(completion_tokens),
        "completion_tokens_each": per_prompt,
        "completion_tokens_from": source,
    }
    reading, writing = settings.prompt_tokens_per_second, settings.completion_tokens_per_second
    if reading is not None and writing is not None:
        rates = {"prompt_tokens_per_second": reading, "completion_tokens_per_second": writing}
        hours = (prompt_tokens / reading + completion_tokens / writing) / 3600
        formula = (
            "(prompt tokens / plan.prompt_tokens_per_second + completion tokens / "
            "plan.completion_tokens_per_second) / 3600"
        )
    elif earlier is not None:
        rates = {"tokens_per_second": earlier.tokens_per_second}
        hours = (prompt_tokens + completion_tokens) / earlier.tokens_per_second / 3600
        formula = (
            f"(prompt tokens + completion tokens) / tokens per second and GPU of {earlier.words} / "
            "3600"
        )
    else:
        return {**expected, "gpu_hours": None, "cost": None}
    price = settings.price_per_gpu_hour
    return {
        **expected,
        **rates,
        "gpu_hours": hours,
        "formula": formula,
        "price_per_gpu_hour": price,
        "cost": None if price is None else hours * price,
    }


class _EarlierRun(NamedTuple):
    """The measurements of earlier attempts with the same model, on one kind of card."""

    words: str  # Which attempts they are.
    tokens_per_second: float  # Those of prompts and answers together, on one GPU.
    completion_tokens_per_sample: float | None  # The mean; None if they had other settings.


def _earlier_run(run: Run) -> _EarlierRun | None:
    """The attempts whose answers ``run`` would continue, and those of its runs without
    ``data.resume``; if there are none, those of other outputs in the same folder with the same
    model on a known card. None if they inferred nothing."""
    config, layout = run.config, run.layout
    task, journal = run.task, run.journal()
    jobs = [
        job for job in _attempts(journal.parent, f"{journal.name}*") if job["task"] == task.name
    ]
    has_same_settings = bool(jobs)
    if not has_same_settings:
        quantization = config.vllm.arguments.get("quantization")
        jobs = [
            job
            for job in _attempts(layout.journal.parent, "*/*")
            if job["card"]
            and (job["model"], job["quantization"]) == (config.model_name, quantization)
        ]
    if not jobs:
        return None
    card = _card(jobs)
    jobs = [job for job in jobs if job["card"] == card]
    tokens = sum(job["prompt_tokens"] + job["completion_tokens"] for job in jobs)
    seconds = sum(max(job["gpus"], 1) * job["seconds"] for job in jobs)
    on = f" on {card}" if card else ""
    if not has_same_settings:
        words = (
            f"earlier attempts with the same model and other settings{on} ({journal.parent.parent})"
        )
        return _EarlierRun(words, tokens / seconds, None)
    completion = sum(job["completion_tokens"] for job in jobs)
    per_sample = completion / sum(job["inferred"] for job in jobs)
    return _EarlierRun(f"earlier attempts{on} ({journal})", tokens / seconds, per_sample)


def _attempts(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The attempts in these journals that inferred something."""
    return [
        job
        for journal in folder.glob(pattern)
        for job in read_statistics(journal)
        if job["seconds"] > 0 and job["inferred"] > 0
    ]


def _card(jobs: list[dict[str, Any]]) -> str | None:
    """The card of this machine if an attempt ran on its like; else that of the last attempt."""
    here = None
    with suppress(Failure):  # A plan needs no working GPU.
        here = card_of(devices())
    if here is not None and any(job["card"] == here for job in jobs):
        return here
    card: str | None = max(jobs, key=lambda job: job["started_at"])["card"]
    return card

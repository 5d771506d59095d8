"""The section of docs/benchmarks.md about a card, from the results of the steps."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.table import HEAD, rows, show
from benchmarks.report import Figure, Section

BAR_FLOOR, BAR_BUSY, BAR_PLAIN_8, BAR_PLAIN_64, BAR_CHAT = 0.97, 97, 2.0, 1.3, 1.3
BAR_FEEDING_MS, BAR_VSS, BAR_VSS_TOKENS, BAR_START = 10, 3.3, 26_000, 1.1

TITLE = "On a card"

_HOW = (
    "Models of real size with random weights (`load_format: dummy`): throughput does not depend "
    "on their values, and nothing is said about answers. {model} in bfloat16, 720p clips of 10 s "
    "at 2 fps, {prompt} prompt tokens, answers of {shortest} to {longest} tokens, {mean} on "
    "average, the same ones for all, in an order that leaves no bursts (plain loop: all {mean}, "
    "its best case). *Floor*: the engine alone, requests prepared in advance, each answer admits "
    "the next. *Ours*: the whole workflow, `snakemake`, from decoding to the journal, {in_flight} "
    "requests in flight. Both count answers once the window is full; *turnovers* says how often "
    "it was renewed. *Plain loop*: DataLoader with {workers} processes and the stock reader, "
    "`LLM.generate` on each batch; it counts what was read ahead, so its cores suffice. *chat*: "
    "`LLM.chat` over all samples in one call. *VSS*: Qwen3-VL-8B, FP8, 80 frames of 448 x 448, "
    "100 tokens, the setting of NVIDIA's published figures (3.3 captions/s, 26,000 prompt "
    "tokens/s). The settings of the engine are vLLM's and the project's defaults. "
    "`benchmarks/gpu` holds all of it."
)


def section(results: dict[str, Any]) -> Section:
    """What ``results`` show; a step that did not run has no figure."""
    any_step = next(one for one in results.values() if "device" in one)
    mean = any_step["mean_tokens"]
    base = results.get("floor") or results.get("ours") or any_step
    how = _HOW.format(
        model=Path(base["model"]).name,
        prompt=show(float(base.get("prompt_tokens_each") or 0), 0),
        shortest=mean // 2,
        longest=base["sampling"]["max_tokens"],
        mean=mean,
        in_flight=(results.get("ours", {}).get("steady") or {}).get("in_flight", "128"),
        workers=results.get("plain", {}).get("workers", 12),
    )
    at = max(one["at"] for one in results.values() if "at" in one)
    versions = ", ".join(f"{name} {v}" for name, v in any_step["versions"].items() if v)
    return Section(
        TITLE,
        figures(results),
        how,
        "",
        [HEAD, *rows(results)],
        f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC",
        f"{any_step['device']} (name, driver, memory), {any_step['cores']} cores, {versions}",
    )


def figures(results: dict[str, Any]) -> list[Figure]:
    """The figures with a bar."""
    shown: list[Figure] = []

    def rate(one: dict[str, Any]) -> float | None:
        return (one.get("steady") or {}).get("videos_per_second") or one.get("videos_per_second")

    def at_least(name: str, value: float | None, bar: float, digits: int = 2) -> None:
        if value is not None:
            shown.append(
                Figure(name, f"at least {bar:g}", f"{value:.{digits}f}", round(value, 4) >= bar)
            )

    ours = results.get("ours", {})
    runs = results.get("plain", {}).get("runs", {})
    others = [
        ("the engine alone", results.get("floor", {}), BAR_FLOOR),
        ("a plain loop with batches of 8", runs.get("batches of 8", {}), BAR_PLAIN_8),
        ("a plain loop with batches of 64", runs.get("batches of 64", {}), BAR_PLAIN_64),
        ("`LLM.chat`", results.get("chat", {}), BAR_CHAT),
    ]
    for name, one, bar in others:
        if rate(ours) and rate(one):
            at_least(f"on a card, videos/s / {name}", rate(ours) / rate(one), bar)
    busy = (ours.get("machine") or {}).get("gpu_util")
    at_least("on a card, GPU busy, %", busy, BAR_BUSY, 0)
    if ours.get("feeding_cpu_each") is not None:
        each = 1000 * ours["feeding_cpu_each"]
        shown.append(
            Figure.at_most(
                "on a card, CPU of the feeding process a sample, ms", each, BAR_FEEDING_MS
            )
        )
    started = start_ratio(results)
    if started is not None:
        name = "on a card, time to the first request / the engine alone"
        shown.append(Figure.at_most(name, started, BAR_START))
    vss = results.get("vss", {})
    at_least("VSS setting, captions/s", rate(vss), BAR_VSS)
    if rate(vss) and vss.get("prompt_tokens_each"):
        tokens = rate(vss) * vss["prompt_tokens_each"]
        at_least("VSS setting, prompt tokens/s", tokens, BAR_VSS_TOKENS, 0)
    return shown


def start_ratio(results: dict[str, Any]) -> float | None:
    """The time from the job's start to the first request, divided by the time of the engine alone
    with the same warm caches: the floor's imports and configuration, and the plain loop's engine
    start."""
    first = results.get("ours", {}).get("first_request_after")
    line = results.get("floor", {}).get("timeline", {})
    warm = results.get("plain", {}).get("engine_start_seconds")
    if not first or not warm or "configured" not in line:
        return None
    return first / (line["imported"] - line["began"] + line["configured"] - line["turn"] + warm)


def of_file(path: Path) -> Section:
    """The section of a results.json that came from another machine."""
    return section(json.loads(path.read_text(encoding="utf-8")))

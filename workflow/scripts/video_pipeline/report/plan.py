"""Shows the plan of a run as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import filesize
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from video_pipeline.common.printable import printable

SHOWN_KINDS = 10
"""The most kinds of errors, sizes and codecs that are printed."""

FLAGS = {
    "prompt_too_long": "the prompt alone fills vllm.max_model_len: vLLM refuses it",
    "answer_may_be_cut": "prompt + longest answer are over vllm.max_model_len",
    "item_too_large": "an image or a video is larger than vLLM's encoder cache: vLLM refuses it",
}
"""Faults of samples that can be read."""


def show_plan(report: dict[str, Any]) -> None:
    """Print the report of a plan."""
    console = Console(highlight=False, markup=False)
    console.rule(f"plan of {printable(report['output'])}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")  # A path may be longer than a line.
    for name, text in plan_facts(report):
        facts.add_row(name, printable(text))
    console.print(facts)
    for name, title in (("prompt_tokens", "tokens of a prompt"), ("seconds", "seconds of video")):
        bins = report["histograms"][name]
        if not bins:
            continue
        console.rule(title)
        table = Table.grid(padding=(0, 2))
        for justify in ("right", "right", "left"):
            table.add_column(justify=justify, no_wrap=True)
        most = max(entry["count"] for entry in bins)
        for entry in bins:
            bar = Bar(most, 0, entry["count"], width=40)
            table.add_row(f"{entry['from']:,g} to {entry['to']:,g}", f"{entry['count']:,}", bar)
        console.print(table)


def plan_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The names and texts of a plan, without its histograms."""
    samples, scale = report["samples"], report["scale"]
    yield "task, model", f"{report['task']}, {report['model']}"
    yield (
        "samples",
        f"{samples['distinct']:,} ({samples['input_lines']:,} lines, "
        f"{samples['duplicates']:,} repeated, {samples['left_out']:,} left out, "
        f"{samples['dropped']:,} dropped by data.where)",
    )
    if scale > 1:
        words = "drawn at random; the figures of the run are scaled up by"
        yield "looked at", f"{samples['looked_at']:,} of them, {words} {scale:.4g}"
    yield "readable", f"{samples['readable']:,}"
    yield "unreadable", f"{samples['unreadable']:,}"
    for error in report["errors"][:SHOWN_KINDS]:
        kind = f"{error['stage']}: {error['type']}: {error['message']}"
        yield f"{error['count']:,}".rjust(10), f"{kind:.300} (such as {error['example']})"
    if len(report["errors"]) > SHOWN_KINDS:
        yield "", f"and {len(report['errors']) - SHOWN_KINDS} other kinds"
    videos, tokens = report["videos"], report["tokens"]
    if seconds := videos["seconds"]:
        yield "seconds of video", _spread(seconds)
        yield "files", f"{filesize.decimal(videos['bytes'])}, counted once for each sample"
        yield "sizes", _ranking(videos["sizes"])
        yield "codecs", _ranking(videos["codecs"])
    if tokens["prompt"]:
        yield "prompts", f"{tokens['prompts']:,}"
        yield "tokens of a prompt", _spread(tokens["prompt"])
        yield "of these, visual", _spread(tokens["visual"])
    if sound := tokens["sound"]:
        yield "of these, sound", f"{_spread(sound)}, of the prompts with sound"
    yield from _limits(report)
    yield from _costs(report["expected"])


def _limits(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    limits = report["limits"]
    yield (
        "limits",
        f"vllm.max_model_len {limits['max_model_len']:,}, the longest answer "
        f"{limits['longest_answer']:,}",
    )
    if limits["max_item_tokens"] is not None:
        yield "", f"encoder cache {limits['max_item_tokens']:,} tokens (as vLLM has it here)"
    elif limits["max_item_tokens_unknown"]:
        yield "", f"encoder cache: vLLM cannot tell here: {limits['max_item_tokens_unknown']}"
    for flag, count in report["flagged"].items():
        if count:
            yield f"{count:,}".rjust(10), f"{flag}: {FLAGS[flag]}"
    if not any(report["flagged"].values()):
        yield "", "no sample is over them"


def _costs(expected: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "the run",
        f"{expected['prompts']:,} prompts, {expected['prompt_tokens']:,} tokens; answers of "
        f"{expected['completion_tokens_each']:,.5g} tokens ({expected['completion_tokens_from']}), "
        f"{expected['completion_tokens']:,}",
    )
    if expected["gpu_hours"] is None:
        yield (
            "GPU-hours",
            "not known before some samples are answered, without plan.prompt_tokens_per_second and "
            "plan.completion_tokens_per_second",
        )
        return
    yield "GPU-hours", f"{expected['gpu_hours']:,.4g} = {expected['formula']}"
    if expected["cost"] is not None:
        yield "cost", f"{expected['cost']:,.2f} at {expected['price_per_gpu_hour']:g} a GPU-hour"


def _spread(figures: dict[str, Any]) -> str:
    names = {"min": "least", "median": "median", "p95": "95 %", "max": "most"}
    parts = [f"{title} {figures[name]:,.10g}" for name, title in names.items()]
    return f"{', '.join(parts)}; all {figures['total']:,.10g}"


def _ranking(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:SHOWN_KINDS]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")

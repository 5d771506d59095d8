"""One table of the results:  python -m benchmarks.gpu.table FILE"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

HEAD = [
    *("", "videos/s", "decoded/s", "k prompt tok/s", "prompt", "out", "answers", "turnovers"),
    *("GPU %", "W", "CPU"),
]


def show(value: Any, digits: int = 2) -> str:
    """A number for a table."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """A row for each measured rate."""
    table_rows = []
    for name, one in results.items():
        if name == "plain":
            table_rows += [_row(f"plain, {how}", run) for how, run in one.get("runs", {}).items()]
        elif name == "tune":
            variants = one.get("variants", {})
            table_rows += [_row(f"floor, {how}", run) for how, run in variants.items()]
        elif name in ("floor", "vssfloor"):
            windows = one.get("windows", {})
            table_rows += [_row(f"{name}, {n} in flight", {**one, **w}) for n, w in windows.items()]
        elif "videos_per_second" in one:
            steady = {"videos_per_second": one["videos_per_second"], "answers": one["answered"]}
            table_rows.append(_row(name, {**one, "steady": steady}))
        elif "steady" in one:
            table_rows.append(_row(name, one))
    return table_rows


def _row(name: str, one: dict[str, Any]) -> list[str]:
    steady, machine = one.get("steady") or {}, one.get("machine") or {}
    rate, prompt = steady.get("videos_per_second"), one.get("prompt_tokens_each")
    return [
        name if "failed" not in one else f"{name} (failed)",
        show(rate),
        show(steady.get("decoded_per_second")),
        show(rate * prompt / 1000, 1) if rate and prompt else "-",
        show(prompt and float(prompt), 0),
        show(one.get("completion_tokens_each") and float(one["completion_tokens_each"]), 0),
        show(steady.get("answers")),
        show(steady.get("turnovers")),
        show(machine.get("gpu_util"), 0),
        show(machine.get("watts"), 0),
        show(machine.get("cpu_share")),
    ]


def table(results: dict[str, Any]) -> str:
    """The results as a table, with remarks below it."""
    body = rows(results)
    widths = [max(len(row[i]) for row in [HEAD, *body]) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [HEAD, *body]
    ]
    return "\n".join([*lines, "", *remarks(results)]) + "\n"


def remarks(results: dict[str, Any]) -> list[str]:
    """Lines about the start, the memory and the CPU, which the rates do not show."""
    lines = []
    for name, one in results.items():
        if "exit_code" in one:
            lines.append(f"{name}: not complete, exit code {one['exit_code']}")
        if "first_request_after" in one:
            lines.append(
                f"{name}: {one.get('fate')}; first request after "
                f"{show(one['first_request_after'], 0)} s, first answer after "
                f"{show(one.get('first_answer_after'), 0)} s; engine busy "
                f"{show(one.get('engine_busy_share'), 3)}, decode processes' load "
                f"{show(one.get('decode_workers_load'), 3)}, "
                f"{show(one.get('decode_seconds_each'))} s a clip; feeding CPU "
                f"{show(one.get('feeding_cpu_each'), 4)} s each; held when the window opened "
                f"{show(one.get('held_at_begin'), 0)}, when it closed "
                f"{show(one.get('held_at_end'), 0)}; full "
                f"{show(one.get('window_full_after'), 0)} s after the first request"
            )
            lines.append(f"{name}, seconds from the start: {one.get('start')}")
            lines.append(f"{name}, until the first request: {one.get('cpu_until_first_request')}")
            lines.extend(
                f"{name}, {looked['after']} s after it: {looked['kinds']}"
                for looked in one.get("memory", [])
            )
        if name in ("floor", "vssfloor"):
            line = one.get("timeline", {})
            steps = ["began", "imported", "turn", "configured", "engine_up", "prepared"]
            times = [(step, line[step]) for step in steps if step in line]
            spent = [
                f"{step} {after - before:.1f}"
                for (_, before), (step, after) in itertools.pairwise(times)
            ]
            lines.append(
                f"{name}, seconds until: {', '.join(spent)}; first answer after "
                f"{show(one.get('first_answer_after'), 0)} s; one request alone "
                f"{show(one.get('one_request_alone_seconds'))} s; submitting CPU "
                f"{show(one.get('submit_cpu_seconds_each'), 4)} s each"
            )
        if "engine_start_seconds" in one:
            lines.append(f"{name}: engine start {show(one['engine_start_seconds'], 1)} s")
        for how, run in one.get("runs", {}).items():
            lines.append(
                f"{name}, {how}: in generate {show(run.get('share_in_generate'), 3)} of the time; "
                f"front end CPU {show(run.get('front_end_cpu_each'), 3)} s each"
            )
        for how, run in one.get("variants", {}).items():
            start = show(run.get("engine_start_seconds"), 1)
            lines.append(f"{name}, {how}: {run.get('failed') or f'engine start {start} s'}")
        if "found" in one:
            lines.append(f"{name}: {json.dumps(one['found'])[:6000]}")
    return lines


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")

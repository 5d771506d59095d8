"""The real workflow, snakemake over many samples; ended once the window is closed.

The decode processes prepare samples while the model loads, at most ``max_ready_gb`` or two times
``max_in_flight``. As long as that stock lasts, answers may come faster than samples are decoded: so
both are counted over the window, and the lower one is the rate that would last.

What the processes cost (CPU, memory, priority) is looked at every few seconds, and when each phase
of the start was over.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import (
    CLOCK,
    CORES,
    COUNTED,
    IN_FLIGHT,
    MEAN_TOKENS,
    MEASURE,
    PROJECT,
    RAMP,
    RUNS,
    SAMPLING,
    SET,
    STEP,
    VISION,
    VLLM,
    Samplers,
    clips,
    heading,
    save,
    window,
)

FULL_SECONDS = 40.0
"""How long the window may take to fill, from the first request on; then it is not waited for: the
cores are the limit."""

LOOK_SECONDS = 2.0
"""How often the run's statistics and the CPU of its processes are looked at."""

MEMORY_AT = (3.0, 10.0, 25.0, 45.0)
"""Seconds after the first request at which memory is looked at."""

FAILED = (b"Trying to restart job", b"Exiting because a job", b"Error in rule")


def main() -> None:
    run = Run(RUNS / f"run_{STEP}")
    result = {**heading(), **run.prepare()}
    save(result)
    samplers = Samplers()
    run.start()
    run.watch()
    samplers.stop()
    run.end()
    result.update(run.outcome())
    save(result)
    try:
        result.update(run.details(result["steady"], samplers))
    except Exception:  # the rate is there; the result says why the details are not
        result["details_failed"] = traceback.format_exc(limit=-3)
    save({**result, "complete": bool(result["steady"])})
    for path in [run.log, *sorted(run.folder.glob("logs/*/*.log"))]:
        print(f"--- {path.name}\n{_ends_of(path.read_text(errors='replace'))}")
    if not result["steady"]:
        raise SystemExit(f"{STEP}: {run.fate}")


def _ends_of(text: str, most: int = 12_000) -> str:
    return text if len(text) <= 2 * most else f"{text[:most]}\n.....\n{text[-most:]}"


class Run:
    """One run of the workflow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "snakemake.log"
        self.fate = "all answered"
        self.ends: list[float] = []
        self._statistics: list[dict[str, Any]] = []
        self._cpu: list[tuple[float, dict[str, Any]]] = []
        self._born: dict[str, float] = {}
        self._ramp: int | None = None
        self._full_after: float | None = None
        self._memory: list[dict[str, Any]] = []

    def prepare(self) -> dict[str, Any]:
        """Write samples and configuration."""
        import yaml

        # what the window needs, what comes before it, and what is in flight when it closes
        count = int(os.environ.get("N_OURS") or RAMP + COUNTED + 5 * IN_FLIGHT + 300)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        files = clips()
        with open(self.folder / "samples.jsonl", "w", encoding="utf-8") as stream:
            for i in range(count):
                stream.write(json.dumps({"id": f"s{i:05d}", "path": files[i % len(files)]}) + "\n")
        settings = {
            "data": {
                "input_jsonl": "samples.jsonl",
                "output_jsonl": "results/out.jsonl",
                "id_field": "id",
                **SET.data,
            },
            "vision": VISION,
            "vllm": VLLM,
            "sampling": SAMPLING,
            "run": {
                "max_in_flight": IN_FLIGHT,
                "plugins": [str(PROJECT / "benchmarks/plugins/varied_lengths.py")],
            },
            "report": {"samples": 0},
        }
        (self.folder / "bench.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._command = [
            *(sys.executable, "-m", "snakemake", "-s", str(PROJECT / "Snakefile")),
            *("--cores", str(CORES), "--resources", "gpu=1", "--configfile", "bench.yaml"),
            *("--directory", str(self.folder)),
        ]
        return {"samples": count, "clips": len(files), "settings": settings}

    def start(self) -> None:
        self._began = time.time()
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "BENCH_MEAN_TOKENS": str(MEAN_TOKENS)},
            )

    def watch(self) -> None:
        """Until enough is answered, or there is no time left."""
        looked = 0.0
        while self._process.poll() is None:
            time.sleep(0.1)
            now = time.time()
            self.ends += [now] * (self._answers() - len(self.ends))
            if now - looked > LOOK_SECONDS:
                looked = now
                self._look(now)
            if self._ramp is not None and len(self.ends) >= self._ramp + COUNTED:
                self.fate = "window closed"
                self._look_after_the_end()
                return
            ready_at = self._ready_at()
            if any(message in self.log.read_bytes() for message in FAILED):
                self.fate = "a job failed"
            elif ready_at and now - ready_at > MEASURE:
                self.fate = "time of the measurement is over"
            elif CLOCK.left() < 20:
                self.fate = "out of time"
            else:
                continue
            return

    def _ready_at(self) -> float | None:
        return self._statistics[-1]["ready_at"] if self._statistics else None

    def _open_window(self, now: float) -> None:
        """Decide from which answer on they count: once as many samples are held as may be in the
        engine (the decode processes may have begun after it), and after the ramp. The statistics
        tell it a moment later; the answers since then count."""
        ready_at = self._ready_at()
        if self._ramp is not None or ready_at is None:
            return
        last = self._statistics[-1]
        if last["decoded"] - last["inferred"] >= IN_FLIGHT:
            opened = last["updated_at"]
            self._full_after = opened - ready_at
        elif now - ready_at > FULL_SECONDS:
            opened = now
        else:
            return
        self._ramp = max(RAMP, sum(end <= opened for end in self.ends))

    def _look(self, now: float) -> None:
        from benchmarks.gpu.processes import by_kind, rows

        self._read_statistics()
        self._open_window(now)
        ready_at = self._ready_at()
        if ready_at is None or now - ready_at < 10:
            processes = rows(self._process.pid, memory=False)
            self._cpu.append((now, by_kind(processes)))
            for row in processes:
                born = self._born.get(row["kind"], row["started"])
                self._born[row["kind"]] = min(born, row["started"])
        due = [at for at in MEMORY_AT if ready_at and now - ready_at >= at]
        if len(due) > len(self._memory):
            processes = rows(self._process.pid, memory=True)
            one = {"after": round(now - ready_at, 1), "kinds": by_kind(processes)}
            if not self._memory:
                one["processes"] = processes
            self._memory.append(one)

    def _look_after_the_end(self) -> None:
        """One more row of statistics, for what happened up to the end of the window."""
        limit = time.time() + 6
        while self._process.poll() is None and time.time() < limit:
            self._read_statistics()
            if self._statistics and self._statistics[-1]["updated_at"] > self.ends[-1]:
                return
            time.sleep(0.2)

    def _read_statistics(self) -> None:
        """The project writes them every 5 s, beside the journal file of the attempt."""
        from video_pipeline.run.statistics import read_statistics

        for journal in (self.folder / "results" / ".journal").glob("*/*/"):
            for row in read_statistics(journal)[-1:]:
                rows = self._statistics
                if not rows or row["updated_at"] > rows[-1]["updated_at"]:
                    decoded = sum(row["histograms"]["decode_seconds"].values())
                    rows.append({**row, "decoded": decoded})

    def _answers(self) -> int:
        count = 0
        for path in (self.folder / "results" / ".journal").rglob("*.jsonl"):
            count += max(0, path.read_bytes().count(b"\n") - 1)  # its first line says who writes
        return count

    def end(self) -> None:
        from benchmarks.gpu.processes import end

        if self._process.poll() is None:
            end(self._process)
        shutil.rmtree(self.folder / ".snakemake", ignore_errors=True)

    def outcome(self) -> dict[str, Any]:
        """How the run ended, the rate, and the times of its steps."""
        ready_at, began = self._ready_at(), self._began
        return {
            "fate": self.fate,
            "exit": self._process.returncode,
            "wall_seconds": time.time() - began,
            "answered": len(self.ends),
            "steady": window(self.ends, ramp=RAMP if self._ramp is None else self._ramp),
            "window_full_after": self._full_after,
            "ends": [round(end - began, 2) for end in self.ends],
            "first_request_after": ready_at - began if ready_at else None,
            "first_answer_after": self.ends[0] - began if self.ends else None,
        }

    def details(self, steady: dict[str, Any], samplers: Samplers) -> dict[str, Any]:
        """The times of the start, the cost of the processes, and the rates within the window."""
        details: dict[str, Any] = {"memory": self._memory, **self._start()}
        if not steady or not self._statistics:
            return details
        begin, end, last = steady["begin"], steady["end"], self._statistics[-1]

        def rate(name: str) -> float:
            return (self._at(end, name) - self._at(begin, name)) / steady["seconds"]

        steady["decoded_per_second"] = rate("decoded")
        decode = rate("decode_seconds")
        return {
            **details,
            "machine": samplers.of(steady),
            "decode_workers_load": decode / last["num_workers"],
            "decode_seconds_each": decode / max(1e-9, rate("decoded")),
            "engine_busy_share": rate("engine_busy_seconds"),
            "feeding_cpu_each": rate("feeding_cpu_seconds") * steady["seconds"] / steady["answers"],
            "prompt_tokens_each": last["prompt_tokens"] / max(1, last["inferred"]),
            "completion_tokens_each": last["completion_tokens"] / max(1, last["inferred"]),
            "held_at_begin": self._at(begin, "decoded") - self._at(begin, "inferred"),
            "held_at_end": self._at(end, "decoded") - self._at(end, "inferred"),
            "waited_for": last["limits"],
            "statistics": {**last, "series": None},
        }

    def _start(self) -> dict[str, Any]:
        """Seconds from the begin to each moment of the start, and the CPU spent until the first
        request, by kind of process."""
        ready_at = self._ready_at()
        before = [kinds for at, kinds in self._cpu if ready_at is None or at <= ready_at]
        moments = {f"first {kind} process": at for kind, at in self._born.items()}
        if self._statistics:
            moments["has its GPU (statistics begin)"] = self._statistics[0]["started_at"]
        if ready_at:
            moments["first request"] = ready_at
        first_ready = next((row for row in self._statistics if row["decoded"]), None)
        if first_ready:
            moments["first sample decoded (within 5 s)"] = first_ready["updated_at"]
        return {
            "start": {
                name: round(at - self._began, 1)
                for name, at in sorted(moments.items(), key=lambda item: item[1])
            },
            "decoded_at_first_request": self._at(ready_at, "decoded") if ready_at else None,
            "cpu_until_first_request": before[-1] if before else None,
            "cpu_over_time": [
                {"after": round(at - self._began, 1), **{k: v["cpu"] for k, v in kinds.items()}}
                for at, kinds in self._cpu
            ],
        }

    def _at(self, when: float, name: str) -> float:
        """Value of a counter at a time, between the two nearest rows."""
        rows = self._statistics
        before = max(
            (row for row in rows if row["updated_at"] <= when),
            key=lambda row: row["updated_at"],
            default=None,
        )
        after = min(
            (row for row in rows if row["updated_at"] > when),
            key=lambda row: row["updated_at"],
            default=None,
        )
        if before is None or after is None:
            return (before or after)[name]
        share = (when - before["updated_at"]) / (after["updated_at"] - before["updated_at"])
        return before[name] + share * (after[name] - before[name])


if __name__ == "__main__":
    main()

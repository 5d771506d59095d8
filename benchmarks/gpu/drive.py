"""Run steps one after the other within a total time, then print one table.

    python -m benchmarks.gpu.drive --limit 580 nvdec+floor ours ours_nvdec+plain+tune

The command skips steps that are complete, so the same command continues where it was cut off;
``--again`` measures them again. ``A+B`` starts B together with A: B imports its modules and waits
for its turn, which comes when A and all steps before B are over. A step that waits outlives this
command, and the next command finds it.

Each step saves its results as they come, in ``$BENCH_ROOT/runs`` and in ``$OUT``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.common import CLIPS, PROJECT, ROOT, RUNS, results, save, wait_for_gpu

LOGS = ROOT / "log"


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        module: The module that runs it.
        least: The seconds that must be left for it to start.
        most: Seconds after which it is cut off.
        ahead: How many seconds less it needs if it was started ahead of its turn; 0: it cannot wait
            for its turn.
    """

    module: str
    least: int
    most: int
    ahead: int = 0


STEPS = {
    "check": Step("benchmarks.gpu.check", 20, 60),
    "nvdec": Step("benchmarks.nvdec_check", 20, 55),
    "floor": Step("benchmarks.gpu.floor", 170, 340, 20),
    "ours": Step("benchmarks.gpu.ours", 110, 240),
    "ours_nvdec": Step("benchmarks.gpu.ours", 110, 240),
    "plain": Step("benchmarks.gpu.plain", 90, 180, 25),
    "tune": Step("benchmarks.gpu.tune", 75, 600, 25),
    "caches": Step("benchmarks.gpu.caches", 8, 40),
    "chat": Step("benchmarks.gpu.chat", 100, 240, 20),
    "vssfloor": Step("benchmarks.gpu.floor", 170, 340, 20),
    "vss": Step("benchmarks.gpu.ours", 110, 290),
    "ours1080": Step("benchmarks.gpu.ours", 110, 290),
}

REMEDIES: list[tuple[str, dict[str, object], dict[str, str]]] = [
    (
        r"out of memory|OutOfMemory|Free memory on device",
        {"gpu_memory_utilization": 0.8},
        {},
    ),
    (
        r"FlashAttention|flash_attn|fa3|vllm_flash",
        {"attention_backend": "TRITON_ATTN", "mm_encoder_attn_backend": "TORCH_SDPA"},
        {},
    ),
    (
        r"jit_warmup|autotune|cutedsl|kernel_warmup",
        {
            "kernel_config": {
                "enable_jit_warmup": False,
                "enable_flashinfer_autotune": False,
                "enable_cutedsl_warmup": False,
            }
        },
        {},
    ),
    (r"inductor|dynamo|torch\.compile|InductorError", {"compilation_config": {"mode": 0}}, {}),
    (r"triton|Triton", {}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}),
]
"""A pattern in the log of an engine that did not start, and the engine arguments and variables for
another try. The first that fits is used, and all later steps keep it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="+", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--limit", type=float, default=580, help="seconds for all (580)")
    parser.add_argument("--again", action="store_true", help="also the steps that are complete")
    options = parser.parse_args()
    groups = [group.split("+") for group in options.steps]
    if unknown := {name for group in groups for name in group} - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    driver = Driver(options.limit, options.again)
    for group in groups:
        if not driver.run_group(group):
            break
    driver.finish()


class Driver:
    """Runs steps within the time that is left."""

    def __init__(self, limit: float, again: bool) -> None:
        self._end = time.monotonic() + limit
        self._again = again
        self._out = Path(os.environ.setdefault("OUT", str(ROOT / "out")))
        for folder in (self._out, RUNS, LOGS):
            folder.mkdir(parents=True, exist_ok=True)
        self._remedy = RUNS / "remedy.json"

    def left(self) -> float:
        return self._end - time.monotonic()

    def run_group(self, group: list[str]) -> bool:
        """Run the steps of ``group`` one after the other; all but the first import meanwhile. False
        if the time is over."""
        done = set() if self._again else self._done()
        todo = [name for name in group if name not in done]
        for name in todo[1:]:
            if STEPS[name].ahead and not self._waiting(name):
                self._launch(name, ahead=True)
        return all(self._run(name) for name in todo)

    def _done(self) -> set[str]:
        """The steps that are complete, and those that failed: another try would take time from the
        others."""
        return {n for n, one in results().items() if one.get("complete") or "exit_code" in one}

    def _run(self, name: str) -> bool:
        """Run one step. False if there is too little time for it."""
        step = STEPS[name]
        waits = self._waiting(name)
        least = step.least - (step.ahead if waits else 0)
        if self.left() - 4 < least:
            say(f"{name}: {least} s needed, {self.left():.0f} left")
            return False
        if find_spec(step.module) is None:
            say(f"{name}: not in this checkout")
            return True
        code = self._run_once(name, min(step.most, self.left() - 4))
        started = "engine_up" in results().get(name, {}).get("timeline", {})
        dead = code and step.module.endswith("floor") and not started
        if dead and self._find_remedy(name) and self.left() - 4 > step.least:
            code = self._run_once(name, min(step.most, self.left() - 4))
        one = results().get(name, {})
        if code or not one.get("complete"):
            one["exit_code"] = code
        if name == "nvdec" and (RUNS / "nvdec.json").exists():
            one["found"] = json.loads((RUNS / "nvdec.json").read_text(encoding="utf-8"))
        save(one, name)
        return True

    def _run_once(self, name: str, seconds: float) -> int:
        if not self._waiting(name):
            self._launch(name, ahead=False, seconds=seconds)
        begun = time.monotonic()
        say(f"{name}: at most {seconds:.0f} s")
        part = _turn(name).with_suffix(".part")
        part.write_text(f"{seconds - 3:.0f}", encoding="utf-8")
        part.replace(_turn(name))
        pid, exit_file = _pid(name), _exit(name)
        while not exit_file.exists() and time.monotonic() - begun < seconds and _alive(pid):
            time.sleep(0.1)
        code = int(exit_file.read_text()) if exit_file.exists() else 124
        self._end_all_of(name, pid)
        say(f"{name}: exit code {code} after {time.monotonic() - begun:.0f} s")
        self._keep_log(name, code)
        wait_for_gpu()
        return code

    def _launch(self, name: str, *, ahead: bool, seconds: float = 600) -> None:
        """Start the process of a step, in a session of its own; its exit code goes to a file."""
        for path in (_turn(name), _exit(name), Path(f"{_turn(name)}.ready")):
            path.unlink(missing_ok=True)
        remedy = json.loads(self._remedy.read_text()) if self._remedy.exists() else {}
        environment = {
            **os.environ,
            **remedy.get("variables", {}),
            "BENCH_REMEDY": json.dumps(remedy.get("arguments", {})),
            "BENCH_STEP": name,
            "BENCH_TURN": str(_turn(name)),
            "STEP_SECONDS": f"{seconds - 3:.0f}",
            "BENCH_NICE": str(os.nice(0)),
        }
        module = STEPS[name].module
        if name == "nvdec":
            module += f" '{CLIPS}' --seconds {seconds - 5:.0f} --out '{RUNS / 'nvdec.json'}'"
        part = f"{_exit(name)}.part"  # The file is never seen without its number.
        command = f'"{sys.executable}" -m {module}; echo $? >"{part}"; mv "{part}" "{_exit(name)}"'
        if ahead:
            command = "renice -n 5 $$ >/dev/null; " + command
        with open(LOGS / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
                cwd=PROJECT,
            )
        (RUNS / f"{name}.pid").write_text(str(process.pid), encoding="utf-8")
        if ahead:
            say(f"{name}: started ahead")

    def _waiting(self, name: str) -> bool:
        """Whether the step was started ahead and waits for its turn."""
        return not _turn(name).exists() and not _exit(name).exists() and _alive(_pid(name))

    def _end_all_of(self, name: str, pid: int) -> None:
        """Kill what is left of a step: the engine's process, which holds the GPU."""
        mark = f"BENCH_TURN={_turn(name)}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                # that one removes the shared memory of a run
                if b"video_pipeline/common/processes.py" not in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        (RUNS / f"{name}.pid").unlink(missing_ok=True)

    def _keep_log(self, name: str, code: int) -> None:
        """Add the log to the one file that comes back, and show what failed."""
        log = LOGS / f"{name}.log"
        text = log.read_text(encoding="utf-8", errors="replace")
        most = 150_000
        kept = text if len(text) <= most else f"{text[: most // 2]}\n.....\n{text[-most // 2 :]}"
        with open(RUNS / "logs.txt", "a", encoding="utf-8") as stream:
            stream.write(f"===== {name}: exit code {code}\n{kept}\n")
        shutil.copyfile(RUNS / "logs.txt", self._out / "logs.txt")
        if code or name in ("check", "nvdec"):
            lines = text.splitlines()
            wrong = re.compile(r"Error|error:|FAILED|Traceback")
            telling = [line for line in lines if wrong.search(line) and "  File" not in line]
            shown = lines[-25:] if name in ("check", "nvdec") else [*telling[-10:], *lines[-4:]]
            print("\n".join(line[:300] for line in shown), flush=True)

    def _find_remedy(self, name: str) -> bool:
        """Choose the arguments to change after an engine that did not start."""
        if self._remedy.exists():
            return False
        text = (LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if re.search(r"Error|error", line)]
        for pattern, arguments, variables in REMEDIES:
            if any(re.search(pattern, line) for line in lines[-40:]):
                self._remedy.write_text(
                    json.dumps({"arguments": arguments, "variables": variables}), encoding="utf-8"
                )
                say(f"{name}: once more with {arguments or variables}")
                return True
        return False

    def finish(self) -> None:
        """Hand back everything, the table last."""
        from benchmarks.gpu import table

        text = table.table(results())
        for folder in (RUNS, self._out):
            (folder / "table.txt").write_text(text, encoding="utf-8")
        if (RUNS / "results.json").exists():
            shutil.copyfile(RUNS / "results.json", self._out / "results.json")
        print(text, flush=True)


def say(text: str) -> None:
    print(f"[{time.strftime('%X')}] {text}", flush=True)


def _turn(name: str) -> Path:
    return RUNS / f"{name}.turn"


def _exit(name: str) -> Path:
    return RUNS / f"{name}.exit"


def _pid(name: str) -> int:
    path = RUNS / f"{name}.pid"
    return int(path.read_text()) if path.exists() else 0


def _alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    main()

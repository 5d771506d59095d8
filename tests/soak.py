"""The soak: kill random processes of a run at random moments, until a number of kills is reached;
then let it finish, and compare with a run that nobody disturbed.

    python tests/soak.py --seed 1 --samples 2000 --kills 50 [--clips FOLDER]

Nothing may be lost or done twice, nothing may be left running, and the output must be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from helpers import Run, processes_with, wait_until
from video_pipeline.common.processes import SNAKEMAKE
from video_pipeline.testing.clips import write_demo_clips

SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT]
"""Drawn from at each kill."""

SHARED_MEMORY, FOLDERS = Path("/dev/shm"), "video-pipeline-*"


class Soak:
    """One soak, in an empty folder.

    Attributes:
        killed: What was killed, by kind.
        starts: How often Snakemake was started.
    """

    def __init__(self, folder: Path, seed: int, samples: int, clips: Path | None) -> None:
        self._random = random.Random(seed)
        self._run = self._new_run(folder / "disturbed", samples, clips, seed)
        self._undisturbed = self._new_run(folder / "undisturbed", samples, clips, seed)
        self.killed: Counter[str] = Counter()
        self.starts = 0

    @staticmethod
    def _new_run(folder: Path, samples: int, clips: Path | None, seed: int) -> Run:
        run = Run(folder)
        made = write_demo_clips(folder.parent / "clips")
        real = sorted(clips.iterdir()) if clips else []
        generator = random.Random(seed)
        entries = []
        for number in range(samples):
            path = generator.choice(real if real and number % 20 == 0 else made)
            entries.append(
                {"id": number, "path": str(path) if number % 50 else "/nowhere/missing.mp4"}
            )
        run.write_samples(entries)
        run.configure(
            run={
                "task": "describe",
                "plugins": [],
                "simulated": {"seconds_per_output_token": 0.001, "concurrency": 4},
            },
            vision={"max_frames": 4, "nframes": 4, "max_pixels": 16 * 28 * 28, "fps": None},
        )
        return run

    def __call__(self, kills: int) -> None:
        """Run both and compare. Raises :class:`AssertionError` if a promise is broken."""
        before = set(SHARED_MEMORY.glob(FOLDERS))
        self._undisturbed.snakemake()
        while sum(self.killed.values()) < kills:
            self._disturb(kills)
        self._run.snakemake()
        retry = [sys.executable, "-m", "video_pipeline.retry", "--configfile", "my.yaml"]
        # a sample whose process was killed twice has an error record, as it should
        subprocess.run([*retry, "--stage", "crash"], cwd=self._run.folder, check=True)
        self._run.snakemake()
        assert self._run.output.read_bytes() == self._undisturbed.output.read_bytes()
        assert set(self._run.answers().values()) == {1}, "a sample was inferred twice"
        assert self._run.answers() == self._undisturbed.answers()
        left = set(SHARED_MEMORY.glob(FOLDERS)) - before
        assert not {folder for folder in left if not is_in_use(folder)}, "left in /dev/shm"

    def _disturb(self, kills: int) -> None:
        """Start Snakemake and kill until it is gone."""
        main = self._run.start_snakemake()
        self.starts += 1
        try:
            while sum(self.killed.values()) < kills:
                pause = self._random.uniform(0.2, 4.0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    main.wait(pause)
                    break
                self._kill_one(main.pid)
            else:
                main.kill()
        finally:
            main.wait()
        try:
            wait_until(lambda: not self._processes(main.pid), "the processes are gone", 60)
        except AssertionError:
            left = map(psutil.Process, self._processes(main.pid))
            raise AssertionError(f"left running: {[p.cmdline() for p in left]}") from None
        if not self._run.output.exists():
            return
        # finished before the kills were done: open some work again
        self._run.output.unlink()
        for folder in self._run.journals():
            for path in folder.glob("attempt.*.jsonl"):
                path.unlink()

    def _kill_one(self, main: int) -> None:
        pids = sorted({main, *self._processes(main)})
        number = self._random.choice(SIGNALS)
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._random.choice(pids))
            kind = self._kind(process)
            process.send_signal(number)
            self.killed[f"{kind} {number.name}"] += 1

    @staticmethod
    def _kind(process: psutil.Process) -> str:
        command = " ".join(process.cmdline())
        names = ("snakemake", "infer.py", "split.py", "consolidate.py", "processes.py", "spawn")
        return next((name for name in names if name in command), process.name())

    @staticmethod
    def _processes(main: int) -> list[int]:
        return processes_with(SNAKEMAKE, str(main))


def is_in_use(folder: Path) -> bool:
    """Whether a job, of anybody, has this folder of shared memory."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in process.cmdline():
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=Path, help="a folder of real clips to mix in")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), args.seed, args.samples, args.clips)
        soak(args.kills)
    print(
        f"seed {args.seed}: {args.samples} samples, {sum(soak.killed.values())} kills, "
        f"{soak.starts} starts, {time.monotonic() - started:.0f} s: nothing lost, nothing twice"
    )
    for name, count in sorted(soak.killed.items()):
        print(f"  {count:3d} {name}")


if __name__ == "__main__":
    main()

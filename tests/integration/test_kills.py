"""Kill anything at any time: nothing is lost, nothing is done twice, nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import Run, keys, lock_holders, processes_with, samples, wait_until
from video_pipeline.common.locks import try_lock
from video_pipeline.run.layout import Layout
from video_pipeline.run.statistics import read_statistics

pytestmark = [pytest.mark.two_ranks, pytest.mark.as_users]

# One answer after the other, slowly until there is a file `go`: what is to be killed is at work,
# however slow the tests are themselves.
SIMULATED = {"output_tokens": 1, "seconds_per_output_token": 0.0}
SLOW = """
import asyncio

from video_pipeline.engine.simulated import SimulatedEngine

_fast, _turn = SimulatedEngine.generate, asyncio.Lock()


async def _slow(self, *request):
    async with _turn:
        if not (HERE / "go").exists():
            await asyncio.sleep(0.3)
        return await _fast(self, *request)


SimulatedEngine.generate = _slow
"""
COUNT = 300


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    """The output of a run that nobody disturbs."""
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.write_samples(samples(COUNT))
    run.configure(run={"simulated": SIMULATED})
    run.snakemake()
    return run.output.read_bytes()


@pytest.fixture
def started(run):
    """Snakemake in the background, in the midst of its samples on two ranks."""
    run.write_samples(samples(COUNT))
    run.configure(run={"simulated": SIMULATED})
    run.write_plugin((run.folder / "plugin.py").read_text() + SLOW)
    start(run)
    yield run
    for pid in processes_with("VIDEO_PIPELINE_SNAKEMAKE", str(run.main.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.main.kill()
    run.main.wait()


def start(run) -> None:
    """Start Snakemake in the background; returns when both jobs have some more samples done."""
    before, more = attempts(run), len(run.answers()) + 6
    run.main = run.start_snakemake()
    wait_until(lambda: attempts(run) >= before + 2, "both jobs have an answer")
    wait_until(lambda: len(run.answers()) >= more, "some samples are done")
    run.process = psutil.Process(run.main.pid)


def run_lock(run) -> Path:
    """Who works on the output of ``run`` locks this file."""
    return run.folder / Layout.of(run.config, 2).run_lock


def jobs(run) -> list[psutil.Process]:
    """The running inference jobs."""
    found = []
    for process in run.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # It has just ended.
            if "--rank" in process.cmdline() and process.name().startswith("python"):
                found.append(process)
    return found


def assert_all_gone(run) -> None:
    """Soon no process of the run is left. By themselves they would take longer."""
    wait_until(
        lambda: not processes_with("VIDEO_PIPELINE_SNAKEMAKE", str(run.main.pid)),
        "the processes of the run are gone",
        30,
    )


def assert_finished(run, expected: bytes) -> None:
    """The next Snakemake finishes, infers nothing twice, and gives the same output."""
    go(run)
    run.snakemake()
    assert run.answers() == dict.fromkeys(keys(COUNT), 1)
    assert run.output.read_bytes() == expected


def attempts(run) -> int:
    """How many attempts of a job have answered something."""
    files = (run.folder / "results" / ".journal" / "out").rglob("attempt.*.jsonl")
    return sum('"output_text":' in path.read_text() for path in files)


def last_counted(run) -> float:
    """The time up to which the statistics of the last job of each rank count, in Unix seconds."""
    until: dict[int, float] = {}
    for attempt in read_statistics(next((run.folder / "results/.journal/out").iterdir())):
        until[attempt["rank"]] = attempt["updated_at"]
    return min(until.values())


def go(run) -> None:
    """Let the engine be fast from now on."""
    (run.folder / "go").touch()


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def test_snakemake_is_killed(started, undisturbed):
    for number in SIGNALS:
        if number != SIGNALS[0]:
            start(started)
        assert len(jobs(started)) == 2
        sent_at = time.time()
        started.main.send_signal(number)
        assert_all_gone(started)
        if number != signal.SIGKILL:
            assert last_counted(started) > sent_at
        assert started.main.wait() != 0
        assert len(started.answers()) < COUNT
    said = (started.folder / "background.log").read_text(encoding="utf-8")
    assert said.count("Stopped by a signal") == 2  # Who is killed says nothing.
    assert "Fix the cause" not in said
    assert_finished(started, undisturbed)


def test_a_job_is_killed(started, undisturbed):
    """Snakemake starts it again. Meanwhile it holds the lock of the output."""
    assert lock_holders(run_lock(started)) == {started.main.pid}
    for number in SIGNALS:
        before = attempts(started)
        jobs(started)[0].send_signal(number)
        wait_until(lambda before=before: attempts(started) > before, "the next attempt is at work")
    go(started)
    assert started.main.wait() == 0
    assert_all_gone(started)
    assert_finished(started, undisturbed)


def test_the_processes_of_a_job_are_killed(started, undisturbed):
    """The watch process, and then its job; in the next attempt that, the decode processes, and what
    multiprocessing starts."""
    (job, *_) = jobs(started)
    before = attempts(started)

    def watch() -> list[psutil.Process]:
        found = []
        for process in job.children():
            with suppress(psutil.NoSuchProcess):  # The one that was killed: gone, or nearly.
                if "processes.py" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    (first,) = watch()
    shared_memory = Path(first.cmdline()[-1])
    first.kill()
    # Looked up once: between two looks the killed one may vanish, with no other there yet.
    wait_until(lambda: (now := watch()) and now != [first], "there is another watch process")
    assert shared_memory.exists()
    job.kill()
    wait_until(lambda: not shared_memory.exists(), "the shared memory is gone")

    wait_until(lambda: attempts(started) > before, "the next attempt is at work")
    for process in jobs(started)[0].children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # Decode processes end with the one before them.
            process.kill()
    go(started)
    assert started.main.wait() == 0
    assert_all_gone(started)
    assert_finished(started, undisturbed)


def test_a_second_snakemake_on_the_same_output_is_refused(run):
    run.write_samples(samples(1))
    with try_lock(run_lock(run)):
        out = run.snakemake(succeeds=False)
    assert "another snakemake, retry or prune is at work on results/out.jsonl" in out
    assert f"process {os.getpid()}" in out
    assert "Traceback" not in out


@pytest.fixture
def small_disk(run):
    """The folder of the results on a disk of its own of 1 MB, in a mount namespace."""
    results = run.folder / "results"
    results.mkdir()

    def inside(options: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        mount = f'mount -t tmpfs -o {options} none results && exec "$@"'
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command],
            cwd=run.folder,
            capture_output=True,
            text=True,
        )

    if inside("size=1m", ["true"]).returncode != 0:
        pytest.skip("no user namespaces with mounts here")
    return inside


def script(run) -> list[str]:
    """Split and infer one rank by hand."""
    split = " ".join(map(repr, run.command("split.py", "--num-shards", "1")))
    infer = " ".join(map(repr, run.command("infer.py", "--num-shards", "1", "--rank", "0")))
    return ["sh", "-c", f"{split} && dd if=/dev/zero of=results/filler bs=4k; {infer}"]


def test_a_full_disk_is_explained(run, small_disk):
    run.write_samples(samples(5))
    done = small_disk("size=1m", script(run))
    assert done.returncode == 1
    assert "error: No space left on device" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_folder_is_explained(run, small_disk):
    run.write_samples(samples(5))
    done = small_disk("ro", run.command("split.py", "--num-shards", "1"))
    assert done.returncode == 1
    assert "error: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr

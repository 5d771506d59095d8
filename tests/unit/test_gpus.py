"""Leases of GPUs, between real processes. A program called nvidia-smi stands in for NVIDIA's."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import SCRIPTS, Splitter, lock_holders, marked_processes, samples, wait_until
from video_pipeline.common.processes import MARK
from video_pipeline.config import load_config
from video_pipeline.errors import EnvironmentFault, UserError
from video_pipeline.gpu import devices as gpus
from video_pipeline.gpu import leases
from video_pipeline.infer.infer import infer

CARD = "NVIDIA H100 80GB HBM3"

NVIDIA_SMI = """\
#!/bin/sh
cd "{folder}"
[ -e hang ] && exec sleep 600
case "$1" in
    --query-gpu=index,uuid,name,mig.mode.current) sed "s/$/, $(cat mig)/" gpus ;;
    --query-gpu=uuid,memory.used,memory.free,memory.total,mig.mode.current)
        sed "s/$/, $(cat mig)/" memory ;;
    --query-compute-apps=*) cat apps ;;
esac
exit $(cat code)
"""


class Machine:
    """A machine with so many GPUs of 80 GB, where nobody else is.

    Attributes:
        uuids: Of the devices.
    """

    def __init__(self, folder: Path, num_gpus: int) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(NVIDIA_SMI.format(folder=folder))
        program.chmod(0o755)
        self.uuids = [f"GPU-{uuid.uuid4()}" for _ in range(num_gpus)]
        self.used = [450] * num_gpus
        self.answer("gpus", "".join(f"{i}, {u}, {CARD}\n" for i, u in enumerate(self.uuids)))
        self.answer("apps", "")
        self.answer("code", "0")
        self.answer("mig", "Disabled")
        self.use(0, 450)

    def answer(self, name: str, text: str) -> None:
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / name)  # at once

    def use(self, index: int, mib: int) -> None:
        """Have someone use so much of a device."""
        self.used[index] = mib
        rows = zip(self.uuids, self.used, strict=True)
        self.answer("memory", "".join(f"{u}, {n}, {81_000 - n}, 81559\n" for u, n in rows))

    def lock_file(self, index: int) -> Path:
        path: Path = leases.lock_file(gpus.Device(str(index), self.uuids[index]))
        return path


MakeMachine = Callable[[int], Machine]
StartJob = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeMachine]:
    """Makes a machine, for this process and those that it starts."""
    for name in (gpus.VISIBLE, leases.ORDER, leases.LEASE, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.05)
    made: list[Machine] = []

    def make(num_gpus: int) -> Machine:
        made.append(Machine(tmp_path / "machine", num_gpus))
        monkeypatch.setenv("PATH", f"{made[0].folder}:{os.environ['PATH']}")
        return made[0]

    yield make
    for index in range(len(made[0].uuids) if made else 0):
        made[0].lock_file(index).unlink(missing_ok=True)


@pytest.fixture
def unknown(
    machine: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Two devices on a machine without nvidia-smi, by numbers that no other test has."""
    names = [str(random.randrange(10**6, 10**9)) for _ in range(2)]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(gpus.VISIBLE, ",".join(names))
    yield names
    for name in names:
        leases.lock_file(gpus.Device(name, name)).unlink(missing_ok=True)


JOB = """
    import logging, os, sys
    from video_pipeline.gpu import leases
    leases.LOOK_SECONDS = 0.05
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    with leases.lease(int(sys.argv[1])) as devices:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(d.name for d in devices)
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        print("has", *(d.uuid for d in devices), flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[StartJob]:
    """Starts a job that holds so many devices until its input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int = 1, code: str = JOB, **environment: str) -> subprocess.Popen[str]:
        script = tmp_path / f"job{len(started)}.py"
        script.write_text(textwrap.dedent(code))
        started.append(
            subprocess.Popen(
                [sys.executable, str(script), str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(SCRIPTS), **environment},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout)):
            stream.close()


def line(process: subprocess.Popen[str], start: str) -> str:
    """The next line that begins so."""
    for text in process.stdout or ():
        if text.startswith(start):
            return text
    raise AssertionError(f"no line begins with {start!r}")


def devices_of(process: subprocess.Popen[str]) -> list[str]:
    return line(process, "has ").split()[1:]


# --- one device, one job ------------------------------------------------------------------------


def test_eight_jobs_have_eight_devices_whatever_order_they_end_in(
    machine: MakeMachine, job: StartJob
) -> None:
    """As under --resources gpu=8: when a job ends, another starts."""
    uuids = set(machine(8).uuids)
    running = [job() for _ in range(8)]
    held = {process: devices_of(process)[0] for process in running}
    assert set(held.values()) == uuids
    for count in (1, 3, 4):
        for process in random.sample(running, count):
            assert process.stdin is not None
            random.choice([process.kill, process.stdin.close])()
            process.wait()
            running.remove(process)
            del held[process]
        running += (starting := [job() for _ in range(count)])
        held.update((process, devices_of(process)[0]) for process in starting)
        assert set(held.values()) == uuids


def test_all_or_none(machine: MakeMachine, job: StartJob) -> None:
    """A job that needs both devices does not sit on one of them."""
    machine(2)
    one = job()
    (first,) = devices_of(one)
    both = job(2)
    said = line(both, "waiting for 2 GPU(s): ")
    assert first in said
    assert f"process {one.pid}" in said
    another = job()
    assert devices_of(another) != [first]
    one.kill()
    another.kill()
    assert len(devices_of(both)) == 2


def test_one_device_by_three_names(machine: MakeMachine, job: StartJob) -> None:
    """Wherever TMPDIR is."""
    there = machine(2)
    path = there.lock_file(1)
    names = ["1", there.uuids[1], there.uuids[1][:10]]
    jobs = {
        process.pid: process
        for process in [job(CUDA_VISIBLE_DEVICES=n, TMPDIR=f"/proc/{n}") for n in names]
    }
    while jobs:
        wait_until(lambda: len(lock_holders(path)) == 1, "one has it")
        (first,) = lock_holders(path)
        others = [process for pid, process in jobs.items() if pid != first]
        if len(others) == 2:
            assert all(line(other, "waiting for 1 GPU(s): GPU ") for other in others)
        process = jobs.pop(first)
        assert devices_of(process) == [there.uuids[1]]
        process.kill()
        process.wait()


def test_the_environment_is_put_back(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "1,0")
    there = machine(2)
    with leases.lease(1):
        assert os.environ[gpus.VISIBLE] == "1"
        assert lock_holders(there.lock_file(1)) == {os.getpid()}
    with pytest.raises(KeyError), leases.lease(2):
        raise KeyError
    assert os.environ[gpus.VISIBLE] == "1,0"
    assert leases.ORDER not in os.environ
    assert leases.LEASE not in os.environ
    assert lock_holders(there.lock_file(0)) == set()
    assert lock_holders(there.lock_file(1)) == set()
    monkeypatch.delenv(gpus.VISIBLE)
    with leases.lease(1):
        assert os.environ[gpus.VISIBLE] == "0"
    assert gpus.VISIBLE not in os.environ


# --- an engine without its job ------------------------------------------------------------------

# A job with a process of an engine and one that decodes; both outlive their parent if they can.
ENGINE_JOB = """
    import logging, multiprocessing, os, sys, time
    from video_pipeline.gpu import leases
    from video_pipeline.common.processes import MARK, job_processes

    class Worker: pass
    class GpuWorker(Worker):
        def __init__(self, *, rank): assert rank == 0

    def engine(pipe):
        GpuWorker.__bases__ += (leases.LeaseHolder,)  # as vLLM does it
        GpuWorker(rank=0)
        pipe.send(os.getpid())
        time.sleep(600)

    def decode(pipe):
        pipe.send(os.getpid())
        time.sleep(600)

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        with leases.lease(int(sys.argv[1])) as devices, job_processes():
            pids = []
            for target in (engine, decode):
                ours, theirs = context.Pipe()
                context.Process(target=target, args=(theirs,)).start()
                pids.append(ours.recv())
            print("has", os.environ[MARK], *pids, flush=True)
            sys.stdin.read()
"""


def test_an_engine_keeps_the_lease_of_its_killed_job(machine: MakeMachine, job: StartJob) -> None:
    """The job and its watch process are killed; the decode process has no part in the lease."""
    there = machine(2)
    parent = job(2, ENGINE_JOB)
    mark, engine, decode = devices_of(parent)
    watch = next(
        child for child in psutil.Process(parent.pid).children() if MARK not in child.environ()
    )
    for index in (0, 1):
        assert lock_holders(there.lock_file(index)) == {parent.pid, int(engine)}
    psutil.Process(parent.pid).suspend()  # or it would start another watch process
    clean_up = watch.cmdline()
    watch.kill()
    parent.kill()
    parent.wait()
    for index in (0, 1):
        assert lock_holders(there.lock_file(index)) == {int(engine)}
    waiting = job()
    said = line(waiting, "waiting for 1 GPU(s): ")
    assert f"process {parent.pid}, which is gone, but its engine is not" in said
    assert int(decode) in marked_processes(mark)
    psutil.Process(int(engine)).kill()
    assert len(devices_of(waiting)) == 1
    assert int(decode) in marked_processes(mark)
    subprocess.run(clean_up, stdin=subprocess.DEVNULL, check=True)


def test_a_job_that_ends_frees_its_devices_after_its_engine(
    machine: MakeMachine, job: StartJob
) -> None:
    there = machine(1)
    parent = job(1, ENGINE_JOB)
    _, engine, _ = devices_of(parent)
    assert lock_holders(there.lock_file(0)) == {parent.pid, int(engine)}
    waiting = job()
    line(waiting, "waiting for 1 GPU(s): ")
    parent.kill()
    assert devices_of(waiting) == there.uuids
    wait_until(lambda: not psutil.pid_exists(int(engine)), "the engine has ended")


def test_an_engine_that_comes_too_late_has_no_lease(
    machine: MakeMachine, job: StartJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job was killed while it started, and another has the device."""
    machine(1)
    with leases.lease(1):
        late = os.environ[leases.LEASE]
    assert devices_of(job())
    monkeypatch.setenv(leases.LEASE, late)
    with pytest.raises(RuntimeError, match="is gone, and its GPU lease too"):
        leases.hold_lease()


# --- devices in use -----------------------------------------------------------------------------


def test_a_busy_device_is_passed_over(
    machine: MakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    there = machine(2)
    there.use(0, 30_000)
    there.answer("apps", f"{there.uuids[0]}, 4711, 29500\n{there.uuids[1]}, 12, 100\n")
    with caplog.at_level(logging.INFO), leases.lease(1) as (device,):
        assert device.name == "1"
    assert (
        f"passed over: GPU 0 ({there.uuids[0]}), in use by others: 30000 of 81559 MiB, "
        "process 4711 (29500 MiB)\n"
    ) in caplog.text


def test_busy_devices_are_waited_for(machine: MakeMachine, job: StartJob) -> None:
    there = machine(2)
    for index in (0, 1):
        there.use(index, 70_000)
    waiting = job()
    said = line(waiting, "waiting for 1 GPU(s): ")
    assert all(f"{name}), in use by others: 70000" in said for name in there.uuids)
    wait_until(lambda: not lock_holders(there.lock_file(0)), "it holds none while it waits")
    there.use(1, 450)
    assert devices_of(waiting) == [there.uuids[1]]


def test_a_job_that_waits_for_its_turn_says_for_whom(
    machine: MakeMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever has it may hang, say in nvidia-smi."""
    monkeypatch.setattr(leases, "FOLDER", tmp_path)
    machine(1)
    got = []

    def second() -> None:
        with leases.lease(1) as held:
            got.extend(held)

    thread = threading.Thread(target=second)
    with leases._turn():
        thread.start()
        wait_until(lambda: "waiting for the turn" in caplog.text, "it says for whom it waits")
        assert f"process {os.getpid()} has" in caplog.text
        assert str(tmp_path / "video-pipeline.gpu.lock") in caplog.text
        assert got == []
    thread.join()
    assert len(got) == 1


def test_a_little_use_does_not_matter_where_no_device_is_idle(machine: MakeMachine) -> None:
    """vLLM starts there."""
    there = machine(2)
    there.use(0, 3_000)
    with leases.lease(1) as (device,):
        assert device.name == "1"
    with leases.lease(2) as two:
        assert [device.name for device in two] == ["1", "0"]
    there.use(0, 30_000)
    with leases.lease(2, memory_share=0.5) as two:
        assert [device.name for device in two] == ["1", "0"]


def test_memory_that_is_not_known(machine: MakeMachine) -> None:
    there = machine(1)
    for unknown in ("[N/A]", "[Insufficient Permissions]"):
        there.answer("memory", f"{there.uuids[0]}, {unknown}, {unknown}, {unknown}\n")
        with leases.lease(1) as (device,):
            assert device.uuid == there.uuids[0]


@pytest.mark.parametrize("visible", [None, "0"])
def test_a_slice_under_the_name_of_its_gpu(
    machine: MakeMachine, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    """In a pod of Kubernetes that has a slice, nvidia-smi lists the whole GPU, and CUDA takes the
    slice for it. Root also sees the memory of the GPU, which is that of all slices."""
    there = machine(1)
    there.answer("mig", "Enabled")
    there.use(0, 70_000)
    if visible is not None:
        monkeypatch.setenv(gpus.VISIBLE, visible)
    with leases.lease(1) as held:
        assert [device.uuid for device in held] == there.uuids
        assert gpus.card_of(held) is None


# --- which devices there are --------------------------------------------------------------------


def test_all_that_nvidia_smi_lists(machine: MakeMachine) -> None:
    there = machine(3)
    assert [device.name for device in gpus.devices()] == ["0", "1", "2"]
    assert [device.uuid for device in gpus.devices()] == there.uuids


def test_names_of_devices(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine(3)
    monkeypatch.setenv(gpus.VISIBLE, f" {there.uuids[2]} ,MIG-7,0,{there.uuids[0]},")
    assert [d.uuid for d in gpus.devices()] == [there.uuids[2], "MIG-7", there.uuids[0]]


def test_vllm_gets_whole_uuids(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA takes the start of a UUID, but NVML, which vLLM asks, does not."""
    there = machine(2)
    monkeypatch.setenv(gpus.VISIBLE, there.uuids[1][:10])
    with leases.lease(1):
        assert os.environ[gpus.VISIBLE] == there.uuids[1]


@pytest.mark.parametrize(
    ("visible", "names"),
    [("", []), ("-1", []), ("NoDevFiles", []), ("1,-1,0", ["1"])],
)
def test_hidden_devices(
    machine: MakeMachine, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    """As CUDA itself reads the list."""
    machine(2)
    monkeypatch.setenv(gpus.VISIBLE, visible)
    assert [device.name for device in gpus.devices()] == names


@pytest.mark.parametrize("visible", ["2", "GPU-a", "GPU-none"])
def test_a_device_that_is_not_there(
    machine: MakeMachine, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    """Nor is one whose name two devices begin with."""
    machine(2).answer("gpus", f"0, GPU-a1, {CARD}\n1, GPU-a2, {CARD}\n")
    monkeypatch.setenv(gpus.VISIBLE, f"0,{visible}")
    with pytest.raises(UserError, match=rf"no GPU {visible}, but 0 \(GPU-a1\), 1 \(GPU-a2\)"):
        gpus.devices()


def test_the_card_of_a_lease(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine(2)
    with leases.lease(2) as held:
        assert gpus.card_of(held) == CARD
    first, second = there.uuids
    there.answer("gpus", f"0, {first}, {CARD}\n1, {second}, NVIDIA L4\n")
    with leases.lease(1) as held:
        assert gpus.card_of(held) == CARD
    with leases.lease(2) as held:
        assert gpus.card_of(held) is None
    # nvidia-smi does not list slices, and a slice is not the card
    monkeypatch.setenv(gpus.VISIBLE, f"MIG-{first}")
    assert gpus.card_of(gpus.devices()) is None
    assert gpus.card_of([]) is None


def test_too_few_devices(machine: MakeMachine) -> None:
    machine(2)
    with pytest.raises(UserError, match=r"needs 3 GPUs.*only 2: 0 \(GPU-"), leases.lease(3):
        pass


def test_without_a_gpu_nothing_is_leased(
    machine: MakeMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    with leases.lease(4) as devices:
        assert devices == []
        assert gpus.VISIBLE not in os.environ
        leases.hold_lease()


@pytest.mark.parametrize(("code", "number"), [(6, 0), (9, 0), (12, 0), (14, 2)])
def test_what_nvidia_smi_says_of_its_driver(machine: MakeMachine, code: int, number: int) -> None:
    there = machine(2)
    there.answer("gpus", f"{(there.folder / 'gpus').read_text()}WARNING: infoROM is corrupted\n")
    there.answer("code", str(code))
    assert len(gpus.devices()) == number


def test_a_broken_device(machine: MakeMachine) -> None:
    there = machine(2)
    there.answer("gpus", "Unable to determine the device handle: GPU is lost\n")
    there.answer("code", "15")
    with pytest.raises(EnvironmentFault, match=r"exit code 15: .* GPU is lost"):
        gpus.devices()


def test_an_nvidia_smi_that_hangs(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine(1)
    there.answer("hang", "")
    monkeypatch.setattr(gpus, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(EnvironmentFault, match=r"has given no answer for 0.2 s"), leases.lease(1):
        pass


def test_without_nvidia_smi_names_are_taken_as_they_are(unknown: list[str], job: StartJob) -> None:
    assert devices_of(job()) == [unknown[0]]
    with leases.lease(1) as (second,):
        assert second.name == unknown[1]


def test_numbers_mean_nothing_in_a_job_of_a_cluster(
    unknown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of one machine may both call their device 0: the scheduler has chosen."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with leases.lease(1) as devices:
        assert devices == []
        assert os.environ[gpus.VISIBLE] == ",".join(unknown)


def test_a_job_of_a_cluster_may_run_snakemake(
    machine: MakeMachine, job: StartJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    there = machine(2)
    assert [*devices_of(job()), *devices_of(job())] == there.uuids


# --- lock files ---------------------------------------------------------------------------------


def test_every_user_may_lock_a_device(machine: MakeMachine) -> None:
    there = machine(1)
    before = os.umask(0o077)
    try:
        with leases.lease(1):
            assert there.lock_file(0).stat().st_mode & 0o777 == 0o666
            told = json.loads(there.lock_file(0).read_text())
            assert told["pid"] == os.getpid()
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to", "mkdir", "fifo"])
def test_a_lock_file_that_is_something_else(machine: MakeMachine, kind: str) -> None:
    there = machine(1)
    precious = leases.FOLDER / f"precious.{there.uuids[0]}"
    precious.write_text("mine")
    path = there.lock_file(0)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "mkdir":
        path.mkdir()
    else:
        getattr(path, kind)(precious)
    try:
        with pytest.raises(UserError, match=f"cannot use the lock file .*{path}"), leases.lease(1):
            pass
    finally:
        path.rmdir() if kind == "mkdir" else path.unlink()
        text = precious.read_text()
        precious.unlink()
    assert text == "mine"


# --- jobs and their machine ---------------------------------------------------------------------


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM as it is installed for GPUs."""
    monkeypatch.setattr(gpus, "installed_build", lambda: "0.32.0")


def test_what_a_job_needs(monkeypatch: pytest.MonkeyPatch, gpu_build: None) -> None:
    two = {"vllm": {"tensor_parallel_size": 2}}
    assert gpus.gpus_needed(load_config(two)) == 2
    assert gpus.gpus_needed(load_config({**two, "run": {"engine": "simulated"}})) == 0
    monkeypatch.undo()
    assert gpus.gpus_needed(load_config(two)) == 0, "the tests' vLLM is built for the CPU"


def test_infer_leases_what_its_config_says(
    machine: MakeMachine, gpu_build: None, splitting: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = machine(1)
    splitting.run.configure(
        run={"engine": "vllm"}, vllm={"tensor_parallel_size": 2, "revision": "0" * 40}
    )
    splitting(samples(1), num_shards=1)
    with pytest.raises(UserError, match="needs 2 GPUs"):
        infer(splitting.run.config, splitting.layout, 0, 1)
    there.use(0, 30_000)
    tight = load_config({"vllm": {"gpu_memory_utilization": 0.5}})
    with leases.lease_for(tight) as (device,):
        assert device.name == "0"


@pytest.mark.parametrize(("share", "used"), [("0.5", 30_000), (None, 2_000)])
def test_a_share_of_memory_may_be_a_text_or_null(
    machine: MakeMachine, gpu_build: None, share: str | None, used: int
) -> None:
    """As vLLM takes them. It matters on a GPU that is in use."""
    machine(1).use(0, used)
    with leases.lease_for(load_config({"vllm": {"gpu_memory_utilization": share}})) as (device,):
        assert device.name == "0"


@pytest.mark.parametrize(
    ("num_shards", "limit", "sizes", "message"),
    [
        (8, 4, {}, None),
        (2, 8, {}, None),
        (8, 8, {}, "gpu=8, for 8 jobs at a time with 1 GPU.* only 4 here: 0, 1, 2, 3"),
        (4, 6, {"tensor_parallel_size": 2}, "gpu=6, for 3 jobs at a time with 2 GPU"),
        (1, None, {"tensor_parallel_size": 8}, "needs 8 GPUs.* only 4"),
        (1, 8, {"tensor_parallel_size": 8}, "needs 8 GPUs.* only 4"),
    ],
)
def test_the_limit_is_compared_with_the_machine(
    machine: MakeMachine,
    gpu_build: None,
    num_shards: int,
    limit: int | None,
    sizes: dict[str, int],
    message: str | None,
) -> None:
    machine(4)
    config = load_config({"vllm": sizes})
    if message is None:
        gpus.check_machine(config, num_shards, limit)
    else:
        with pytest.raises(UserError, match=message):
            gpus.check_machine(config, num_shards, limit)


def test_without_a_limit_some_jobs_wait(
    machine: MakeMachine, gpu_build: None, caplog: pytest.LogCaptureFixture
) -> None:
    machine(4)
    gpus.check_machine(load_config({}), 4, None)
    assert caplog.text == ""
    gpus.check_machine(load_config({}), 5, None)
    assert "5 inference jobs start at once, but with 4 GPU(s) here" in caplog.text
    assert "--resources gpu=4 starts only as many as can run" in caplog.text

"""The decode processes: a sample that fails, dies or hangs costs only itself."""

from __future__ import annotations

import asyncio
import contextlib
import re

import psutil
import pytest
from helpers import samples
from video_pipeline.common.files import EMPTY, Seal
from video_pipeline.config import load_config
from video_pipeline.config.vision import NVDEC_PROCESSES
from video_pipeline.decode import process
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import WorkerSpec
from video_pipeline.engine.simulated import SimulatedPreparer
from video_pipeline.errors import EnvironmentFault, TaskError, UserError
from video_pipeline.run.layout import Layout
from video_pipeline.split.split import split

pytestmark = pytest.mark.slow


@pytest.fixture
def prepare(here, tmp_path):
    """Splits samples into one chunk and prepares all of them at once; returns what came of each."""

    def run(entries: list[dict], workers: int = 1, timeout: float = 60.0) -> list:
        here.write_samples(entries)
        here.configure(data={"num_shards": 1})
        config = load_config(here.folder / "my.yaml")
        layout = Layout.of(config, 1)
        split(config, layout)
        shared = tmp_path / "shared"
        shared.mkdir()
        chunk = layout.chunk(0)
        spec = WorkerSpec(
            config,
            chunk,
            Seal.of(chunk),
            "simulated",
            SimulatedPreparer(),
            shared,
            decoder=config.vision.decoder,
        )
        pool = DecodePool(ForkServer(), spec, workers, timeout)

        async def all_samples():
            jobs = [pool.prepare(position, [""]) for position in range(len(entries))]
            return await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 600)

        try:
            results = asyncio.run(all_samples())
        finally:
            pool.stop()
        assert list(shared.iterdir()) == []
        return results

    return run


@pytest.fixture
def pool(here, tmp_path):
    """One decode process; the third sample hangs."""
    here.write_samples(doing(None, None, "hang"))
    here.configure(data={"num_shards": 1})
    config = load_config(here.folder / "my.yaml")
    layout = Layout.of(config, 1)
    split(config, layout)
    chunk = layout.chunk(0)
    spec = WorkerSpec(config, chunk, Seal.of(chunk), "simulated", SimulatedPreparer(), tmp_path)
    pool = DecodePool(ForkServer(), spec, 1, 600.0)
    yield pool
    pool.stop()


def outcome(result) -> str:
    """``ok``, the stage of a sample's error, or the name of another exception."""
    if isinstance(result, SampleError):
        return result.stage
    return type(result).__name__ if isinstance(result, BaseException) else "ok"


def doing(*behaviours: str | None) -> list[dict]:
    return [{**samples(len(behaviours))[i], "do": do} for i, do in enumerate(behaviours)]


def test_bad_samples_cost_only_themselves(prepare):
    results = prepare(doing(None, "raise", "exit", "die", None, "surrogate", "silent", None))
    stages = ["ok", "read", "read", "crash", "ok", "read", "read", "ok"]
    assert [outcome(result) for result in results] == stages
    assert results[1].as_record() == {
        "stage": "read",
        "type": "ValueError",
        "message": "no such clip",
    }
    assert "exit code 7" in str(results[3])
    assert "raise ValueError" in str(results[6])  # without a text of its own: the line
    assert "plugin.py, line" in str(results[6])
    assert results[0].requests[""]["prompt"] == "x" * 40
    assert results[0].num_bytes > 0
    assert results[0].seconds >= 0


def test_a_slip_in_a_dataset_names_its_line(here, prepare):
    """Which a text that is meant for people does not need."""
    here.edit_plugin('sample.get("do")', '{"a": "raise"}[sample["do"]]')
    entries = [{**sample, "do": do} for sample, do in zip(samples(2), "ab", strict=True)]
    meant, slip = prepare(entries)
    assert str(meant) == "no such clip"
    assert re.fullmatch(r"'b' \(.*plugin.py, line \d+\)", str(slip))


def test_however_a_process_dies_it_is_replaced(prepare):
    ways = {
        "vanish": "exit code 0",
        "segfault": "SIGSEGV",
        "killed": "SIGKILL, perhaps by the kernel for lack of memory",
    }
    first, *results = prepare(doing(None, *(do for way in ways for do in (way, None))))
    assert outcome(first) == "ok"
    for said, died, after in zip(ways.values(), results[::2], results[1::2], strict=True):
        assert (outcome(died), outcome(after)) == ("crash", "ok")
        assert said in str(died)


def test_memory_is_limited(prepare):
    results = prepare(doing("devour", None))
    assert [outcome(result) for result in results] == ["read", "ok"]
    assert results[0].type == "MemoryError"
    assert "data.worker_memory_gb" in str(results[0])


def decode_processes() -> list[psutil.Process]:
    """The children of this process's children, the fork servers."""
    servers = psutil.Process().children()
    return [process for server in servers for process in server.children()]


def test_a_process_that_is_killed_between_two_samples_costs_nothing(pool):
    async def main():
        await pool.prepare(0, [""])
        (process,) = decode_processes()
        process.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)
        await pool.prepare(1, [""])
        (other,) = decode_processes()
        assert other.pid != process.pid

    asyncio.run(main())


def test_processes_are_renewed(here, prepare, monkeypatch):
    monkeypatch.setattr(process, "SAMPLES_PER_PROCESS", 2)
    here.edit_plugin('"prompt": "x" * 40', '"prompt": str(os.getpid())')
    pids = [result.requests[""]["prompt"] for result in prepare(samples(5))]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


@pytest.mark.as_users
def test_an_exception_of_ours_is_not_a_samples_fault(here, prepare):
    here.edit_plugin('"prompt": "x" * 40', '"prompt": open(__file__)')
    (result,) = prepare(samples(1))
    assert isinstance(result, RuntimeError)
    assert "cannot pickle" in str(result)
    assert "Traceback" in str(result)


def test_a_sample_that_hangs_is_ended(prepare):
    # Long enough for the other one, whose process may be slow on a busy machine.
    results = prepare(doing("hang", None), workers=2, timeout=15.0)
    assert [outcome(r) for r in results] == ["timeout", "ok"]
    assert "15 s" in str(results[0])


def test_a_dataset_that_breaks_its_contract(prepare):
    broken = [{"__key": "another"}, {"llm_input": "text"}, {"llm_input": None}]
    entries = [{**sample, "returns": broken[i]} for i, sample in enumerate(samples(3))]
    results = prepare(entries)
    assert [type(result) for result in results] == [TaskError] * 3
    assert all("Plain" in str(result) for result in results)
    assert "'0'" in str(results[0])
    assert "'another'" in str(results[0])
    assert "llm_input" in str(results[1])
    assert "llm_input" in str(results[2])


@pytest.mark.parametrize("media", ['["a.mp4"]', '{"video": [("frames", None)]}'])
def test_media_that_are_none_name_dataset_and_sample(here, prepare, media):
    here.edit_plugin('"multi_modal_data": {}', f'"multi_modal_data": {media}')
    (result,) = prepare(samples(1))
    assert isinstance(result, TaskError)
    assert str(result).startswith("dataset Plain: llm_input of sample '0': AttributeError: ")


def test_a_dataset_that_returns_nothing(here, prepare):
    here.edit_plugin("return {**item", "x = {**item")
    (result,) = prepare(samples(1))
    assert isinstance(result, TaskError)
    assert "returned None" in str(result)


INIT = """
class BadThing(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


def _init(self, **kwargs):
    BaseDataset.__init__(self, **kwargs)
    %s  # the line


Plain.__init__ = _init
"""


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("raise ValueError('no processor')", "no processor"),
        ("raise BadThing('no processor', 'there')", "no processor in there"),
        ("sys.exit('no processor')", "no processor"),
    ],
)
def test_a_dataset_that_cannot_start_names_file_and_line(here, prepare, statement, said):
    """It is the user's code: the first sample reports it, with the place, and the run stops."""
    text = (here.folder / "plugin.py").read_text() + INIT % statement
    here.write_plugin(text)
    line = 1 + text[: text.index("# the line")].count("\n")
    (result,) = prepare(samples(1))
    assert isinstance(result, UserError)
    assert said in str(result)
    assert f"plugin.py, line {line}" in str(result)


def test_a_dataset_that_dies_at_its_start_is_an_error(here, prepare):
    here.write_plugin((here.folder / "plugin.py").read_text() + INIT % "os._exit(9)")
    (result,) = prepare(samples(1))
    assert isinstance(result, UserError)
    assert "died" in str(result)


def test_processes_that_are_killed_at_their_start_are_the_machines_fault(here, prepare):
    """As the kernel does it where memory is short."""
    killed = INIT % "os.kill(os.getpid(), signal.SIGKILL)"
    here.write_plugin((here.folder / "plugin.py").read_text() + killed)
    (result,) = prepare(samples(1))
    assert isinstance(result, EnvironmentFault)
    assert "too little memory" in str(result)


@pytest.mark.as_users
def test_large_samples_arrive_whole(here, prepare):
    here.edit_plugin("import os\n", "import os\nimport torch\n")
    here.edit_plugin(
        '"prompt": "x" * 40',
        '"frames": torch.full((9, 99), i), "threads": torch.get_num_threads()',
    )
    results = prepare(samples(12), workers=2)
    for number, result in enumerate(results):
        assert result.requests[""]["frames"].shape == (9, 99)
        assert set(result.requests[""]["frames"].flatten().tolist()) == {number}
        assert result.num_bytes > 9 * 99 * 8
        assert result.requests[""]["threads"] == 1


def test_stopping_ends_the_processes(pool):
    async def one_and_stop():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(pool.prepare(2, [""]), 0.2)

    asyncio.run(one_and_stop())
    pool.stop()
    assert decode_processes() == []


@pytest.mark.parametrize(
    ("decoder", "decoders"),
    [
        ("cpu", ["cpu"] * 6),
        ("nvdec", ["nvdec"] * 6),
        ("auto", ["auto"] * NVDEC_PROCESSES + ["cpu"] * 2),
    ],
)
def test_which_processes_use_the_decoder_of_the_gpu(tmp_path, decoder, decoders):
    spec = WorkerSpec(
        load_config({}), tmp_path, EMPTY, "m", SimulatedPreparer(), tmp_path, decoder=decoder
    )
    assert [spec.decoder_of(number) for number in range(6)] == decoders


@pytest.mark.as_users
def test_nvdec_without_a_card_stops_the_run(here, prepare):
    here.configure(vision={"decoder": "nvdec"})
    (result,) = prepare(doing(None))
    assert isinstance(result, UserError)
    assert "vision.decoder: nvdec cannot be used here: torch" in str(result)


@pytest.mark.as_users
def test_auto_without_a_card_decodes_on_the_cpu(here, prepare):
    here.configure(vision={"decoder": "auto"})
    entries = doing(*[None] * (NVDEC_PROCESSES + 1))
    results = prepare(entries, workers=len(entries))
    assert [outcome(result) for result in results] == ["ok"] * len(entries)


def test_processes_that_use_the_gpu_come_from_a_server_of_their_own(tmp_path):
    """In which nothing has touched CUDA."""
    server = ForkServer()
    spec = WorkerSpec(
        load_config({}), tmp_path, EMPTY, "m", SimulatedPreparer(), tmp_path, decoder="auto"
    )
    pool = DecodePool(server, spec, NVDEC_PROCESSES + 2, 60.0)
    shared = [process._server is server for process in pool._processes]
    assert shared == [False] * NVDEC_PROCESSES + [True] * 2
    pool.stop()

"""A fork server and decode processes as a job has them, without the engine.

Run by :mod:`benchmarks.start` as a process of its own.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.jobs import hand_back, settings_of_this_process

FURTHER, SAMPLES, MANY = 5, 4, 15


def main() -> None:
    from video_pipeline.config import load_config
    from video_pipeline.decode.fork_server import ForkServer
    from video_pipeline.decode.preparing import WorkerSpec
    from video_pipeline.decode.process import DecodeProcess
    from video_pipeline.engine import create_engine, modules_of
    from video_pipeline.run.chunks import Chunk
    from video_pipeline.run.layout import Layout
    from video_pipeline.run.manifest import Manifest

    path = Path(settings_of_this_process()["config"])
    config = load_config(path)
    layout = Layout.of(config, 1)
    with contextlib.chdir(path.parent):  # where the job's relative paths start
        chunk = Manifest.of(config, layout).open_chunk(layout, 0)
        chunk = Chunk(chunk.path.absolute(), chunk.seal)
    begun = time.monotonic()
    server = ForkServer(modules_of(config))
    engine = create_engine(config)
    configured = time.monotonic() - begun
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        spec = WorkerSpec(
            config=config,
            chunk=chunk.path,
            seal=chunk.seal,
            model=engine.dataset_model,
            preparer=engine.preparer(),
            folder=Path(folder),
        )
        server.load(spec)
        processes = [DecodeProcess(server, spec, number, 300.0) for number in range(MANY)]
        try:
            first, *others = processes
            first.running()
            up = time.monotonic() - begun
            (root,) = (one for one in psutil.Process().children() if _is_server(one))
            times = root.cpu_times()
            server_mb = root.memory_full_info().uss / 1e6
            _prepare(first, 0)
            rows = [_further(process, root) for process in others[:FURTHER]]
            for process in others[FURTHER:]:
                process.running()
                _prepare(process, 0)
            family = [root, *root.children()]
            everything = sum(one.memory_full_info().pss for one in family) / 1e6
        finally:
            for process in processes:
                process.stopped = True
            server.stop()
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    hand_back(
        {
            **medians,
            "configured": configured,
            "server_seconds": up,
            "server_cpu": times.user + times.system,
            "server_mb": server_mb,
            "all_mb": everything,
        }
    )


def _is_server(one: psutil.Process) -> bool:
    return "fork_server" in " ".join(one.cmdline())


def _prepare(process: Any, position: int) -> float:
    begun = time.monotonic()
    process.ask(position, frozenset({""}))
    return time.monotonic() - begun


def _further(process: Any, server: psutil.Process) -> dict[str, float]:
    """How fast one more process is ready, and what its samples take."""
    before = {one.pid for one in server.children()}
    begun = time.monotonic()
    process.running()
    ready = time.monotonic() - begun
    first, again = _prepare(process, 0), _prepare(process, 0)
    for position in range(1, SAMPLES - 1):
        _prepare(process, position)
    (own,) = (one for one in server.children() if one.pid not in before)
    return {
        "ready": ready,
        "first_seconds": first,
        "again_seconds": again,
        "first": first / again,
        "private_mb": own.memory_full_info().uss / 1e6,
    }


if __name__ == "__main__":
    main()

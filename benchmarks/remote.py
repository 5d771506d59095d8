"""Videos that lie far away, against the same ones on the local disk.

The real reader decodes them, and a simulated engine answers at once, so decoding is the limit. The
server runs on the same machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import slow_server
from benchmarks.clips import write_natural_clip
from benchmarks.jobs import PLUGINS, Job
from benchmarks.report import Figure, Section

CLIPS, REPEATS = 4, 10
BAR = 0.9


def run(work: Path) -> Section:
    """Measure local videos, and remote ones with the fetcher and without."""
    cores = len(os.sched_getaffinity(0))
    clips = [
        write_natural_clip(work / "clips" / f"360p-10s-{i}.mp4", 640, 360, 10, seed=10 + i)
        for i in range(CLIPS)
    ]
    names = [(number, clip.name) for number in range(REPEATS) for clip in clips]
    megabytes = sum(clip.stat().st_size for clip in clips) / CLIPS / 1e6
    with _serving(work / "clips") as port:
        places = {
            "http": f"http://127.0.0.1:{port}",
            "s3": "s3://bucket",
        }
        rates = {"local": _rate(work, [str(work / "clips" / name) for _, name in names], cores)}
        for scheme, place in places.items():
            paths = [f"{place}/{number}/{name}" for number, name in names]
            rates[f"{scheme}, fetched ahead"] = _rate(work, paths, cores)
            rates[f"{scheme}, by decode processes"] = _rate(work, paths, cores, "no_prefetch.py")
    shares = {name: rate / rates["local"] for name, rate in rates.items()}
    figures = []
    for scheme in places:
        ahead, before = (
            shares[f"{scheme}, {way}"] for way in ("fetched ahead", "by decode processes")
        )
        figures += [
            Figure(
                f"remote videos ({scheme}) / the same on the local disk, videos a second",
                f"at least {BAR}",
                f"{ahead:.2f}",
                ahead >= BAR,
            ),
            Figure.for_comparison(
                f"the same ({scheme}), each downloaded by its decode process", f"{before:.2f}"
            ),
        ]
    how = (
        f"{len(names)} clips (360p, 10 s, 2 fps, {megabytes:.1f} MB on average; {CLIPS} files "
        f"under different addresses), {cores} decode processes, the simulated engine. A server on "
        f"loopback opens a connection in {1000 * slow_server.LATENCY_SECONDS:g} ms, begins each "
        f"answer {1000 * slow_server.LATENCY_SECONDS:g} ms after its request, and sends "
        f"{slow_server.BYTES_A_SECOND / 1e6:g} MB/s on a connection. Its CPU is that of the same "
        "cores. From the first request to the last answer."
    )
    details = [["", "videos/s", "share"]]
    details += [[name, f"{rate:.2f}", f"{shares[name]:.2f}"] for name, rate in rates.items()]
    return Section("Videos far away", figures, how, _LIMITS, details)


def _rate(work: Path, paths: list[str], cores: int, *plugins: str) -> float:
    settings: dict[str, Any] = {
        "data": {"num_workers": cores, "allow_private_addresses": True, "balance": "count"},
        "vision": {"fps": 2.0, "max_pixels": 256 * 28 * 28},
        "run": {"engine": "simulated", "plugins": [str(PLUGINS / name) for name in plugins]},
    }
    samples = [{"id": str(number), "path": path} for number, path in enumerate(paths)]
    statistics = Job(work / "remote", samples, settings).infer(cores)
    return statistics["inferred"] / statistics["seconds"]


@contextmanager
def _serving(folder: Path) -> Iterator[int]:
    """The port of a server of ``folder``, to which the environment leads."""
    command = [sys.executable, "-m", "benchmarks.slow_server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
            AWS_ACCESS_KEY_ID="user",
            AWS_SECRET_ACCESS_KEY="secret",
            AWS_REGION="us-east-1",
        )
        try:
            yield port
        finally:
            server.kill()


_LIMITS = (
    "Decoding, as on the local disk. What is missing is the CPU of the fetcher and of the server, "
    "which share the cores with decoding here."
)

"""What the steps of :mod:`benchmarks.scale` are held against, each as a process of its own."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from benchmarks.jobs import hand_back, settings_of_this_process


def plain_loop(paths: list[str]) -> None:
    """Parse each line and write it back."""
    with open("out.jsonl", "wb", buffering=1 << 20) as output:
        for path in paths:
            with open(path, "rb", buffering=1 << 20) as stream:
                for line in stream:
                    output.write(orjson.dumps(orjson.loads(line)) + b"\n")
    Path("out.jsonl").unlink()


def read_journals(journal: str) -> None:
    """What split does first."""
    from video_pipeline.journal import read_index

    read_index(Path(journal))


def main() -> None:
    settings = settings_of_this_process()
    what = {"plain_loop": plain_loop, "read_journals": read_journals}[settings.pop("what")]
    begun, cpu = time.monotonic(), time.process_time()
    what(**settings)
    hand_back({"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu})


if __name__ == "__main__":
    main()

"""What the steps of :mod:`benchmarks.scale` are held against, each as a process of its own."""

from __future__ import annotations

import time
from hashlib import blake2b
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
    from video_pipeline.journal.index import read_index

    read_index(Path(journal))


def least_split(samples: str) -> None:
    """What resume cannot do without: parse each line, build what the task asks about it, hash that,
    and write the line into a chunk. No check, no weight, no balance, no journal."""
    from video_pipeline.tasks.describe import Describe

    task = Describe()
    with open(samples, "rb") as lines, open("out.jsonl", "wb", buffering=1 << 20) as output:
        for line in lines:
            sample = orjson.loads(line)
            asked = task.build_messages({**sample, "__video_uri": "/data/" + sample["path"]})
            request = blake2b(orjson.dumps(asked), digest_size=16).hexdigest().encode()
            output.write(b'[null,%b,"%b",%b]\n' % (orjson.dumps(sample["id"]), request, line[:-1]))
    Path("out.jsonl").unlink()


def least_publish(samples: str, paths: list[str]) -> None:
    """What a changed ``parse`` cannot do without: parse each answer and its sample, call the task's
    ``parse``, and write the record. No look-up, no check."""
    from video_pipeline.tasks.describe import Describe

    task = Describe()
    with open(samples, "rb") as lines, open("out.jsonl", "wb", buffering=1 << 20) as output:
        for path in paths:
            with open(path, "rb", buffering=1 << 20) as answers:
                next(answers)  # the head of the file
                for answer, line in zip(answers, lines, strict=False):
                    said, sample = orjson.loads(answer), orjson.loads(line)
                    fields = task.parse(said["output_text"], sample)
                    output.write(orjson.dumps({**said, "input": sample, **fields}) + b"\n")
    Path("out.jsonl").unlink()


WHATS = {each.__name__: each for each in (plain_loop, read_journals, least_split, least_publish)}


def main() -> None:
    settings = settings_of_this_process()
    what = WHATS[settings.pop("what")]
    begun, cpu = time.monotonic(), time.process_time()
    what(**settings)
    hand_back({"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu})


if __name__ == "__main__":
    main()

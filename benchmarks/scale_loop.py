"""Plain loops to compare the steps of :mod:`benchmarks.scale` with, each run in its own process."""

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
    """Read the journals, which split does first."""
    from video_pipeline.journal.index import read_index

    read_index(Path(journal))


def least_split(samples: str) -> None:
    """The least that a resume needs: parse each line, build the task's messages about it, hash
    them, and write the line into a chunk. No check, no weight, no balance, no journal."""
    from video_pipeline.tasks.describe import Describe

    task = Describe()
    with open(samples, "rb") as lines, open("out.jsonl", "wb", buffering=1 << 20) as output:
        for line in lines:
            sample = orjson.loads(line)
            messages = task.build_messages({**sample, "__video_uri": "/data/" + sample["path"]})
            request = blake2b(orjson.dumps(messages), digest_size=16).hexdigest().encode()
            output.write(b'[null,%b,"%b",%b]\n' % (orjson.dumps(sample["id"]), request, line[:-1]))
    Path("out.jsonl").unlink()


def least_publish(samples: str, paths: list[str]) -> None:
    """The least that a changed ``parse`` needs: parse each answer and its sample, call the task's
    ``parse``, and write the record. No look-up, no check."""
    from video_pipeline.tasks.describe import Describe

    task = Describe()
    with open(samples, "rb") as lines, open("out.jsonl", "wb", buffering=1 << 20) as output:
        for path in paths:
            with open(path, "rb", buffering=1 << 20) as answers:
                next(answers)  # the head of the file
                for answer_line, sample_line in zip(answers, lines, strict=False):
                    answer, sample = orjson.loads(answer_line), orjson.loads(sample_line)
                    fields = task.parse(answer["output_text"], sample)
                    output.write(orjson.dumps({**answer, "input": sample, **fields}) + b"\n")
    Path("out.jsonl").unlink()


LOOPS = {loop.__name__: loop for loop in (plain_loop, read_journals, least_split, least_publish)}


def main() -> None:
    settings = settings_of_this_process()
    loop = LOOPS[settings.pop("what")]
    begun, cpu = time.monotonic(), time.process_time()
    loop(**settings)
    hand_back({"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu})


if __name__ == "__main__":
    main()

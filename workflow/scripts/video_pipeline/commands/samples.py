"""Write the JSONL that an input stands for: a folder, a pattern, a list, a table.

video-pipeline samples SOURCE -o samples.jsonl [--probe]
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from video_pipeline.commands import options
from video_pipeline.common.files import replacing
from video_pipeline.common.printable import printable
from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config, load_config
from video_pipeline.errors import UserError
from video_pipeline.run.origin import check_files
from video_pipeline.samples.input import BadLines, task_sample
from video_pipeline.samples.sources import read_samples
from video_pipeline.video.access import Access
from video_pipeline.video.headers import HeaderReaders

BATCH = 256
"""Samples whose headers are read at once."""


def write_samples(config: Config, output: Path, *, with_headers: bool) -> int:
    """Write the samples of the input of ``config`` as a JSONL, and return their number.

    Each line has the fields of the input, ``id``, the path of the video (relative if it lies in the
    folder of ``output``, otherwise absolute) and ``size`` in bytes if it is known. With headers it
    also has ``duration`` (seconds), ``width``, ``height`` (as shown), ``fps`` and ``codec``.

    Raises :class:`UserError` if the input cannot be read or has bad lines.
    """
    bad, field = BadLines(), config.data.video_field
    failed, count, unread = 0, 0, ""
    with ExitStack() as stack:
        readers = None
        if with_headers:
            stack.enter_context(job_processes())
            cores = len(os.sched_getaffinity(0))
            readers = HeaderReaders(Access.of(config.data), cores, with_size=True)
            stack.callback(readers.close)
        columns = SpinnerColumn(), TextColumn("samples"), MofNCompleteColumn(), TimeElapsedColumn()
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task("", total=None)
        stream = stack.enter_context(replacing(output))
        samples = _samples(config, bad)
        while batch := list(islice(samples, BATCH)):
            headers = readers.read([uris[0] for _, uris in batch]) if readers else []
            for (raw, uris), header in zip(batch, headers, strict=False):
                if isinstance(header, str):
                    failed += 1
                    unread = unread or printable(f"{uris[0]}: {header}")
                else:
                    raw.update((k, v) for k, v in vars(header).items() if v is not None)
            for raw, uris in batch:
                described = _described(field, raw, uris, output.absolute().parent)
                stream.write(orjson.dumps(described, option=orjson.OPT_APPEND_NEWLINE))
            count += len(batch)
            progress.update(task, completed=count)
        bad.raise_any(config.data.source.name)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"{failed:,} of {count:,} headers could not be read; the first: {unread}")
    console.print(f"{output}: {count:,} samples")
    return count


def _samples(config: Config, bad: BadLines) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The input object of each sample, and the address of its video or of each of its images."""
    for sample in read_samples(config.data, bad):
        address = task_sample(sample.key, sample.raw, config)["__video_uri"]
        yield sample.raw, [address] if isinstance(address, str) else address


def _described(field: str, raw: dict[str, Any], uris: list[str], folder: Path) -> dict[str, Any]:
    """``raw`` with an id, the size of its file, and paths that start from ``folder``."""
    paths = [uri.removeprefix(f"{folder}/") for uri in uris]
    if not isinstance(raw[field], str):
        return {**raw, field: paths}
    sizes = {} if "size" in raw else _size(uris[0])
    ids = {} if "video_start" in raw or "video_end" in raw else {"id": raw[field]}
    return {**ids, **raw, field: paths[0], **sizes}


def _size(uri: str) -> dict[str, int]:
    try:
        return {"size": Path(uri).stat().st_size}
    except (OSError, ValueError):
        return {}


def main() -> None:
    """Run ``video-pipeline samples``."""
    parser = options.parser("samples", __doc__)
    parser.add_argument("source", help="as data.input_jsonl: a folder, a pattern, ...")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSONL")
    parser.add_argument("--probe", action="store_true", help="read headers: duration, size, codec")
    parser.add_argument("--configfile", type=Path, help="for data.video_field and data's limits")
    args = parser.parse_args()
    config = options.with_input(load_config(args.configfile or {}), args.source)
    if args.output.suffix != ".jsonl":
        raise UserError(f"--output {args.output}: give it a name that ends with .jsonl")
    check_files([config])
    write_samples(config, args.output, with_headers=args.probe)

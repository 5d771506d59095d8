"""Find the scene cuts of videos, and write the samples with these ``cuts`` for the dataset `clips`.

video-pipeline scenes samples.jsonl -o samples.scenes.jsonl [--configfile my.yaml]

The cuts are kept in ``.scenes`` beside the output, video by video. So a call that was stopped goes
on, and a call with more samples looks only at the new videos.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from video_pipeline.commands import options
from video_pipeline.common.files import replacing
from video_pipeline.common.locks import describe_holder, try_lock
from video_pipeline.common.printable import printable
from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config
from video_pipeline.config.source import absolute
from video_pipeline.decode.errors import SampleError, message_of
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.spec import ProcessSpec
from video_pipeline.errors import Failure, UserError
from video_pipeline.samples.input import BadLines, InputSample, video_uri
from video_pipeline.samples.sources import read_samples
from video_pipeline.video.scenes import DETECTOR, check_installed, scene_cuts

TIMEOUT_S = 3600.0
"""Seconds that one video may take: all of its frames are decoded."""

SHOWN_FAILURES = 20

_MODULES = ("video_pipeline.video.scenes",)
_AHEAD = 4
"""Videos under way for each process."""


@dataclass(frozen=True)
class SceneSpec(ProcessSpec):
    """Processes that find the cuts of one video at a time."""

    config: Config
    folder: Path

    def worker(self, shared: Any, number: int) -> Callable[[str], list[float] | str]:
        from video_pipeline.video.access import Access, limit_access

        limit_access(Access.of(self.config.data))
        return _cuts


def _cuts(uri: str) -> list[float] | str:
    """The cuts of a video, or why it cannot be read."""
    try:
        return scene_cuts(uri)
    except Failure:
        raise
    except MemoryError as error:
        raise SampleError("read", "MemoryError", message_of(error)) from None
    except Exception as error:  # FFmpeg's errors, and those of PySceneDetect.
        return message_of(error)


class SceneCache:
    """The cuts that were found so far, in a file with a line for each video. Path, size and time
    identify a local video; its address identifies any other."""

    def __init__(self, path: Path) -> None:
        self._known: dict[bytes, list[float]] = {}
        data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines():
            try:
                entry = orjson.loads(line)
                self._known[orjson.dumps(entry["video"])] = entry["cuts"]
            except (ValueError, LookupError, TypeError):
                continue  # A line that was cut off when its writer was killed.
        self._stream = open(path, "ab")
        if data and not data.endswith(b"\n"):
            self._stream.write(b"\n")

    def find(self, uri: str) -> list[float] | None:
        """The cuts of a video; None if they are not known."""
        return self._known.get(_identity(uri))

    def add(self, uri: str, cuts: list[float]) -> None:
        """Note the cuts of a video."""
        identity = _identity(uri)
        self._known[identity] = cuts
        video = orjson.Fragment(identity)
        self._stream.write(orjson.dumps({"video": video, "cuts": cuts}) + b"\n")
        self._stream.flush()


def _identity(uri: str) -> bytes:
    try:
        status = os.stat(uri)
        return orjson.dumps([DETECTOR, uri, status.st_size, status.st_mtime_ns])
    except (OSError, ValueError):
        return orjson.dumps([DETECTOR, uri])


def find_scenes(config: Config, output: Path, num_processes: int) -> None:
    """Write the samples of ``data.input_jsonl`` to ``output``, each with its ``cuts``.

    A video that cannot be read, or whose process dies or takes too long, costs only itself: its
    samples have no ``cuts``.

    Raises :class:`UserError` for bad lines, and while another process writes the same output.
    """
    check_installed()
    path = output.parent / ".scenes" / output.name
    lock = try_lock(path.with_suffix(".lock"))
    if lock is None:
        holder = describe_holder(path.with_suffix(".lock"))
        raise UserError(f"{output.absolute()} is being written by {holder}")
    with lock:
        bad = BadLines()
        every = (_uri(config, sample) for sample in read_samples(config.data, bad))
        uris = dict.fromkeys(filter(None, every))
        bad.raise_any(config.data.source.name)
        cache = SceneCache(path)
        unknown = [uri for uri in uris if cache.find(uri) is None]
        failed = _look(config, unknown, cache, num_processes) if unknown else {}
        num_samples = num_cuts = 0
        with replacing(output) as stream:
            for sample in read_samples(config.data, bad):
                cuts = cache.find(uri) if (uri := _uri(config, sample)) else None
                raw = sample.raw if cuts is None else {**sample.raw, "cuts": cuts}
                stream.write(orjson.dumps(raw) + b"\n")
                num_samples, num_cuts = num_samples + 1, num_cuts + len(cuts or ())
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{output}: {num_samples:,} samples with {num_cuts:,} cuts; {len(unknown):,} of "
        f"{len(uris):,} videos were looked at, the cuts of the others were known"
    )
    if failed:
        console.print(f"{len(failed):,} videos have no cuts, because they cannot be read:")
        for uri, why in list(failed.items())[:SHOWN_FAILURES]:
            console.print(f"  {printable(f'{uri}: {why}', newlines=False)}")
    data = config.data
    if data.video_root is None and str(output.absolute().parent) != absolute(data.source.root):
        console.print(f"relative paths start from data.video_root: set it to {config.video_root}")


def _uri(config: Config, sample: InputSample) -> str | None:
    video = sample.raw.get(config.data.video_field)
    return video_uri(video, config.video_root) if isinstance(video, str) else None


def _look(config: Config, uris: list[str], cache: SceneCache, num_processes: int) -> dict[str, str]:
    """Find the cuts of the videos ``uris`` and add them to ``cache``; returns why some failed."""
    failed: dict[str, str] = {}
    num_processes = min(num_processes, len(uris))
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        job_processes() as folder,
        Progress(*columns, console=Console(file=sys.stderr)) as progress,
    ):
        bar = progress.add_task("videos", total=len(uris))
        pool = DecodePool(ForkServer(_MODULES), SceneSpec(config, folder), num_processes, TIMEOUT_S)
        waiting: dict[Future[list[float] | str], str] = {}
        crashed: set[str] = set()
        unsubmitted = iter(uris)
        try:
            while True:
                while len(waiting) < _AHEAD * num_processes and (uri := next(unsubmitted, None)):
                    waiting[pool.submit(uri)] = uri
                if not waiting:
                    return failed
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    uri = waiting.pop(future)
                    try:
                        result = future.result()
                    except SampleError as error:
                        if error.stage == "crash" and uri not in crashed:
                            crashed.add(uri)  # Try again: its process may have died by accident.
                            waiting[pool.submit(uri)] = uri
                            continue
                        result = f"{error.type}: {error}"
                    if isinstance(result, str):
                        failed[uri] = result
                    else:
                        cache.add(uri, result)
                    progress.advance(bar)
        finally:
            pool.stop()


def main() -> None:
    """Run ``video-pipeline scenes``."""
    parser = options.parser("scenes", __doc__)
    parser.add_argument("input", nargs="?", help="default: data.input_jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the samples with cuts")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=_count, default=cores, help="default: one a core")
    options.add_run(parser, is_required=False)
    args = parser.parse_args()
    config = options.enter_run(args)
    if args.input is not None:
        config = options.with_input(config, args.input)
    if str(args.output.absolute()) == absolute(config.data.input_jsonl):
        raise UserError(f"--output {args.output}: is the input; give it another name")
    find_scenes(config, args.output, args.processes)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count

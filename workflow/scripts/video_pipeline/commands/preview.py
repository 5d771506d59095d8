"""Try a task on one sample: show the prompt, the pictures that the model sees, and its answer. For
a folder it shows three samples: the first, the middle and the last one; for the input of a
configuration the first three.

video-pipeline preview my_plugin.py --task my_task --video clip.mp4
video-pipeline preview --video videos/ --no-engine
video-pipeline preview --configfile my.yaml --no-engine
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from video_pipeline.commands import options
from video_pipeline.common.files import why_not_there
from video_pipeline.common.printable import printable
from video_pipeline.config import Config, load_config
from video_pipeline.config.source import VIDEO_SUFFIXES, Source
from video_pipeline.errors import UserError
from video_pipeline.run.origin import check_files
from video_pipeline.samples.input import BadLines
from video_pipeline.samples.sources import read_blocks, read_samples


def main() -> None:
    """Run ``video-pipeline preview``."""
    parser = options.parser("preview", __doc__)
    parser.add_argument("plugins", nargs="*", metavar="PLUGIN", help="Python files or modules")
    parser.add_argument("--task", help="a registered task; default: run.task")
    parser.add_argument("--video", help="path or address of the video, or of a folder of videos")
    parser.add_argument(
        "--sample", default="{}", metavar="JSON", help="other fields of the sample, as JSON"
    )
    parser.add_argument("--configfile", type=Path, help=options.CONFIGFILE)
    parser.add_argument("--model", help="instead of vllm.model")
    parser.add_argument("--no-engine", action="store_true", help="do not ask the model")
    parser.add_argument(
        "--sheet", type=Path, default=Path("preview.png"), help="where the pictures go"
    )
    args = parser.parse_args()
    config = _config(args)
    preview(config, _raws(args, config), args.sheet, with_engine=not args.no_engine)


def _config(args: argparse.Namespace) -> Config:
    """The configuration of the stage that runs ``--task``, or of the first stage if none does, with
    the values of the other options."""
    stages = [config for _, config in load_config(args.configfile or {}).by_stage()]
    stage = next((config for config in stages if config.run.task == args.task), stages[0])
    values = stage.model_dump()
    for name in args.plugins:
        path = Path(name)
        if path.suffix.lower() in VIDEO_SUFFIXES or (path.is_dir() and not any(path.glob("*.py"))):
            raise UserError(f"{name} is no plugin; to see what a model sees of it: --video {name}")
    values["run"]["plugins"] += args.plugins
    if args.task:
        values["run"]["task"] = args.task
    if args.model:
        values["vllm"]["model"] = args.model
    if _is_folder(args):
        values["data"].update(input_jsonl=args.video, video_root=None)
    elif args.video:  # A relative path starts from the shell's folder, not from that of the run.
        values["data"]["video_root"] = Path.cwd()
    return load_config(values)


def _is_folder(args: argparse.Namespace) -> bool:
    return args.video is not None and Source(args.video).kind in ("folder", "pattern")


def _raws(args: argparse.Namespace, config: Config) -> list[dict[str, Any]]:
    """The input objects of the samples to show."""
    raw = _raw(args)
    if args.configfile and not args.video and not raw:
        check_files([config])
        for needs_video in (True, False):  # The dataset may need none.
            bad = BadLines()
            samples = read_samples(config.data, bad, needs_video=needs_video)
            if raws := [sample.raw for sample in islice(samples, 3)]:
                return raws
        bad.raise_any(config.data.source.name)
        raise UserError(f"{config.data.source.name} holds no samples")
    if not _is_folder(args):
        if not config.run.plugins:  # A plugin's dataset may take the name for something else.
            _check_video(args.video)
        return [{**raw, config.data.video_field: args.video} if args.video else raw]
    lines = b"".join(read_blocks(config.data.input_jsonl, config.data.video_field)).splitlines()
    chosen = dict.fromkeys([0, len(lines) // 2, len(lines) - 1])
    return [{**orjson.loads(lines[index]), **raw} for index in chosen]


def _check_video(video: str | None) -> None:
    """Raise :class:`UserError` if ``video`` is a path of no file, before the model loads."""
    source = Source(video or "")
    is_path = video and source.is_local and "#" not in source.place  # "#" names a member of a tar.
    if is_path and (fault := why_not_there(Path(source.place))):
        raise UserError(f"--video: {fault}")


def _raw(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``--sample``."""
    try:
        raw = orjson.loads(args.sample)
    except orjson.JSONDecodeError as error:
        raise UserError(f"--sample: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"--sample: expected a JSON object, got {args.sample:.80}")
    return raw


def preview(
    config: Config, raws: Sequence[dict[str, Any]], sheet: Path, *, with_engine: bool
) -> None:
    """Print what the task of ``config`` does with the samples whose input objects are ``raws``, and
    save the pictures that the model sees as ``sheet``. With several samples, their numbers are
    added to its name.

    Raises :class:`UserError` if the user's code, sample or settings are at fault.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(message: str) -> None:
        console.print(f"preview: {printable(message)}")

    count = f"{len(raws)} samples" if len(raws) > 1 else "the sample"
    say(f"reads {count} for the task {config.run.task} and the model {config.model_name}")
    if with_engine:
        # vLLM reads these when it is imported, and so do the processes that it starts.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    from video_pipeline.commands.showing import show

    sheets = [sheet.with_stem(f"{sheet.stem}{index}") for index in range(1, len(raws) + 1)]
    shown = zip(raws, sheets if len(raws) > 1 else [sheet], strict=True)
    show(config, list(shown), say, with_engine=with_engine)

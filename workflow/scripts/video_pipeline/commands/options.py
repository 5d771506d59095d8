"""The options that the commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from video_pipeline.common.files import why_not_there
from video_pipeline.config import Config, load_config
from video_pipeline.config.source import tidy
from video_pipeline.errors import UserError

CONFIGFILE = "the configuration of the run; OUTPUT.config.yaml if it was given with --config"
"""The help of ``--configfile``."""


def parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a command; ``doc``: its module's docstring with an example, or None (-OO)."""
    description, _, epilog = (doc or "").strip().replace("``", "`").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"video-pipeline {command}",
        description=description,
        epilog=f"example:\n\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --config, which is Snakemake's, is no --configfile.
    )


def add_run(parser: argparse.ArgumentParser, *, is_required: bool = True) -> None:
    """Add the options that name the run of a command."""
    parser.add_argument("--configfile", type=Path, required=is_required, help=CONFIGFILE)
    parser.add_argument("--directory", type=Path, help="the working directory of the run")


def enter_run(args: argparse.Namespace) -> Config:
    """Change to the working directory of the run, and return its configuration. Raises
    :class:`UserError`."""
    config = load_config(args.configfile or {})
    if args.directory:
        if fault := why_not_there(args.directory, "folder"):
            raise UserError(f"--directory: {fault}")
        os.chdir(args.directory)
    return config


def with_input(config: Config, place: str) -> Config:
    """``config`` with another ``data.input_jsonl``, which may be the run's own output. Raises
    :class:`UserError`."""
    try:
        data = config.data.model_copy(update={"input_jsonl": tidy(place)})
    except ValueError as error:
        raise UserError(f"the input: got {place!r}, expected {error}") from None
    return config.model_copy(update={"data": data})

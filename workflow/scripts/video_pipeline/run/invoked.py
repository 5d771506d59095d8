"""Notes an invocation of Snakemake, for the report."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from video_pipeline.common.files import read_object, write_text
from video_pipeline.config.secrets import is_secret
from video_pipeline.config.source import scheme_of, shown
from video_pipeline.run.layout import Layout

HIDDEN = "***"
"""Stands for a secret in a command."""
_ADDRESS = re.compile(r"https?://[^\s'\"}]+?(?=,?(?:[\s'\"}]|$))", re.IGNORECASE)
"""An address in YAML, such as that in ``data={input_jsonl: ADDRESS, id_field: id}``."""


@dataclass(frozen=True)
class Invoked:
    """An invocation.

    Attributes:
        command: Its command line, without secrets.
        folder: The working directory.
        pages: The page of each stage, by name (empty for a plain run), in order.
    """

    command: str
    folder: str
    pages: dict[str, str]

    @classmethod
    def now(cls, pages: dict[str, str]) -> Invoked:
        """The invocation of this process."""
        program, *arguments = sys.argv
        name = Path(program)
        # ``python -m snakemake`` runs a file of this name.
        words = ["snakemake"] if name.name in ("snakemake", "__main__.py") else [program]
        return cls(shlex.join([*words, *without_secrets(arguments)]), str(Path.cwd()), pages)

    def write(self, layout: Layout) -> None:
        """Write it for the jobs of one stage."""
        write_text(layout.invoked, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, layout: Layout) -> Invoked | None:
        """The last invocation of a stage; None if it wrote nothing: earlier versions did not."""
        try:
            return cls(**read_object(layout.invoked))
        except TypeError:
            return None


def without_secrets(arguments: Iterable[str]) -> list[str]:
    """Arguments of Snakemake, with addresses without signatures, and with :data:`HIDDEN` for the
    values of options and keys that are named like secrets, such as ``--storage-s3-secret-key``."""
    words: list[str] = []
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or scheme_of(argument):
            name, equals, value = "", "", argument
        if value.startswith("--"):
            option = value
        elif is_secret(name or option, value):
            value = HIDDEN
        elif scheme_of(value) in ("http", "https"):
            value = shown(value)
        else:
            value = _ADDRESS.sub(lambda address: shown(address[0]), value)
        words.append(name + equals + value)
    return words

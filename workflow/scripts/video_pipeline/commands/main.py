"""``video-pipeline``: lists the commands, or runs one.

video-pipeline watch --configfile my.yaml
"""

from __future__ import annotations

import importlib
import sys

from video_pipeline.common.suggest import did_you_mean
from video_pipeline.errors import UserError

COMMANDS = {
    "samples": "write the JSONL that a folder, a pattern, a table or a tar stands for",
    "scenes": "find the scene cuts of videos, for the dataset clips",
    "preview": "show what a task asks about a video, what the model sees and what it answers",
    "plan": "estimate tokens, GPU-hours and cost; show which videos cannot be read",
    "watch": "show the progress of a run, and what limits it",
    "retry": "open failed samples again, for the next snakemake",
    "report": "write the page about a run again",
    "journal": "show the journals of an output, and remove those of other settings",
}
"""The purpose of each command. Its code is the module of the same name in this room."""


def main() -> None:
    """Run the command that the first argument names. Without an argument, list all commands.

    Raises :class:`UserError` for a name that is no command.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_list())
        return
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"no command is called {name!r}{hint} (there are {', '.join(COMMANDS)})")
    sys.argv[1:] = arguments
    importlib.import_module(f"video_pipeline.commands.{name}").main()


def _list() -> str:
    lines = [f"  {name:<9}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "usage: video-pipeline COMMAND ...",
            "",
            *lines,
            "",
            "`video-pipeline COMMAND --help` shows the options and an example.",
            "Snakemake runs the workflow itself:",
            "  snakemake --cores all --resources gpu=1 --config input=videos/ model=MODEL",
        ]
    )

"""How to call ``video-pipeline`` from a terminal of the user's."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def own_command(scripts: Path) -> list[str]:
    """The first words of the command line: the name if a shell finds this Python's own script by
    it, else the script's path. Without an installation (a workflow that Snakemake has fetched) it
    is the module, with ``scripts``, the folder of the workflow's scripts, as the place of the
    library."""
    script = Path(sys.executable).with_name("video-pipeline")
    found = shutil.which("video-pipeline")
    if found and os.path.abspath(found) == str(script):
        return ["video-pipeline"]
    if script.exists():
        return [str(script)]
    return ["env", f"PYTHONPATH={scripts}", sys.executable, "-m", "video_pipeline"]


def command_line(name: str, config: Path, scripts: Path) -> str:
    """The command ``name`` about the run in this folder with the resolved configuration ``config``,
    to be typed in any folder; ``scripts`` as of :func:`own_command`."""
    options = ["--directory", str(Path.cwd()), "--configfile", os.path.abspath(config)]
    return shlex.join([*own_command(scripts), name, *options])

"""The command lines of ``video-pipeline`` that messages show."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def own_command(scripts: Path) -> list[str]:
    """The first words of the command line: the name of this Python's own script if a shell finds
    the script by it, else the path of the script. A workflow that Snakemake has fetched has no
    script: then the words run the module in ``scripts``, the folder of the workflow's scripts."""
    script = Path(sys.executable).with_name("video-pipeline")
    on_path = shutil.which("video-pipeline")
    if on_path and os.path.abspath(on_path) == str(script):
        return ["video-pipeline"]
    if script.exists():
        return [str(script)]
    return ["env", f"PYTHONPATH={scripts}", sys.executable, "-m", "video_pipeline"]


def command_line(name: str, config: Path, scripts: Path) -> str:
    """The line that calls the command ``name``, from any folder, for the run in this folder with
    the resolved configuration ``config``. ``scripts`` is that of :func:`own_command`."""
    options = ["--directory", str(Path.cwd()), "--configfile", os.path.abspath(config)]
    return shlex.join([*own_command(scripts), name, *options])

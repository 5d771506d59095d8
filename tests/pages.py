"""The pages of the documentation, the examples in them, and a checkout to run them in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    PROJECT / "config" / "README.md",
    *sorted((PROJECT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^( *)(```+)(\w*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)

# A command within a sentence is whole if it names its files.
WHOLE = re.compile(r"(?:snakemake|video-pipeline|python) .*(?:\.yaml|\.jsonl|\.mp4)\b.*")


# For the programs of SLURM.
STAND_INS = {
    "squeue": 'printf "7 video-pipeline-a\\n8 other\\n"',
    "scancel": 'echo "cancelled $*"',
}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The path of its page in the repository.
        line: Where it begins, from 1.
        language: The word after the fence. Without one it is output.
        text: The block without its fences and its indent.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str | None = None, page: str | None = None) -> list[Block]:
    """The blocks of a language, or all; of a page, or of all."""
    found = [block for path in PAGES for block in _blocks(path)]
    return [
        block
        for block in found
        if language in (None, block.language) and page in (None, block.page)
    ]


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for found in FENCED.finditer(text):
        indent, _, language, body = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        yield Block(str(path.relative_to(PROJECT)), line, language, body)


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def commands() -> dict[str, str]:
    """Each command line of the pages, without its comment, and the first page that has it."""
    found: dict[str, str] = {}
    for block in blocks("bash"):
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            found.setdefault(re.sub(r"\s+# .*", "", line), str(block))
    for page in PAGES:
        for code in re.findall(r"`([^`]+)`", prose(page)):
            if WHOLE.fullmatch(line := " ".join(code.split())):
                found.setdefault(line, str(page.relative_to(PROJECT)))
    return found


def clone(folder: Path) -> None:
    """Copy the repository into ``folder``, with the console script that pip would install."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    programs = {name: f"#!/bin/sh\n{text}\n" for name, text in STAND_INS.items()}
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        programs[name] = (
            f"#!{sys.executable}\nfrom {module} import {function}\n"
            f"if __name__ == '__main__':\n    {function}()\n"
        )
    (folder / "bin").mkdir()
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def moved(folder: Path, command: str) -> str:
    """``command`` with the folders of a machine in ``folder``."""
    return re.sub("(?<= |=)(/shared|/tmp)", rf"{folder}\1", command)


def run_in(folder: Path, command: str) -> str:
    """Run ``command`` as a user does in ``folder``; returns what it printed."""
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "workflow/scripts")}
    finished = subprocess.run(
        moved(folder, command),
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout

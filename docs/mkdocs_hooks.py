"""What `mkdocs.yml` needs beside the packages: which files are pages, and how docstrings read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FILES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("config/README.md", "config/schema.json", "docs/site.css", "docs/report.webp"),
)
"""What belongs to the site beside ``docs/*.md``."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages lie in the site as they lie in the repository, so each link works in both."""
    pages = sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md"))
    kept = [file for file in files if file.src_dir != config.docs_dir]
    own = [
        File(path, str(ROOT), config.site_dir, config.use_directory_urls)
        for path in (*FILES, *pages)
    ]
    return Files([*kept, *own])


class Roles(griffe.Extension):
    """Reads the roles of reStructuredText in docstrings as code, and its literals."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """``:class:`Task``` becomes `` `Task` ``, double backticks single ones, and ``::`` a colon."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring)
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)

"""Prints what CHANGELOG.md says about a version: ``python .github/release_notes.py v0.2.0``.

Fails unless the tag, pyproject.toml and CITATION.cff name the same version, and the changelog has a
section about it that is not marked as unreleased.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(tag: str) -> None:
    """Print the section."""
    version = tag.removeprefix("v")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["version"] != version:
        sys.exit(f"the tag is {tag}, pyproject.toml has version {project['version']}")
    if f"\nversion: {version}\n" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8"):
        sys.exit(f"CITATION.cff has another version than {version}")
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    for section in sections:
        title, _, text = section.partition("\n")
        if title.split()[:1] == [version]:
            if "unreleased" in title:
                sys.exit(f"CHANGELOG.md: the section {title!r} is marked as unreleased")
            print(text.strip())
            return
    sys.exit(f"CHANGELOG.md has no section '## {version}'")


if __name__ == "__main__":
    main(sys.argv[1])

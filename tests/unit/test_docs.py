"""The pages: each is in the site's navigation, and each link leads somewhere, here and there."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, SCRIPTS
from pages import PAGES, prose
from qwen_vl_utils.vision_process import smart_nframes, smart_resize
from video_pipeline.config import Vision

from benchmarks import model_memory

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


class Loader(yaml.SafeLoader):
    """Takes the tags of Python in ``mkdocs.yml`` for nothing."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation() -> list[str]:
    """The pages under ``nav``."""
    site = yaml.load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)

    def pages(entries):
        for entry in entries:
            for target in entry.values():
                yield from pages(target) if isinstance(target, list) else [target]

    return list(pages(site["nav"]))


def links(page: Path) -> list[tuple[str, str]]:
    """The relative links of a page: path and anchor, of which one may be empty."""
    return LINK.findall(re.sub("`[^`\n]+`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation_once():
    assert sorted(navigation()) == sorted(str(page.relative_to(PROJECT)) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page}: {target}#{anchor}"


def test_the_links_are_found():
    assert ("docs/tasks.md", "") in links(PROJECT / "README.md")
    assert ("resume.md", "when-a-sample-counts-as-done") in links(PROJECT / "docs" / "plan.md")
    assert "when-a-sample-counts-as-done" in anchors(PROJECT / "docs" / "resume.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_what_follows_in_a_list_is_indented_by_four(page):
    """The hub takes two spaces as well, the site makes other paragraphs or prose of code. It also
    wants a blank line before a list."""
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^( *)```", text, re.MULTILINE)
    paragraphs = re.findall(r"\n\n( +)(?![*-] )\S", prose(page))
    assert {len(indent) for indent in [*fences, *paragraphs]} <= {0, 4}
    assert re.findall(r"^(?:    |[^ *\n-]).*\n[*-] .*", prose(page), re.MULTILINE) == []


def test_what_docs_needs_is_complete():
    """``make docs`` installs its list without dependencies, over the other two."""
    names = [
        re.split("[=;]", line)[0].strip().lower().replace("_", "-")
        for file in ("cpu.txt", "dev.txt", "docs.txt")
        for line in (PROJECT / "envs" / file).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == set()
    assert {"mkdocs", "mkdocs-material", "mkdocstrings-python", "griffelib"} <= set(names)


def messages_of_the_source() -> list[str]:
    """Each text in the library, with a mark for each value that is put in."""
    texts = []
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
                )
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%(\.\d)?[sdrg]", "\0", node.value))
    return texts


def test_the_messages_of_the_help_page_are_in_the_source():
    page = (PROJECT / "docs" / "messages.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 40
    texts = messages_of_the_source()
    patterns = [re.escape(message).replace(r"\.\.\.", ".*") for message in quoted]
    missing = [p for p in patterns if not any(re.search(p, text, re.DOTALL) for text in texts)]
    assert missing == []


def test_the_table_of_memory_is_that_of_the_models():
    page = (PROJECT / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert "\n".join(model_memory.rows()) in page


def test_the_table_of_frames_is_that_of_qwen_vl_utils():
    page = (PROJECT / "docs" / "vision.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) s \| (\d+) \| [\d.]+ s \| (\d+)x(\d+) \| ([\d,]+) \|", page, re.M)
    assert len(rows) == 6
    vision = Vision()
    for seconds, frames, width, height, tokens in rows:
        item = {"fps": vision.fps, "max_frames": vision.max_frames}
        count = smart_nframes(item, total_frames=25 * int(seconds), video_fps=25)
        most = min(vision.max_pixels, vision.total_pixels / count * 2)
        size = smart_resize(720, 1280, 28, min_pixels=vision.min_pixels, max_pixels=most)
        assert (count, size) == (int(frames), (int(height), int(width)))
        assert int(tokens.replace(",", "")) == count // 2 * size[0] // 28 * size[1] // 28


def test_the_address_of_the_repository_is_that_of_pyproject():
    """The placeholder stands in one place, too: with another address there, this test names the
    pages to change."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    owner = project["urls"]["Repository"].removeprefix("https://github.com/").partition("/")[0]
    address = re.compile(r"""(?:github\.com/|github\(")([\w.-]+)/video-pipeline\b""")
    found = {
        (page.name, name)
        for page in (*PAGES, PROJECT / "CITATION.cff")
        for name in address.findall(page.read_text(encoding="utf-8"))
    }
    assert found == {("README.md", owner), ("snakemake.md", owner)}

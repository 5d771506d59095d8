"""Describes the setup of a run: model, settings, versions and command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from video_pipeline.common.versions import installed_versions
from video_pipeline.config import Config
from video_pipeline.config.source import scheme_of, shown
from video_pipeline.model.model import Model
from video_pipeline.run.invoked import Invoked
from video_pipeline.run.layout import Layout


def setup_of(config: Config, layout: Layout, summary: dict[str, Any]) -> dict[str, Any]:
    """Names and values to show: those of the model, of the keys that differ from their defaults,
    of the installed versions, and the command of the last invocation (None if it is unknown)."""
    invoked = Invoked.read(layout)
    return {
        "model": _model(config, layout, summary),
        "settings": _settings(config),
        "versions": list(installed_versions().items()),
        "command": invoked.command if invoked else None,
        "folder": invoked.folder if invoked else None,
        "config": layout.config.name,
    }


def stage_links(layout: Layout) -> list[dict[str, Any]]:
    """Name and page of each stage of the last invocation (``is_this``: the stage of ``layout``);
    empty for a plain run."""
    invoked = Invoked.read(layout)
    pages = {n: Path(page) for n, page in invoked.pages.items() if n} if invoked else {}
    return [
        {
            "name": name,
            "page": quote(os.path.relpath(page, layout.report.parent)),
            "is_this": page == layout.report,
        }
        for name, page in pages.items()
    ]


def _model(config: Config, layout: Layout, summary: dict[str, Any]) -> list[tuple[str, str]]:
    if config.run.engine != "vllm":
        return [("engine", config.run.engine)]
    rows = [
        ("model", config.vllm.model),
        ("commit", Model.of(config).known_commit(layout.commits)),
        ("GPU", ", ".join(summary["throughput"].get("cards", ()))),
    ]
    return [(name, value) for name, value in rows if value]


def _settings(config: Config) -> list[tuple[str, str]]:
    """The keys that differ from their defaults, as in the configuration file."""
    sections, defaults = (
        source.model_dump(mode="json", exclude={"stages"}) for source in (config, Config())
    )
    return [
        (f"{section}.{key}", _text(value))
        for section, values in sections.items()
        for key, value in values.items()
        if value != defaults[section].get(key)
    ]


def _text(value: Any) -> str:
    """A value of the configuration, as text; an address without its query, a possible signature."""
    if isinstance(value, str):
        return shown(value) if scheme_of(value) in ("http", "https") else value
    return json.dumps(value, ensure_ascii=False)

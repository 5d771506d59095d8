"""Short names of keys, for ``snakemake --config input=videos/ model=...``."""

from __future__ import annotations

from typing import Any

from video_pipeline.errors import UserError

SHORT_NAMES = {
    "input": "data.input_jsonl",
    "output": "data.output_jsonl",
    "model": "vllm.model",
    "prompt": "task_params.prompt",
}


def with_long_names(raw: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with the keys that its short names stand for. The workflow's own defaults are part of
    ``raw``, so a long key that has its value in ``defaults`` counts as not given.

    Raises :class:`UserError` if a short name has no text, or its long key has another value.
    """
    result = {name: value for name, value in raw.items() if name not in SHORT_NAMES}
    for short, key in SHORT_NAMES.items():
        if short not in raw:
            continue
        value = raw[short]
        if not isinstance(value, str):
            raise UserError(
                f"{short}: got {value!r}, expected a text; on the command line quote it twice: "
                f"--config {short}='\"...\"'"
            )
        section, name = key.split(".")
        keys = result.get(section) or {}
        if not isinstance(keys, dict):
            continue  # The section is wrong itself, and its own error says so.
        given = keys.get(name, defaults[section].get(name))
        if str(given) not in (value, str(defaults[section].get(name))):
            raise UserError(
                f"{short} and {key} are the same key, and have different values: {value!r} and "
                f"{given!r}; give one of them"
            )
        result[section] = {**keys, name: value}
    return result

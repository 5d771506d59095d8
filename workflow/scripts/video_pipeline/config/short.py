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
    """``raw``, with keys in place of its short names. The workflow's own defaults are part of
    ``raw``, so a key that has its value in ``defaults`` counts as not given.

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
        default = defaults[section].get(name)
        long_value = keys.get(name, default)
        if str(long_value) not in (value, str(default)):
            raise UserError(
                f"{short} and {key} are the same key, and have different values: {value!r} and "
                f"{long_value!r}; give one of them"
            )
        _check_stages(short, key, raw.get("stages"))
        result[section] = {**keys, name: value}
    return result


def _check_stages(short: str, key: str, stages: object) -> None:
    """Raise :class:`UserError` if ``short`` would have no effect, because every stage that it is
    for sets the key itself."""
    section, name = key.split(".")
    if not isinstance(stages, list) or not stages:
        return
    targets = stages[-1:] if short == "output" else stages
    own = [stage.get(section) for stage in targets if isinstance(stage, dict)]
    if own and all(isinstance(keys, dict) and name in keys for keys in own):
        raise UserError(f"{short} has no effect: {key} is set in `stages`; change it there")

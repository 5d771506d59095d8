"""Short names of keys, for ``snakemake --config input=videos/ model=...``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from video_pipeline.errors import UserError

SHORT_NAMES = {
    "input": "data.input_jsonl",
    "output": "data.output_jsonl",
    "model": "vllm.model",
    "prompt": "task_params.prompt",
    "max_tokens": "sampling.max_tokens",
}

_NUMBERS = {"max_tokens"}
"""The short names whose value is not a text."""


def as_typed(raw: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """``raw``, in which the short names among ``arguments`` (``name=value`` of ``--config``) have
    the texts that were typed: Snakemake reads these as YAML, so that ``#`` begins a comment. Their
    long keys, which are from a file then, are left out.
    """
    typed = dict(argument.partition("=")[::2] for argument in arguments)
    result = dict(raw)
    for short, key in SHORT_NAMES.items():
        text = typed.get(short)
        if not text:
            continue
        is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        if short not in _NUMBERS and not is_quoted:
            result[short] = text
        section, name = key.split(".")
        if section not in typed and isinstance(result.get(section), dict):
            result[section] = {n: v for n, v in result[section].items() if n != name}
    return result


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
        if not isinstance(value, str) and short not in _NUMBERS:
            raise UserError(f"{short}: got {value!r}, expected a text")
        section, name = key.split(".")
        keys = result.get(section) or {}
        if not isinstance(keys, dict):
            continue  # The section is wrong itself, and its own error says so.
        default = defaults[section].get(name)
        long_value = keys.get(name, default)
        if str(long_value) not in (str(value), str(default)):
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

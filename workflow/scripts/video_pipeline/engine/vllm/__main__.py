"""``python -m video_pipeline.engine.vllm`` writes the list of names of the installed vLLM."""

import dataclasses
import json
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from video_pipeline.config.vllm_names import LIST
from video_pipeline.engine.vllm.compat import ENGINE_ARGUMENTS, SAMPLING_PARAMETERS


def names() -> dict[str, dict[str, str]]:
    """The list that :func:`~video_pipeline.config.vllm_names.known_names` reads."""
    sections = {"vllm": ENGINE_ARGUMENTS, "sampling": SAMPLING_PARAMETERS}
    return {
        section: {name: _written(kind) for name, kind in sorted(kinds.items())}
        for section, kinds in sections.items()
    }


def _written(kind: Any) -> str:
    """The name of a type that YAML can hold; any other is ``Any``. A literal becomes the type of
    its values: vLLM takes some of them in other spellings, too."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is NoneType:
        return "None"
    if kind in (bool, int, float, str, dict):
        return str(kind.__name__)
    if origin is Literal:
        return " | ".join(sorted({type(value).__name__ for value in arguments}))
    if origin in (Union, UnionType):
        parts = list(dict.fromkeys(map(_written, arguments)))
        return "Any" if "Any" in parts else " | ".join(parts)
    if origin in (list, set):
        return f"list[{_written(*arguments)}]"
    if origin is dict:
        return f"dict[{', '.join(map(_written, arguments))}]"
    return "dict[str, Any]" if dataclasses.is_dataclass(kind) else "Any"


if __name__ == "__main__":
    LIST.write_text(json.dumps(names(), indent=1) + "\n", encoding="utf-8")

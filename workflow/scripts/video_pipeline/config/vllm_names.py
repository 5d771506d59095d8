"""Checks names and types of vLLM's engine arguments and sampling parameters against a list. So a
mistake is found before a job waits for a GPU, on a machine without vLLM, and with the simulated
engine.

The list is ``vllm_names.json``. This command writes it again, from the installed vLLM:

    python -m video_pipeline.engine.vllm
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ForwardRef

from pydantic import TypeAdapter, ValidationError

from video_pipeline.common.suggest import did_you_mean
from video_pipeline.config.vllm_version import TRIED, installed_version
from video_pipeline.errors import UserError

logger = logging.getLogger(__name__)

LIST = Path(__file__).with_name("vllm_names.json")


@cache
def known_names() -> dict[str, dict[str, str]]:
    """The names of the list by section (``vllm``, ``sampling``), and the type of each."""
    names: dict[str, dict[str, str]] = json.loads(LIST.read_text(encoding="utf-8"))
    return names


def wrong_names(section: str, names: Iterable[str], own_names: Iterable[str]) -> list[str]:
    """A message for each of ``names`` in a section that vLLM does not know. ``own_names`` are the
    section's own, which a message may suggest.

    If the list was made from another vLLM than the installed one, the installed one may know the
    name: then there is a warning, and the engine decides.
    """
    known = known_names()[section]
    similar, vllm = [*known, *own_names], f"vLLM {TRIED[-1]}"
    return _for_this_vllm(
        [_fault(section, name, similar, vllm) for name in names if name not in known]
    )


def wrong_values(section: str, settings: Mapping[str, Any]) -> list[str]:
    """A message for each of vLLM's own ``settings`` in a section whose value has a wrong type. As
    with names, it may be right for another vLLM.

    In most engine arguments vLLM reads ``"0.9"`` as a number, and null as not set. It does not do
    so in sampling parameters: a wrong type would fail with the first request, or ``"no"`` would
    be true.
    """
    known, strict, faults = known_names()[section], section == "sampling", []
    for name, value in settings.items():
        if value is None and not strict:
            continue
        kind: Any = ForwardRef(known.get(name, "Any"))
        try:
            # As JSON: there all keys are texts, as in the resolved configuration.
            TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=strict)
        except ValidationError:
            expected = known[name].replace("None", "null")
            faults.append(f"{section}.{name}: got {value!r}, expected {expected}")
    return _for_this_vllm(faults)


def check_names(section: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`UserError` for the first of ``names`` in a section that is not ``known`` to the
    imported vLLM, with the nearest one."""
    for name in names:
        if name not in known:
            raise UserError(_fault(section, name, known, "vLLM"))


def _fault(section: str, name: str, known: Iterable[str], vllm: str) -> str:
    """``vllm.max_num_seq: vLLM 0.32.0 has no such setting; did you mean vllm.max_num_seqs?``"""
    hint = did_you_mean(name, known, show=lambda close: f"{section}.{close}")
    return f"{section}.{name}: {vllm} has no such setting{hint}"


def _for_this_vllm(faults: list[str]) -> list[str]:
    """The ``faults``, if the list is that of the installed vLLM or there is none; else warnings."""
    installed = installed_version()
    if installed in (None, TRIED[-1]):
        return faults
    for fault in faults:
        _warn_once(f"{fault}; vLLM {installed} is installed, which looks at it when it starts")
    return []


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)

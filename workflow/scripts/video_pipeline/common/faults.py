"""Tells whether the machine or the user is at fault for an exception of other software (vLLM, CUDA,
the hub, the kernel)."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from video_pipeline.errors import EnvironmentFault, Failure, UserError

_TYPES = {
    *("MemoryError", "ConnectionError", "TimeoutError"),
    *("OutOfMemoryError", "AcceleratorError", "DistError", "NVMLError"),  # torch, nvidia-ml-py
    *("TransportError", "RequestException"),  # httpx, requests: no answer
}
"""Names of exceptions that are never the user's fault. By name, to import nothing for them."""

_USERS_TYPES = {"OfflineModeIsEnabled"}
"""Names of exceptions that look like those above, but follow from a setting."""

_UNREACHABLE = {"ConnectError", "ConnectTimeout", "NewConnectionError", "ConnectionRefusedError"}
"""Names of exceptions that say that a service does not answer at all (httpx, urllib3, Python)."""

_ERRNOS = {
    *(errno.ENOMEM, errno.ENOSPC, errno.EDQUOT),  # full
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN),  # no more files or processes
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.EREMOTEIO),  # broken
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.EADDRINUSE, socket.EAI_AGAIN),  # another took the port; no name server answers
}

_TEXTS = re.compile(
    r"out of memory|cannot allocate memory|no space left|insufficient shared memory"
    r"|CUDA error|CUDA driver|CUDA-capable|CUDA initialization|No CUDA GPUs|cuDNN error|CUBLAS_"
    r"|NCCL|NVML|Gloo"
    # vLLM says this if other processes use the GPU, too.
    r"|Free memory on device|Error in memory profiling"
    r"|couldn't connect to|Connection (refused|reset)|timed out|can't start new thread"
    # The hub's client says this if a download broke off.
    r"|CAS service error|Consistency check failed",
    re.IGNORECASE,
)
"""Messages of exceptions of general types, such as RuntimeError and ValueError."""

_REFUSALS = {
    *("ValueError", "TypeError", "NotImplementedError", "ImportError", "FileNotFoundError"),
    *("HfHubHTTPError", "VLLMClientError"),
}
"""Names of exceptions about what cannot work, however often it is tried."""

_RETRIED_STATUS = {408, 425, 429}


def is_environment_fault(error: BaseException) -> bool:
    """Whether the machine, the network or a service caused ``error``, and not the configuration:
    then another attempt may succeed."""
    chain = list(_chain(error))
    if any(_names(link) & _USERS_TYPES for link in chain):
        return False
    statuses = [status for status in map(_status, chain) if status is not None]
    if statuses:  # The service has answered, so its status decides.
        return statuses[0] >= 500 or statuses[0] in _RETRIED_STATUS
    return any(map(_looks_like_environment, chain))


def is_unreachable(error: BaseException) -> bool:
    """Whether ``error`` says that a service does not answer: this machine may have no network."""
    return any(_names(link) & _UNREACHABLE for link in _chain(error))


def is_refusal(error: BaseException) -> bool:
    """Whether ``error`` says that settings, files or versions cannot work together."""
    return bool(_names(error) & _REFUSALS) and not is_environment_fault(error)


def failure_of(error: BaseException, message: str) -> Failure:
    """The failure that says ``message`` because of ``error``."""
    return (EnvironmentFault if is_environment_fault(error) else UserError)(message)


@contextmanager
def process_deaths(process: str) -> Iterator[None]:
    """In the block, the death of a ``process`` of a pool becomes an :class:`EnvironmentFault`."""
    try:
        yield
    except BrokenProcessPool as error:
        raise EnvironmentFault(
            f"{process} died: there may be too little memory on this machine. Free some (on a "
            "cluster, raise mem_mb of the job) and run the same command again. A plugin that ends "
            "its process does this, too"
        ) from error


def _looks_like_environment(error: BaseException) -> bool:
    return (
        bool(_names(error) & _TYPES)
        or (isinstance(error, OSError) and error.errno in _ERRNOS)
        or _TEXTS.search(str(error)) is not None
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and the exceptions that led to it, as a traceback shows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    """The status of the HTTP response that an exception is about."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None

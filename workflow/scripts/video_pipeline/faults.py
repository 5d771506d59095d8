"""Whose fault it is when something fails that is not ours: vLLM, CUDA, the hub, the kernel."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from video_pipeline.errors import EnvironmentFault, Failure, UserError

_TYPES = {
    *("MemoryError", "ConnectionError", "TimeoutError"),
    *("OutOfMemoryError", "AcceleratorError", "DistError", "NVMLError"),  # torch, nvidia-ml-py
    *("TransportError", "RequestException"),  # httpx, requests: no answer
}
"""Names of exceptions that are never the user's: without importing what defines them."""

_USERS_TYPES = {"OfflineModeIsEnabled"}
"""Names of exceptions that look like those above and follow from a setting."""

_ERRNOS = {
    *(errno.ENOMEM, errno.ENOSPC, errno.EDQUOT),  # full
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN),  # no more files or processes
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.EREMOTEIO),  # broken
}

_TEXTS = re.compile(
    r"out of memory|cannot allocate memory|no space left|insufficient shared memory"
    r"|CUDA error|CUDA driver|CUDA-capable|CUDA initialization|No CUDA GPUs|cuDNN error|CUBLAS_"
    r"|NCCL|NVML|Gloo"
    # vLLM, where others use the device, too
    r"|Free memory on device|Error in memory profiling"
    r"|couldn't connect to|Connection (refused|reset)|timed out",
    re.IGNORECASE,
)
"""What is said by exceptions of general types, such as RuntimeError and ValueError."""

_REFUSALS = {
    *("ValueError", "TypeError", "NotImplementedError", "ImportError", "FileNotFoundError"),
    *("HfHubHTTPError", "VLLMClientError"),
}
"""Names of exceptions that are raised for what cannot work, however often it is tried."""

_RETRIED_STATUS = {408, 425, 429}


def is_environments(error: BaseException) -> bool:
    """Whether the machine, the network or a service is to blame for ``error``, so that another
    attempt may succeed, and not what somebody has written into a configuration."""
    chain = list(_chain(error))
    if any(_names(one) & _USERS_TYPES for one in chain):
        return False
    statuses = [status for status in map(_status, chain) if status is not None]
    if statuses:  # the service has answered: it knows best
        return statuses[0] >= 500 or statuses[0] in _RETRIED_STATUS
    return any(map(_is_environments, chain))


def is_refusal(error: BaseException) -> bool:
    """Whether ``error`` says that settings, files or versions cannot work together."""
    return bool(_names(error) & _REFUSALS) and not is_environments(error)


def failure_of(error: BaseException, message: str) -> Failure:
    """The failure that says ``message`` because of ``error``."""
    return (EnvironmentFault if is_environments(error) else UserError)(message)


def _is_environments(error: BaseException) -> bool:
    if _names(error) & _TYPES:
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    return _TEXTS.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from, as a traceback shows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    """The status of the HTTP answer that an exception is about."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None

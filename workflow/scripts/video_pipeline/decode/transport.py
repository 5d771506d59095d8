"""Moves prepared samples from the decode processes to the engine's process.

The sender writes a sample to a file of its own in a folder of shared memory. The receiver maps the
file and unlinks it at once. Only the file's name goes through the pipe, in one piece, so that a
process that is killed leaves no half of a message. A file that it leaves behind is in the job's
folder, which is removed with the job.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 64


@dataclass(frozen=True)
class Parcel:
    """A packed object on its way.

    Attributes:
        path: The file: the pickled object without its large arrays, then the arrays, each at a
            multiple of 64 bytes.
        sizes: Bytes of each of these parts.
    """

    path: str
    sizes: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that the unpacked object holds."""
        return sum(self.sizes)


class _Pickler(pickle.Pickler):
    """Leaves the data of tensors out of band, as pickle protocol 5 does for numpy arrays."""

    def reducer_override(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.is_sparse:
            data = value.detach().contiguous()
            # As bytes: numpy does not know all of torch's types.
            return _tensor, (data.reshape(-1).view(torch.uint8).numpy(), data.dtype, data.shape)
        return NotImplemented


def _tensor(data: Any, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    import torch  # Not above: an engine's process that is given no tensors does not need it.

    return torch.from_numpy(data).view(dtype).reshape(shape)


def pack(value: Any, folder: Path) -> Parcel:
    """Pack ``value`` into a new file in ``folder``. Raises :class:`OSError` if that is full."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    fd, path = tempfile.mkstemp(dir=folder)
    try:
        with open(fd, "wb", buffering=0) as file:
            for part in parts:
                _write_all(file, part)
                _write_all(file, bytes(-part.nbytes % _ALIGNMENT))
    except BaseException:
        os.unlink(path)
        raise
    return Parcel(path, tuple(part.nbytes for part in parts))


def _write_all(file: io.FileIO, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def unpack(parcel: Parcel) -> Any:
    """Return the object of a parcel and unlink its file; the arrays are views of the file."""
    with open(parcel.path, "r+b") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0))
    os.unlink(parcel.path)
    parts, offset = [], 0
    for size in parcel.sizes:
        parts.append(mapped[offset : offset + size])
        offset += size + -size % _ALIGNMENT
    return pickle.loads(parts[0], buffers=parts[1:])

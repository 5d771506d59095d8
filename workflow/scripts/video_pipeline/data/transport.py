"""Moves prepared samples from the decode processes to the engine's process.

Large arrays are written to a file of their own in a folder of shared memory and mapped by the
receiver, which unlinks the file at once; only a small pickle goes through the pipe. A file that a
killed process leaves behind lies in the job's folder, which goes with the job.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_ALIGNMENT = 64


@dataclass(frozen=True)
class Parcel:
    """A packed object on its way.

    Attributes:
        pickled: The object without its large arrays.
        path: The file with the arrays, or None if there are none.
        sizes: Bytes of each array in the file.
    """

    pickled: bytes
    path: str | None
    sizes: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes the unpacked object holds."""
        return len(self.pickled) + sum(self.sizes)


class _Pickler(pickle.Pickler):
    """Leaves the data of tensors out of band, as pickle protocol 5 does for numpy arrays."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.is_sparse:
            data = value.detach().contiguous()
            # as bytes: numpy does not know all of torch's types
            return _tensor, (data.reshape(-1).view(torch.uint8).numpy(), data.dtype, data.shape)
        return NotImplemented


def _tensor(data: Any, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(data).view(dtype).reshape(shape)


def pack(value: Any, folder: Path) -> Parcel:
    """Pack ``value``, its arrays into a new file in ``folder``.

    Raises :class:`OSError` if the folder is full.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [buffer.raw() for buffer in buffers]
    sizes = tuple(view.nbytes for view in views)
    if not sum(sizes):
        return Parcel(stream.getvalue(), None, sizes)
    fd, path = tempfile.mkstemp(dir=folder)
    try:
        with open(fd, "wb", buffering=0) as file:
            for view in views:
                _write_all(file, view)
                _write_all(file, bytes(-view.nbytes % _ALIGNMENT))
    except BaseException:
        os.unlink(path)
        raise
    return Parcel(stream.getvalue(), path, sizes)


def _write_all(file: io.FileIO, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def unpack(parcel: Parcel) -> Any:
    """The object of a parcel; its arrays are views of the mapped file, which is unlinked."""
    if parcel.path is None:
        return pickle.loads(parcel.pickled, buffers=[bytearray() for _ in parcel.sizes])
    with open(parcel.path, "r+b") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0))
    os.unlink(parcel.path)
    views, offset = [], 0
    for size in parcel.sizes:
        views.append(mapped[offset : offset + size])
        offset += size + -size % _ALIGNMENT
    return pickle.loads(parcel.pickled, buffers=views)

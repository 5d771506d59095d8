"""Decides which videos and images may be read, and opens them.

A list of videos may come from elsewhere, so a name in it decides nothing: the limits that
:func:`limit_access` sets for the process do.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from video_pipeline.config import Data
from video_pipeline.video.download import download
from video_pipeline.video.errors import VideoReadError

IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the image formats that are read. It knows more, and hands EPS to another
program, Ghostscript."""

_HTTP = re.compile("https?://", re.IGNORECASE)
_DATA = re.compile("data:image/[^,]*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Access:
    """The limits for reading.

    Attributes:
        roots: Real paths of the folders that local files must lie in; None: anywhere.
        max_download_bytes: Size of the largest file that is downloaded.
        allow_private_addresses: Whether hosts that are not on the public internet are asked.
    """

    roots: tuple[str, ...] | None
    max_download_bytes: int
    allow_private_addresses: bool

    @classmethod
    def of(cls, data: Data) -> Access:
        """The limits in the section ``data``. Relative roots are those of the working directory."""
        roots = data.allowed_roots
        return cls(
            roots=None if roots is None else tuple(os.path.realpath(root) for root in roots),
            max_download_bytes=int(data.max_download_gb * 1e9),
            allow_private_addresses=data.allow_private_addresses,
        )


_access = Access.of(Data.model_validate({}))


def limit_access(access: Access) -> None:
    """Set the limits of this process. Before, those of the default configuration hold."""
    global _access
    _access = access


def permitted(path: str) -> str:
    """``path``, or its real path if there are roots. Raises :class:`VideoReadError` if it lies
    outside all of them, after links and ``..`` were followed."""
    if "\0" in path:
        raise VideoReadError("its path holds a NUL character, which no file name can")
    if _access.roots is None:
        return path
    real = os.path.realpath(path)
    if not any(os.path.commonpath([real, root]) == root for root in _access.roots):
        raise VideoReadError("lies outside the folders of data.allowed_roots (links are followed)")
    return real


class MediaFile:
    """The regular local file that a URI names, or the download of one. A download is removed when
    this object is closed or the process dies.

    Attributes:
        path: Path of the file in this process.
    """

    def __init__(self, uri: str) -> None:
        """Open a local path, ``file://`` or ``http(s)://``. Raises :class:`VideoReadError` if it
        cannot be read, or may not."""
        self._download = None
        if _HTTP.match(uri):
            self._download = download(
                uri, _access.max_download_bytes, _access.allow_private_addresses
            )
            self.path = f"/proc/self/fd/{self._download.fileno()}"
        else:
            self.path = permitted(uri.removeprefix("file://"))
        try:
            _check_regular(self.path)
        except VideoReadError:
            self.close()
            raise

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the download, if it is one."""
        if self._download is not None:
            self._download.close()


def _check_regular(path: str) -> None:
    """Refuse what is not a regular file: opening a pipe waits for ever, and opening some devices
    makes them act."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoReadError(f"{error.strerror}: {os.path.abspath(path)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoReadError("is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoReadError("not a regular file")
    if status.st_size == 0:
        raise VideoReadError("file is empty (0 bytes)")


def read_image(uri: str, *, with_pixels: bool = True) -> Image.Image:
    """Read an image as ``transformers.image_utils.load_image`` does: upright and in RGB.

    Args:
        uri: A local path, ``file://``, ``http(s)://`` or ``data:image/...;base64,``.
        with_pixels: Whether to decode it. Otherwise only its header is read, and a black image of
            the same size is returned.

    Raises:
        VideoReadError: It cannot be read, or may not.
    """
    if header := _DATA.match(uri):
        try:
            data = base64.b64decode(uri[header.end() :])
        except binascii.Error as error:
            raise VideoReadError(f"image: not base64 ({error})") from None
        return _decode(io.BytesIO(data), with_pixels)
    try:
        file = MediaFile(uri)
    except VideoReadError as error:
        raise VideoReadError(f"image: {error}") from error
    with file:
        return _decode(file.path, with_pixels)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn ``image`` as its EXIF data says, and convert it to RGB."""
    return ImageOps.exif_transpose(image).convert("RGB")


def image_format(path: str) -> str | None:
    """Pillow's name for the format of a local file that :func:`read_image` reads, such as ``JPEG``;
    None for any other file."""
    try:
        with _opened(path) as image:
            return image.format
    except Exception:  # Pillow's readers raise many kinds for files that are not theirs.
        return None


def _opened(source: str | io.BytesIO) -> ImageFile.ImageFile:
    Image.init()
    known = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    return Image.open(source, formats=known)


def _decode(source: str | io.BytesIO, with_pixels: bool) -> Image.Image:
    try:
        with _opened(source) as image:
            return upright_rgb(image) if with_pixels else Image.new("RGB", _shown_size(image))
    except UnidentifiedImageError:
        raise VideoReadError("image: not a file of a known format") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds for damaged files.
        raise VideoReadError(f"image: {error or type(error).__name__}") from error


def _shown_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(width, height) of :func:`upright_rgb`, from the header."""
    # PNG's own method decodes the pixels; that of the base class does not.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    on_its_side = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # Pillow turns those.
    return image.size[::-1] if on_its_side else image.size

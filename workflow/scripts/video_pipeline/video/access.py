"""Opens videos and images as local files, within the limits of this process
(:mod:`video_pipeline.storage.access`)."""

from __future__ import annotations

import base64
import binascii
import io
import re

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from video_pipeline.storage.access import Access, limit_access, permitted
from video_pipeline.storage.blobs import check_regular
from video_pipeline.storage.opening import copy_of, local_path
from video_pipeline.video.errors import VideoReadError

__all__ = ["Access", "MediaFile", "limit_access", "permitted", "read_image", "upright_rgb"]

IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the image formats that are read. Pillow knows more formats, and starts another
program, Ghostscript, for EPS."""

_DATA = re.compile("data:image/[^,]*;base64,", re.IGNORECASE)


class MediaFile:
    """The regular local file that a URI names, or a temporary copy of a file elsewhere. The copy is
    removed when this object is closed or the process dies.

    Attributes:
        path: Path of the file in this process.
    """

    def __init__(self, uri: str) -> None:
        """Open an address as :func:`video_pipeline.storage.opening.local_path` takes it. Raises
        :class:`VideoReadError` if it cannot be read, or may not."""
        self._copy = None
        path = local_path(uri)
        if path is None:
            self._copy = copy_of(uri)
            path = f"/proc/self/fd/{self._copy.fileno()}"
        self.path = path
        try:
            check_regular(self.path)
        except VideoReadError:
            self.close()
            raise

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy, if there is one."""
        if self._copy is not None:
            self._copy.close()


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
    """Turn ``image`` as its EXIF data says, and convert it to RGB. Raises :class:`VideoReadError`
    for grey values above 255, which would all be white."""
    if image.mode.startswith(("I", "F")) and (most := np.asarray(image).max()) > 255:
        raise VideoReadError(f"it has grey values up to {most:g}: save it with 8 bits a channel")
    return ImageOps.exif_transpose(image).convert("RGB")


def image_format(path: str) -> str | None:
    """Pillow's name for the format of a local file that :func:`read_image` reads, such as ``JPEG``;
    None for any other file."""
    try:
        with _opened(path) as image:
            return image.format
    except Exception:  # Pillow's readers raise many kinds of exceptions for other files.
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
    except Exception as error:  # They also raise many kinds for damaged files.
        raise VideoReadError(f"image: {error or type(error).__name__}") from error


def _shown_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(width, height) of :func:`upright_rgb`, from the header."""
    # PNG's own method decodes the pixels; that of the base class does not.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    on_its_side = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # Pillow turns those.
    return image.size[::-1] if on_its_side else image.size

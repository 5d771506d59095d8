"""The error of a file that cannot be read."""

from __future__ import annotations


class VideoReadError(ValueError):
    """A video or an image cannot be read, or may not be. The message says why. It names the path of
    a missing local file, but never an address, which may hold a password."""

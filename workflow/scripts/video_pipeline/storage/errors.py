"""The error of a file that cannot be read."""

from __future__ import annotations


class VideoReadError(ValueError):
    """A video or an image that cannot be read, or may not be. The message says why. It never holds
    the address, which may hold a password; it names the path of a missing local file."""

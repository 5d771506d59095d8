"""What goes wrong with a video."""


class VideoReadError(ValueError):
    """A video, or an image, that cannot be read or may not be. The message says why, without its
    path or address."""

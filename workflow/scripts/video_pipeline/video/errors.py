"""What goes wrong with a video."""


class VideoReadError(ValueError):
    """A video, or an image, that cannot be read or may not be. The message says why, without its
    address, which may hold a password; of a local file that is not there it names the path."""

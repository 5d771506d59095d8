"""Finds where the scenes of a video begin, with PySceneDetect."""

from __future__ import annotations

from video_pipeline.errors import UserError
from video_pipeline.video.container import Video
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.timeline import stamp_of

DETECTOR = "adaptive 3.0, 0.6 s"
"""The detector and its settings, those of PySceneDetect's ``detect-adaptive``. Stored cuts of
another detector are not used."""

MIN_SCENE_SECONDS = 0.6

_WIDTH = 256
"""Pixels; frames are made no wider than this before they are compared, as PySceneDetect does."""


def check_installed() -> None:
    """Raise :class:`UserError` if PySceneDetect is not installed."""
    try:
        import scenedetect  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"scene cuts need PySceneDetect ({error}): pip install 'scenedetect-headless>=0.7.2,<1'"
        ) from None


def scene_cuts(uri: str) -> list[float]:
    """When the scenes after the first begin: seconds after the begin of the first frame, by the
    times of the frames, ascending. All frames are decoded.

    Args:
        uri: A local path, ``file://`` or ``http(s)://``.

    Raises:
        VideoReadError: It cannot be read, or may not, or none of its frames can be decoded.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode
    from scenedetect.common import Timecode

    detector = AdaptiveDetector(min_scene_len=MIN_SCENE_SECONDS)
    cuts: list[FrameTimecode] = []
    with Video(uri) as video:
        begin, last = video.stamps[0], None
        size: tuple[int, int] | None = None
        for position, frame in enumerate(video.decode_all()):
            stamp = video.stamps[position] if video.index.is_counted else stamp_of(frame)
            if stamp is None or stamp < begin or (last is not None and stamp <= last):
                continue  # A damaged file may give a frame without a time of its own.
            last = stamp
            if size is None:  # The detector compares frames of one size.
                width = min(frame.width, _WIDTH)
                size = width, max(1, round(frame.height * width / frame.width))
            pixels = frame.reformat(*size, "bgr24").to_ndarray()
            time = FrameTimecode(Timecode(stamp - begin, video.time_base), video.fps)
            cuts += detector.process_frame(time, pixels)
        if last is None:
            raise VideoReadError(video.damage or "no frame could be decoded")
        cuts += detector.post_process(time)
    return sorted({round(cut.seconds, 6) for cut in cuts})

"""The video reader that ``qwen_vl_utils.process_vision_info`` uses in this pipeline.

It gives the frames that ffmpeg shows: upright, mirrored if the file says so, with square pixels and
the colours of their range. If a file has none of this, the frames equal those of qwen-vl-utils' own
torchcodec reader, to the last bit. The reader does less work: one thread, no frame decoded or
converted in vain, a resize in uint8. It needs no FFmpeg on the system. A video item may have four
more keys:

``image_patch_size``
    Pixels, as given to ``process_vision_info``. Without it frames leave the reader in their own
    size and ``fetch_video`` resizes them.
``resize``
    ``native`` (the default): frames are resized here, with the uint8 kernel that transformers'
    own video processors use, and ``fetch_video`` finds nothing left to resize. ``exact``:
    ``fetch_video`` resizes, bit for bit as without this reader.
``half_open``
    True: the segment ends before the frame at ``video_end``, so that segments in a row share no
    frame. For qwen-vl-utils that frame is the last of the segment. Needs ``video_end``.
``keyframes``
    True: the key frames of the video (of its segment) are read, evenly thinned out to
    ``max_frames``, whatever ``fps`` and ``nframes`` say.

Within :func:`measuring` it samples and sizes in the same way, but gives frames without pixels.
"""

from __future__ import annotations

import ctypes
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from video_pipeline.errors import UserError
from video_pipeline.storage.opening import local_path
from video_pipeline.video import compat_qwen as qwen
from video_pipeline.video.access import read_image, upright_rgb
from video_pipeline.video.bitstream import Unsupported
from video_pipeline.video.container import Video
from video_pipeline.video.decode_pyav import decode_frames
from video_pipeline.video.display import Shown
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.nvdec import Card, NoCard, Nvdec
from video_pipeline.video.resize import resize_frame, stack_frames, target_size
from video_pipeline.video.sampling import Choose, chosen_frames, sample_frames
from video_pipeline.video.sound import read_sound

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # From malloc.h.

RESIZES = ("native", "exact")

DECODERS = ("auto", "cpu", "nvdec")

MOST_FAILURES = 3
"""After so many videos in a row that fail on the card by its fault, it is not tried again."""

KEPT_BYTES = 1 << 29
"""Bytes of a freed block, at most, that are kept for the next video. Frames of 20,480 visual tokens
(28 x 28 pixels of two frames each) are 385 MB as floats."""


Sample = Callable[[dict[str, Any], Video], tuple[list[int], dict[str, Any], float]]
"""Chooses frames of the video that an item names, see :func:`sample_frames`."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: the number of ``frames``, counted; their average rate; the
    ``duration`` in seconds; ``width`` and ``height`` of a frame as it is shown, upright and in
    square pixels; FFmpeg's name of the ``codec``; the size of the file."""

    frames: int
    fps: float
    duration: float
    width: int
    height: int
    codec: str
    num_bytes: int


class MeasuredMetadata(dict[str, Any]):
    """The metadata of a video read within :func:`measuring`; ``info``: what its file holds."""

    def __init__(self, metadata: dict[str, Any], info: VideoInfo) -> None:
        super().__init__(metadata)
        self.info = info


_is_measuring = False


@contextmanager
def measuring() -> Iterator[None]:
    """Within the block, in all threads, videos and images are read for their sizes alone.

    Every packet of a local video is read, but only the header of a remote video. Frames are chosen
    and sized in the same way, and one is decoded: it tells how the picture is turned. Frames come
    out on torch's device ``meta``, where a tensor has a shape and no values. Only the header of an
    image is read, and the image comes out black.
    """
    global _is_measuring
    before, _is_measuring = _is_measuring, True
    try:
        yield
    finally:
        _is_measuring = before


class CardReader:
    """Reads videos with the GPU's decoder, as long as that works."""

    def __init__(self, nvdec: Nvdec) -> None:
        self._nvdec = nvdec
        self._failures = 0  # in a row
        self._logged: set[str] = set()

    def read(
        self, ele: dict[str, Any], video: Video, positions: Sequence[int]
    ) -> torch.Tensor | None:
        """The frames at ``positions`` as they leave the reader; None if the CPU has to read them.
        The log names each reason once."""
        if self._failures == MOST_FAILURES:
            return None
        try:
            frames = stack_frames(self._nvdec.decode(video, positions), len(positions), ele)
        except Unsupported as error:
            self._log_once(f"{error}: such videos are decoded on the CPU")
        except VideoReadError:
            pass  # The CPU will say the same.
        except Exception as error:
            self._nvdec.forget()
            self._failures += 1
            given_up = self._failures == MOST_FAILURES
            outcome = "it is not tried again" if given_up else "the CPU decodes the video"
            message = str(error).partition("\n")[0]
            self._log_once(f"{type(error).__name__}: {message}; {outcome}")
        else:
            self._failures = 0
            return frames
        return None

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("NVDEC: %s", reason)


_card: CardReader | None = None


def use_decoder(decoder: str) -> bool:
    """Choose what decodes the videos of this process from now on; returns whether it is the GPU.

    Args:
        decoder: ``cpu``; ``nvdec``: the decoder on the first GPU, and the CPU for each video that
            it does not take; ``auto``: ``nvdec`` if there is one. CUDA is initialised here.

    Raises:
        UserError: ``nvdec`` cannot be used here.
    """
    global _card
    if decoder not in DECODERS:
        raise ValueError(f"decoder: {decoder!r} is not one of {', '.join(DECODERS)}")
    _card = None
    if decoder == "cpu":
        return False
    try:
        _card = CardReader(Nvdec(Card()))
    except NoCard as error:
        if decoder == "nvdec":
            raise UserError(
                f"vision.decoder: nvdec cannot be used here: {error}. `auto` decodes with the CPU "
                "if there is no NVDEC"
            ) from error
        logger.warning("NVDEC is not used: %s", error)
    return _card is not None


def register_reader() -> None:
    """Make ``process_vision_info`` read videos with :func:`read_video`, and images with
    :func:`video_pipeline.video.access.read_image`, in this process. Raises :class:`UserError` if
    the installed qwen-vl-utils does not allow that."""
    qwen.use_readers(read_video, upright_image)
    _keep_memory()
    # Nothing is logged, but exceptions carry the last error that FFmpeg logged.
    av.logging.set_level(av.logging.PANIC)


def read_video(ele: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Read the video item ``ele`` of a conversation; a backend of qwen-vl-utils.

    Args:
        ele: ``video`` (path or address), what qwen-vl-utils knows (``fps``, ``nframes``,
            ``min_frames``, ``max_frames``, ``video_start``, ``video_end``, ``min_pixels``, ...)
            and the keys that the module describes. Where ``min_pixels`` and ``max_pixels`` are so
            close that resizing a resized frame would change it again, ``resized_height`` and
            ``resized_width`` are set in it.

    Returns:
        Frames (uint8, frames x 3 x height x width), their metadata (:class:`MeasuredMetadata` while
        :func:`measuring`) and the frames per second they were sampled at.

    Raises:
        VideoReadError: The video cannot be read, or not enough frames can be sampled from it.
    """
    if ele.get("resize", "native") not in RESIZES:
        raise ValueError(f"resize: {ele['resize']!r} is not one of {', '.join(RESIZES)}")
    with _open(ele) as video:
        return _read(video, ele, sample_frames)


class ChosenFrames(NamedTuple):
    """What :func:`read_chosen` reads.

    Attributes:
        frames: frames x height x width x 3, in the order in which they were chosen. While
            :func:`measuring` they are black and take no memory.
        metadata: As of :func:`read_video`.
        rate: Frames per second that they were sampled at.
        sound: See :func:`video_pipeline.video.sound.read_sound`; None if it was not asked for.
    """

    frames: NDArray[np.uint8]
    metadata: dict[str, Any]
    rate: float
    sound: NDArray[np.float32] | None


def read_chosen(
    ele: dict[str, Any], choose: Choose, *, sound_rate: int | None = None
) -> ChosenFrames:
    """Read the frames of a video that ``choose`` numbers, in the size they are shown in.

    Args:
        ele: ``video`` (path or address), ``video_start``, ``video_end``, ``half_open``, and
            ``bound_pixels``: larger frames are made smaller, to so many pixels at most.
        choose: Called once, see :data:`video_pipeline.video.sampling.Choose`.
        sound_rate: Samples per second of the sound of the same segment; None if it is not wanted.

    Raises:
        VideoReadError: The video cannot be read.
    """
    order: list[int] = []

    def ascending(ele: dict[str, Any], video: Video) -> tuple[list[int], dict[str, Any], float]:
        positions, metadata, rate = chosen_frames(ele, video, choose)
        order[:] = sorted(range(len(positions)), key=positions.__getitem__)
        return [positions[index] for index in order], metadata, rate

    with _open(ele, with_sound=sound_rate is not None) as video:
        frames, metadata, rate = _read(video, ele, ascending)
        sound = None
        if sound_rate is not None:
            segment = ele.get("video_start"), ele.get("video_end")
            sound = read_sound(video, *segment, rate=sound_rate)
    if frames.is_meta:
        count, _, height, width = frames.shape
        black = np.broadcast_to(np.uint8(0), (count, height, width, 3))
        return ChosenFrames(black, metadata, rate, sound)
    if order != sorted(order):
        places = torch.empty(len(order), dtype=torch.long)
        places[order] = torch.arange(len(order))
        frames = frames[places]
    return ChosenFrames(frames.permute(0, 2, 3, 1).numpy(), metadata, rate, sound)


def _open(ele: dict[str, Any], *, with_sound: bool = False) -> Video:
    """Open a video to read it. While :func:`measuring`, a remote one is copied only if its header
    does not say enough."""
    uri = ele["video"]
    if _is_measuring and not with_sound and local_path(uri) is None:
        # If this fails, the copy tells what is wrong, or the server gives no parts of files.
        with suppress(VideoReadError):
            video = Video(uri, by_header=True)
            if not ele.get("keyframes") or len(video.keyframes) > 1:
                return video
            video.close()  # Few formats list their key frames.
    return Video(uri)


def _read(
    video: Video, ele: dict[str, Any], sample: Sample
) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Read the frames at the positions, in ascending order, that ``sample`` chooses."""
    positions, metadata, sample_fps = sample(ele, video)
    metadata["video_backend"] = qwen.NAME
    if _is_measuring:
        shown = next(decode_frames(video, [_entry_position(video, positions[0])]))
        info = _info(video, shown)
        size = target_size(ele, len(positions), shown)
        frames = torch.empty((len(positions), 3, *size), dtype=torch.uint8, device="meta")
        return frames, MeasuredMetadata(metadata, info), sample_fps
    from_card = None if _card is None else _card.read(ele, video, positions)
    if from_card is not None:
        return from_card, metadata, sample_fps
    frames = stack_frames(decode_frames(video, positions), len(positions), ele)
    return frames, metadata, sample_fps


def probe(path: str) -> VideoInfo:
    """What ``path`` (local, ``file://`` or ``http(s)://``) holds. Every packet is read; only the
    first frame is decoded, since it tells how the picture is turned. Raises
    :class:`VideoReadError`."""
    with Video(path) as video:
        return _info(video, next(decode_frames(video, [0])))


def _info(video: Video, shown: Shown) -> VideoInfo:
    """What ``video`` holds, with the size of a frame of it."""
    height, width = shown.size
    return VideoInfo(
        frames=len(video.stamps),
        fps=video.fps,
        duration=video.duration,
        width=width,
        height=height,
        codec=video.decoder.codec.canonical_name,
        num_bytes=video.num_bytes,
    )


def _entry_position(video: Video, position: int) -> int:
    """The frame that decoding starts with to reach ``position``: it can be decoded alone."""
    entry = video.entry_before(video.stamps[position])
    return min(bisect_left(video.stamps, entry.stamp), position)


def read_frame(path: str, start: float | None = None, end: float | None = None) -> Image.Image:
    """The first frame of ``path`` (local, ``file://`` or ``http(s)://``), or of its segment, see
    :meth:`Video.segment`. Raises :class:`VideoReadError` if it cannot be read."""
    with Video(path) as video:
        first, _ = video.segment(start, end)
        (shown,) = decode_frames(video, [first])
    pixels = resize_frame(shown.pixels.permute(2, 0, 1), shown.size)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def upright_image(image: object) -> object:
    """An image item's value as an upright image in RGB. qwen-vl-utils would not turn it, and would
    put white behind transparent parts, which transformers does not do."""
    if isinstance(image, str):
        return read_image(image, with_pixels=not _is_measuring)
    return upright_rgb(image) if isinstance(image, Image.Image) else image


def _keep_memory() -> None:
    """Have glibc keep the memory of one video for the next: ``fetch_video`` makes floats of all
    frames. glibc would give large blocks back at once, and the kernel would fill their pages with
    zeros again, for up to a sixth of the time of a video. Other C libraries are left alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * KEPT_BYTES)

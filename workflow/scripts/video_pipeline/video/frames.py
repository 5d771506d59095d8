"""The sampled frames of a video, decoded and resized."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from av.error import FFmpegError

from video_pipeline.video import decode_pyav
from video_pipeline.video.container import Video
from video_pipeline.video.demuxer import explain
from video_pipeline.video.display import Shown
from video_pipeline.video.errors import VideoReadError, note_damage
from video_pipeline.video.nvdec import Nvdec, Unsupported
from video_pipeline.video.resize import bounded_size, frame_size, resize_frame

logger = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Videos in a row that fail on the card for no reason that lies in them: then it is left alone."""


class CardReader:
    """Reads videos with the GPU's decoder, as long as that works."""

    def __init__(self, nvdec: Nvdec) -> None:
        self._nvdec = nvdec
        self._failures = 0  # in a row
        self._told: set[str] = set()

    def read(
        self, ele: dict[str, Any], video: Video, positions: Sequence[int]
    ) -> torch.Tensor | None:
        """Read the frames at ``positions``.

        Returns:
            The frames as they leave the reader; None if the CPU has to read them. The log names
            each reason once.
        """
        if self._failures == MOST_FAILURES:
            return None
        try:
            frames = stack_frames(self._nvdec.decode(video, positions), len(positions), ele)
        except Unsupported as error:
            self._log_once(f"{error}: such videos are decoded on the CPU")
        except VideoReadError:
            pass  # the CPU will say the same
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
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("NVDEC: %s", reason)


def decode_frames(video: Video, positions: Sequence[int]) -> Iterator[Shown]:
    """Decode the frames at ``positions``, given in ascending order, with the CPU.

    The shortcuts are given up if they do not lead to the very frame that was asked for. Without
    them the next frame may take the place of one whose packet has a time that no frame has.

    Yields:
        Each frame as it is shown.

    Raises:
        VideoReadError: one of the frames cannot be decoded.
    """
    done = 0
    try:
        for shortcuts in (True, False):
            video.damage = None
            for stamp, frame in decode_pyav.decode(video, positions[done:], shortcuts):
                position = positions[done]
                if stamp != video.stamps[position] and (
                    shortcuts or not _may_replace(video, stamp, position)
                ):
                    break
                yield frame
                done += 1
            if done == len(positions):
                break
    except FFmpegError as error:
        raise VideoReadError(explain(error)) from error
    if done < len(positions):
        seconds = float((video.stamps[positions[done]] - video.stamps[0]) * video.time_base)
        why = f"; {video.damage}" if video.damage else ""
        raise VideoReadError(
            f"only {done} of {len(positions)} sampled frames could be decoded; the one at "
            f"{seconds:.3f} s could not{why}"
        )
    if video.damage:
        note_damage(video.damage)


def _may_replace(video: Video, stamp: int, position: int) -> bool:
    """Whether the frame at ``stamp`` is the one after ``position`` and none is lost."""
    return video.damage is None and bisect_left(video.stamps, stamp) <= position + 1


def stack_frames(frames: Iterator[Shown], count: int, ele: dict[str, Any]) -> torch.Tensor:
    """Put all ``count`` frames into one tensor (uint8, count x 3 x height x width).

    They are resized one by one: those of a long video in full size would take gigabytes. The first
    decides the size, also if that of the video changes.
    """
    first = next(frames)
    size = target_size(ele, count, first)
    stacked = torch.empty((count, 3, *size), dtype=torch.uint8)
    for index, shown in enumerate(chain([first], frames)):
        stacked[index] = resized(shown, size)
    return stacked


def resized(shown: Shown, size: tuple[int, int]) -> torch.Tensor:
    """Pixels of a frame (uint8, 3 x height x width) in ``size`` (height, width)."""
    return resize_frame(shown.pixels.permute(2, 0, 1), size)


def target_size(ele: dict[str, Any], nframes: int, shown: Shown) -> tuple[int, int]:
    """(height, width) in which frames like ``shown`` leave the reader.

    ``native``: :func:`frame_size` of the size they are shown in. ``exact``: as many pixels as are
    stored. In either case ``fetch_video`` is told the former where it would not find it itself, so
    that frames are resized once. It cannot be told without the patch size: then they leave in the
    size they are shown in, or smaller by ``bound_pixels``.
    """
    if "image_patch_size" not in ele:
        return bounded_size(*shown.size, ele.get("bound_pixels"))
    size = frame_size(ele, nframes, *shown.size)
    leaving = size if ele.get("resize", "native") == "native" else shown.stored_size
    if frame_size(ele, nframes, *leaving) != size:
        ele.update(resized_height=size[0], resized_width=size[1])
    return leaving

"""Decoding with PyAV, which brings its own FFmpeg."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from video_pipeline.video.container import Video
from video_pipeline.video.timeline import stamp_of


def decode(
    video: Video, positions: Sequence[int], shortcuts: bool = True
) -> Iterator[tuple[int, torch.Tensor]]:
    """Decode the frames at ``positions``, given in ascending order, on one thread.

    Yields, for each, the first frame that is not before it, as its time in units of
    ``video.time_base`` and its pixels: uint8, (height, width, RGB), as displayed. It ends early
    where no such frame is left.

    Args:
        shortcuts: pass over groups of pictures that hold none of the frames; in H.264, have the
            decoder drop pictures that no other is made from (most B-frames). Neither changes a
            pixel of the frames that come out, but a few files mislead it: those whose packets
            claim to be key frames and are not, and those whose reordering was to be guessed from
            what is dropped. Then a frame is missing. Without, the file is decoded from its start.
    """
    wanted = {video.stamps[position] for position in positions}
    drops = shortcuts and video.decoder.name == "h264" and not video.is_counted
    convert = _ToRgb(video.time_base)
    frames: deque[VideoFrame] = deque()
    frame, frame_stamp, number = None, None, 0
    for position in positions:
        stamp = video.stamps[position]
        entry = video.entry_before(stamp) if shortcuts else video.start
        if frame is None or entry.ordinal > video.position:
            video.go_to(entry)
            video.decoder.flush_buffers()
            frames.clear()
        while frame_stamp is None or frame_stamp < stamp:
            while not frames:
                packet = video.read()
                if packet is None:
                    return
                droppable = drops and stamp_of(packet) not in wanted
                video.decoder.skip_frame = "NONREF" if droppable else "DEFAULT"
                frames.extend(video.decode(packet))
            frame = frames.popleft()
            if video.is_counted:
                frame_stamp, number = video.stamps[number], number + 1
            else:
                frame_stamp = stamp_of(frame)
        yield frame_stamp, convert(frame)


class _ToRgb:
    """Converts frames to RGB just as torchcodec 0.12 does, to the last bit."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._kind: tuple | None = None

    def __call__(self, frame: VideoFrame) -> torch.Tensor:
        """The pixels of ``frame``, upright: uint8, (height, width, RGB)."""
        turns = round(frame.rotation / 90)
        kind = (frame.width, frame.height, frame.format.name, self._range_is_ignored(frame, turns))
        if kind != self._kind:
            self._kind, self._graph = kind, self._make_graph(*kind)
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns)))

    @staticmethod
    def _range_is_ignored(frame: VideoFrame, turns: int) -> bool:
        """torchcodec calls swscale itself if the width is a multiple of 32, and then takes the
        colour range from the pixel format alone: full for yuvj420p, limited for yuv420p."""
        name = frame.format.name
        by_swscale = frame.width % 32 == 0 and turns % 4 == 0
        return (
            by_swscale
            and frame.color_range == ColorRange.JPEG
            and name.startswith("yuv")
            and not name.startswith("yuvj")
        )

    def _make_graph(self, width: int, height: int, pixel_format: str, limited: bool) -> Graph:
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=width, height=height, format=pixel_format, time_base=self._time_base
        )
        scale = [graph.add("scale", "in_range=limited")] if limited else []
        graph.link_nodes(source, *scale, graph.add("format", "rgb24"), graph.add("buffersink"))
        graph.configure()
        return graph

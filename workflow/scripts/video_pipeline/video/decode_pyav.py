"""Decoding with PyAV, which brings its own FFmpeg."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence, Set
from fractions import Fraction

import numpy as np
import torch
from av.error import FFmpegError
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.video.frame import PictureType, VideoFrame

from video_pipeline.video.container import Video
from video_pipeline.video.demuxer import explain
from video_pipeline.video.display import Orientation, Shown
from video_pipeline.video.errors import VideoReadError, note_damage
from video_pipeline.video.timeline import stamp_of


def decode_frames(video: Video, positions: Sequence[int]) -> Iterator[Shown]:
    """Yield the frames at ``positions``, which ascend, as they are shown.

    If a shortcut does not lead to the frame that was asked for, decoding goes on without shortcuts.
    Then the next frame may take the place of a frame that has another time than its packet.

    Raises:
        VideoReadError: One of the frames cannot be decoded.
    """
    done = 0
    try:
        for shortcuts in (True, False):
            video.damage = None
            for stamp, frame in decode(video, positions[done:], shortcuts):
                position = positions[done]
                # A decoder may show an old picture in place of one that damage has cost it.
                if shortcuts and video.damage and _needed(video, positions) is not None:
                    break
                # Without shortcuts the next frame may stand in, if no frame is lost.
                is_next = not video.damage and bisect_left(video.stamps, stamp) <= position + 1
                if stamp != video.stamps[position] and (shortcuts or not is_next):
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


def decode(
    video: Video, positions: Sequence[int], shortcuts: bool = True
) -> Iterator[tuple[int, Shown]]:
    """Decode the frames at ``positions`` on one thread.

    Args:
        positions: Numbers of frames in the video, ascending.
        shortcuts: Pass over groups of pictures that hold none of the frames; in H.264, have the
            decoder drop pictures that no other is made from (most B-frames); in HEVC and AV1, leave
            out packets that none of the frames is made from. None of it changes a pixel of the
            frames that come out, but a few files mislead it: those whose packets claim to be key
            frames and are not, and those whose order the decoder would guess from the dropped
            pictures. Then a frame is missing. Without shortcuts the file is decoded from its start.

    Yields:
        For each position the first frame that is not before it: its time in units of
        ``video.time_base``, and the frame as it is shown. Ends early if no such frame is left.

    Raises:
        VideoReadError: The colours of a frame cannot be converted.
    """
    wanted = {video.stamps[position] for position in positions}
    drops = shortcuts and not video.index.is_counted and video.decoder.name == "h264"
    needed = _needed(video, positions) if shortcuts else None
    convert = ToRgb(video)
    frames: deque[VideoFrame] = deque()
    frame: VideoFrame | None = None
    frame_stamp: int | None = None
    decoded = 0
    for position in positions:
        stamp = video.stamps[position]
        entry = video.entry_before(stamp) if shortcuts else video.index.start
        if frame is None or entry.ordinal > video.position:
            video.go_to(entry)
            video.decoder.flush_buffers()
            frames.clear()
            is_entry = shortcuts and needed is None and not drops
        while frame is None or frame_stamp is None or frame_stamp < stamp:
            while not frames:
                packet = video.read()
                if packet is None:
                    return
                if needed is not None and packet.size and video.position - 1 not in needed:
                    continue
                droppable = drops and stamp_of(packet) not in wanted
                video.decoder.skip_frame = "NONREF" if droppable else "DEFAULT"
                frames.extend(video.decode(packet))
            frame = frames.popleft()
            if is_entry and frame.pict_type == PictureType.P:
                return  # Some decoders make up what such a picture is made from.
            is_entry = False
            if video.index.is_counted:
                frame_stamp, decoded = video.stamps[decoded], decoded + 1
            else:
                frame_stamp = stamp_of(frame)
        yield frame_stamp, convert(frame)


def _needed(video: Video, positions: Sequence[int]) -> Set[int] | None:
    """The ordinals of the packets that the frames at ``positions`` need; None if all are needed."""
    if video.index.is_counted or video.index.references is None:
        return None
    return video.index.references.needed({video.stamps[position] for position in positions})


class ToRgb:
    """Converts the frames of a video to RGB, the right way up, as ffmpeg does, to the last bit."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._kind: tuple[int, int, str, int] | None = None

    def __call__(self, frame: VideoFrame) -> Shown:
        """What is shown. Raises :class:`VideoReadError` if FFmpeg cannot convert the colours."""
        orientation = orientation_of(frame)
        kind = (frame.width, frame.height, frame.format.name, orientation.degrees)
        if kind != self._kind:
            self._kind, self._graph = kind, self._make_graph(frame, orientation.degrees)
        try:
            self._graph.push(frame)
            pixels = orientation.turn(self._graph.pull().to_ndarray())
        except FFmpegError as error:
            raise VideoReadError(f"its colours cannot be converted: {explain(error)}") from error
        return Shown(torch.from_numpy(pixels), self.aspect(orientation))

    def aspect(self, orientation: Orientation) -> Fraction:
        """Width / height of a pixel as it is shown."""
        return orientation.turn_aspect(self._video.pixel_aspect)

    def _make_graph(self, frame: VideoFrame, degrees: int) -> Graph:
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._video.time_base,
        )
        rotate = [graph.add("rotate", f"{degrees}*PI/180")] if degrees else []
        graph.link_nodes(source, *rotate, graph.add("format", "rgb24"), graph.add("buffersink"))
        graph.configure()
        return graph


def orientation_of(frame: VideoFrame) -> Orientation:
    """The orientation in the display matrix of ``frame``: that of its stream, or its own."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know the name of other side data: only the angle is left.
        angle = math.radians(-frame.rotation)
        across, down = round(65536 * math.cos(angle)), round(65536 * math.sin(angle))
        return Orientation.of((across, down, 0, -down, across))
    if not isinstance(matrix, SideData):
        return Orientation()
    return Orientation.of(np.frombuffer(memoryview(matrix), np.int32).tolist())

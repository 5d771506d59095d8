"""A stand-in for the card: what :mod:`video_pipeline.video.nvdec` asks of it, done on the CPU."""

from __future__ import annotations

import av
import torch
from video_pipeline.video import nvdec

Pictures = list[tuple[int, torch.Tensor]]


class CpuCard(nvdec.Card):
    """Decodes with PyAV what is fed, and gives NV12 as NVDEC does.

    Attributes:
        opened: Codecs that were asked for.
        fed: Packets that went in.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.fed = 0

    def open(self, codec: str) -> CpuSession:
        self.opened.append(codec)
        return CpuSession(self, codec)

    def tidy(self) -> None:
        """There is nothing to give back."""


class CpuSession:
    """Knows of a stream only what is fed. Like NVDEC it overwrites its pictures at the next call;
    with zeros, so that a test sees who still looks at them."""

    def __init__(self, card: CpuCard, codec: str) -> None:
        self._card = card
        self._decoder = av.CodecContext.create({"av1": "libdav1d"}.get(codec, codec), "r")
        self._decoder.thread_count = 1
        self._given: list[torch.Tensor] = []

    def feed(self, data: bytes, stamp: int) -> Pictures:
        self._card.fed += 1
        packet = av.Packet(data)
        packet.pts = stamp
        return self._pictures(packet)

    def flush(self) -> Pictures:
        pictures = self._pictures(None)
        self._decoder.flush_buffers()
        return pictures

    def _pictures(self, packet: av.Packet | None) -> Pictures:
        for picture in self._given:
            picture.zero_()
        frames = [(frame.pts, nv12(frame)) for frame in self._decoder.decode(packet)]
        self._given = [picture for _, picture in frames]
        return frames


def nv12(frame: av.VideoFrame) -> torch.Tensor:
    """The bytes of a 4:2:0 frame as NVDEC lays them out, whatever its colours mean."""
    planes = []
    for plane in frame.planes:
        rows = torch.frombuffer(bytearray(plane), dtype=torch.uint8).view(-1, plane.line_size)
        planes.append(rows[: plane.height, : plane.width])
    luma, u, v = planes
    return torch.cat([luma, torch.stack((u, v), -1).flatten(1)])

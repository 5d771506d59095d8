"""The clips of the demo and the tests, in many codecs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from video_pipeline.video.write_clip import write_clip

__all__ = ["DEMO_CLIPS", "write_clip", "write_demo_clips"]

DEMO_CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"codec": "libx264", "width": 320, "height": 240, "seconds": 3.0},
    "portrait.mp4": {"codec": "mpeg4", "width": 180, "height": 320, "seconds": 2.0, "fps": 25},
    "vp9.webm": {"codec": "libvpx-vp9", "width": 256, "height": 144, "seconds": 4.0, "fps": 15},
    "hevc.mkv": {"codec": "libx265", "width": 192, "height": 192, "seconds": 2.5},
    "mpeg2.ts": {"codec": "mpeg2video", "width": 352, "height": 288, "seconds": 1.5, "fps": 25},
    "mjpeg.avi": {
        **{"codec": "mjpeg", "width": 160, "height": 120, "seconds": 5.0, "fps": 10},
        "pixel_format": "yuvj420p",
    },
}
"""The arguments of :func:`write_clip` for each file: length, shape, codec and container differ."""


def write_demo_clips(folder: Path) -> list[Path]:
    """Write six clips that differ (length, codec, ...), unless they exist; return their paths."""
    paths = []
    for seed, (name, arguments) in enumerate(DEMO_CLIPS.items()):
        path = folder / name
        if not path.exists():
            write_clip(path, seed=seed, **arguments)
        paths.append(path)
    return paths

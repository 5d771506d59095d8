"""Tells from its first bytes why a file holds no video, for error messages."""

from __future__ import annotations

import re

from video_pipeline.video.access import image_format

_PROBED_BYTES = 1 << 20
"""The most that FFmpeg reads of a file to guess its format (PROBE_BUF_MAX)."""

_PLAYLIST = re.compile(
    rb"#EXTM3U|ffconcat|<MPD|<CompositionPlaylist|# VobSub|c=IN IP", re.IGNORECASE
)
"""The start, or a part, of files that FFmpeg takes for a list of other files."""

_AUDIO = re.compile(
    rb"ID3|\xff[\xe2-\xe7\xf0-\xfd]|fLaC|(RIFF|RF64|FORM).{4}(WAVE|AIF[FC])|OggS|\x0b\x77|"
    rb"caff|riff\x2e\x91\xcf\x11|MThd|MAC |wvpk|TTA[12]|\.snd|#!AMR|DSD |\x7f\xfe\x80\x01",
    re.DOTALL,
)
"""The start of audio files: MP3, AAC, FLAC, WAV, AIFF, AC-3 and less common ones."""

_OTHERS = {
    rb"\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body)\b": "a web page (HTML)",
    rb"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    rb"%PDF-": "a PDF document",
    rb"PK(\x03\x04|\x05\x06)|7z\xbc\xaf\x27\x1c|Rar!|\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": (
        "an archive or a compressed file: unpack it first"
    ),
}
"""The start of other files that may have the name of a video, and their kind."""


def why_no_video(path: str) -> str | None:
    """The reason why a local file that FFmpeg does not open is no video; None if it is unknown."""
    if name := image_format(path):
        return f"an image ({name}), not a video: `run.dataset: image` reads images"
    with open(path, "rb") as file:
        probed = file.read(_PROBED_BYTES)
    start = probed[:4096]
    for pattern, noun in _OTHERS.items():
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return f"not a video but {noun}"
    if _is_text(start):
        if _PLAYLIST.search(probed):
            return "not a video in one file (playlists and the like are not followed)"
        return "not a video but a text file"
    return "holds sound only, no video" if _AUDIO.match(start) else None


def _is_text(start: bytes) -> bool:
    """Whether it is UTF-8 without control characters. The last character may be cut in two."""
    text = start.decode("utf-8", "replace").rstrip("\ufffd")
    return all(letter.isprintable() or letter in "\t\n\r\f\ufeff" for letter in text)

"""Writes everything for a first run: clips, a list of them, and a tiny model.

    python -m video_pipeline.testing.demo DIR

A second call writes nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from video_pipeline.testing.clips import write_demo_clips
from video_pipeline.testing.tiny_model import write_tiny_model


def write_demo(folder: Path) -> Path:
    """Write ``clips/``, ``samples.jsonl`` and ``model/`` into ``folder``; return the path of the
    list. Existing files are left untouched, so that a second run resumes the first."""
    clips = write_demo_clips(folder / "clips")
    samples = folder / "samples.jsonl"
    lines = (
        json.dumps({"path": str(clip.relative_to(folder)), "title": f"demo clip: {clip.stem}"})
        for clip in clips
    )
    text = "".join(f"{line}\n" for line in lines)
    if not samples.exists() or samples.read_text() != text:
        samples.write_text(text)
    write_tiny_model(folder / "model")
    return samples


def main() -> None:
    """Run ``python -m video_pipeline.testing.demo``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write it all")
    print(write_demo(parser.parse_args().folder))


if __name__ == "__main__":
    main()

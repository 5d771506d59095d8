"""Clips as benchmarks/clips.py makes them (moving textures with grain, x264 medium, CRF 23), at 30
fps, one x264 thread each.

    python make_clips.py DIR PROCESSES

DIR/720p-10s-NN.mp4 (16), then DIR/1080p-30s-NN.mp4 (8 of 30 s: 10 s of pictures, their packets
muxed three times). DIR/720p.done and DIR/1080p.done appear when a set is complete. A clip of 720p
takes 45 CPU s beside other work (48 of them took 126 s on 16 cores), so 16 take about 45 s; another
preset would be faster, but its clips cheaper to decode than those of all other figures.
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path

FPS = 30
SCALE = float(os.environ.get("CLIP_SCALE", "1"))  # below 1: shorter clips, for a dry run
SETS = {
    "720p": (1280, 720, 10, int(os.environ.get("CLIPS_720", "16")), 1),
    "1080p": (1920, 1080, 10, int(os.environ.get("CLIPS_1080", "8")), 3),
}


def make(path, width, height, seconds, repeats, seed):
    import av

    from benchmarks import clips

    clips.FPS = FPS
    started = time.monotonic()
    count = round(seconds * SCALE * FPS)
    part = path.with_name(f".part-{path.name}")
    if path.exists():
        return path.name, 0.0, path.stat().st_size
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "medium", "crf": "23"}
        stream.codec_context.thread_count = 1
        packets = []
        for picture in clips._pictures(width, height, count, seed):
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24"))
        packets += stream.encode(None)
        kept = [(bytes(p), p.pts, p.dts, p.is_keyframe, p.time_base) for p in packets]
        for turn in range(repeats):
            for data, pts, dts, key, base in kept:
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, base
                shift = round(turn * count * Fraction(1, FPS) / base)
                packet.pts, packet.dts = pts + shift, dts + shift
                packet.is_keyframe = key
                container.mux(packet)
    part.replace(path)
    return path.name, round(time.monotonic() - started, 1), path.stat().st_size


def main():
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    started = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        futures = {
            name: [
                pool.submit(
                    make,
                    folder / f"{name}-{seconds * repeats}s-{i:02d}.mp4",
                    width,
                    height,
                    seconds,
                    repeats,
                    100 + i,
                )
                for i in range(count)
            ]
            for name, (width, height, seconds, count, repeats) in SETS.items()
        }
        for name, of_set in futures.items():
            done = [future.result() for future in as_completed(of_set)]
            text = json.dumps(
                {"seconds_from_start": round(time.monotonic() - started, 1), "clips": sorted(done)}
            )
            (folder / f"{name}.done").write_text(text)
            print(name, text[:200], flush=True)


if __name__ == "__main__":
    main()

"""NVDEC beside the CPU reader, on a machine with a card: same frames? And what do they cost?

    python -m benchmarks.nvdec_check FOLDER [--seconds 60] [--made DIR] [--out nvdec.json]

FOLDER holds clips of any sizes. Small ones of other codecs and structures are made in a folder of
their own, those that are not there yet.
Parts that fail leave their traceback in the JSON, which is written after each part.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ITEM = {"fps": 2.0, "max_frames": 256, "max_pixels": 256 * 28 * 28, "image_patch_size": 14}
"""As benchmarks/steady.py samples and sizes."""

PROCESSES = (1, 4, 8)
MEASURE_SECONDS = 2.5
START_SECONDS = 40.0

Group = list[tuple[str, int]]  # clips and their numbers of frames

QUIET = {"x265-params": "log-level=none:keyint=30"}
MADE = {  # written by write_clip
    "h264.mp4": {},
    "many_groups.mp4": {"options": {"g": "12", "bf": "3"}},
    "open_groups.mp4": {"options": {"g": "12", "x264-params": "open-gop=1:bframes=3"}},
    "transport.ts": {"options": {"g": "24"}},
    "turned.mp4": {"rotation": 90},
    "full_range.mp4": {"pixel_format": "yuvj420p"},
    "bt709.mp4": {"options": {"colorspace": "1"}},
    "wide.mp4": {"options": {"x264-params": "sar=64/45"}},
    "cropped.mp4": {"width": 330, "height": 246},
    "hevc.mp4": {"codec": "libx265", "options": QUIET},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "30"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"g": "30"}},
    "ten_bit.mp4": {"codec": "libx265", "pixel_format": "yuv420p10le", "options": QUIET},
    "mpeg4.avi": {"codec": "mpeg4"},
}


# --- in the processes that read ---------------------------------------------------------------


def use(decoder: str) -> dict[str, Any]:
    """Choose the decoder. ``spin``: nvdec whose process spins while it waits; ``stream``: nvdec
    on a CUDA stream of its own."""
    from video_pipeline.video import nvdec, reader

    began = time.time()
    if decoder in ("cpu", "nvdec"):
        if decoder == "cpu" or reader._card is None:
            reader.use_decoder(decoder)
        return {"seconds": time.time() - began}
    if decoder == "spin":
        nvdec._wait_asleep = lambda: None
    card = nvdec.Card()
    if decoder == "stream":
        import torch

        stream = torch.cuda.Stream()
        torch.cuda.set_stream(stream)
        card._library = _OnStream(card._library, stream.cuda_stream)
    reader._card = reader.CardReader(nvdec.Nvdec(card))
    return {"seconds": time.time() - began}


class _OnStream:
    """PyNvVideoCodec, whose decoders work on a stream."""

    def __init__(self, library: Any, stream: int) -> None:
        self._library, self._stream = library, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def CreateDecoder(self, **given: Any) -> Any:  # its own name
        return self._library.CreateDecoder(cudastream=self._stream, **given)


def compare(paths: list[str], item: dict[str, Any], until: float) -> dict[str, Any]:
    """Differences of the frames of both decoders, by file."""
    from video_pipeline.video import reader

    rows = {}
    use("nvdec")
    card = reader._card
    for path in paths:
        if time.time() > until:
            break
        row = rows[os.path.basename(path)] = {}
        try:
            card._logged.clear()
            reader._card = card
            ours, theirs = _timed(path, item, row, "nvdec"), None
            row["left_to_the_cpu"] = list(card._logged)
            reader._card = None
            theirs = _timed(path, item, row, "cpu")
            row["frames"] = len(ours[0])
            row["same_metadata"] = ours[1:] == theirs[1:]
            difference = (ours[0].int() - theirs[0].int()).abs()
            row["mean_difference"] = difference.float().mean().item()
            row["max_difference"] = difference.max().item()
            row["mean_of_worst_frame"] = difference.float().mean(dim=(1, 2, 3)).max().item()
        except Exception:
            row["failed"] = traceback.format_exc()
    reader._card = card
    return rows


def _timed(path: str, item: dict[str, Any], row: dict[str, Any], name: str) -> Any:
    from video_pipeline.video.reader import read_video

    wall, cpu = time.perf_counter(), time.process_time()
    read = read_video({"video": path, **item})
    row[f"{name}_wall_s"] = time.perf_counter() - wall
    row[f"{name}_cpu_s"] = time.process_time() - cpu
    return read


def sizes(paths: list[str]) -> dict[str, tuple[str, int]]:
    """Height and number of frames of each file."""
    from video_pipeline.video.reader import probe

    return {path: (f"{(info := probe(path)).height}p", info.frames) for path in paths}


def measure(
    paths: list[str], warm_up: str, start: float, seconds: float, reuse: bool = True
) -> dict[str, Any]:
    """Read the clips again and again from ``start`` on. What comes before warms the card up."""
    from video_pipeline.video import reader

    if reader._card is not None:
        reader.read_video({"video": warm_up, **ITEM})
    while time.time() < start:
        time.sleep(0.005)
    count, cpu, began = 0, time.process_time(), time.time()
    while not count or time.time() < began + seconds:
        if not reuse:
            reader._card._nvdec.forget()
        reader.read_video({"video": paths[count % len(paths)], **ITEM})
        count += 1
    reasons = [] if reader._card is None else sorted(reader._card._logged)
    return {
        "clips": count,
        "wall_s": time.time() - began,
        "cpu_s": time.process_time() - cpu,
        "left_to_the_cpu": reasons,
    }


def memory() -> dict[str, float]:
    """What torch holds of the card in this process, in MB."""
    import torch

    return {
        "torch_peak_mb": torch.cuda.max_memory_reserved() / 1e6,
        "torch_now_mb": torch.cuda.memory_reserved() / 1e6,
    }


def _serve(pipe: Connection) -> None:
    import torch
    from video_pipeline.video.reader import register_reader

    torch.set_num_threads(1)
    register_reader()
    pipe.send((0, "up"))
    while True:
        number, name, args = pipe.recv()
        try:
            pipe.send((number, globals()[name](*args)))
        except Exception:
            pipe.send((number, {"failed": traceback.format_exc()}))


# --- in the main process ----------------------------------------------------------------------


class Process:
    """A process that reads."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._asked = 0

    def ask(self, name: str, *args: Any) -> None:
        self._asked += 1
        self._pipe.send((self._asked, name, args))

    def answer(self, until: float) -> Any:
        """The answer to the last question."""
        while self._pipe.poll(max(0.0, until - time.time())):
            number, answer = self._pipe.recv()
            if number == self._asked:
                return answer
        raise TimeoutError("no answer in time")

    def call(self, until: float, name: str, *args: Any) -> Any:
        self.ask(name, *args)
        return self.answer(until)

    def kill(self) -> None:
        self._process.kill()


def used_mb() -> float | None:
    """Memory of the first card that is in use, by anyone."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return float(run.stdout.splitlines()[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


class Check:
    """The parts, one after the other, within the time."""

    def __init__(self, folder: Path, made: Path, seconds: float, out: Path | None) -> None:
        self._until = time.time() + seconds
        self._made, self._out = made, out
        self._clips = sorted(map(str, folder.glob("[!.]*.mp4")))
        self.result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}

    def part(self, name: str, run: Any, *args: Any) -> Any:
        """Run a part, and keep its result."""
        if time.time() > self._until:
            self.result[name] = "no time left"
            return None
        began = time.time()
        try:
            self.result[name] = run(*args)
        except Exception:
            self.result[name] = {"failed": traceback.format_exc()}
            print(self.result[name]["failed"], file=sys.stderr)
        print(f"{name}: {time.time() - began:.1f} s", file=sys.stderr, flush=True)
        if self._out is not None:
            self._out.write_text(json.dumps(self.result, indent=1))
        return self.result[name]

    def run(self) -> None:
        before = used_mb()
        self._processes = [Process() for _ in range(max(PROCESSES))]
        spin, stream = Process(), Process()
        made = self.part("made", self._make, self._made)
        everyone = [*self._processes, spin, stream]
        self.part("start", self._start, everyone)
        first = self._processes[0]
        self.part("use", first.call, self._until, "use", "nvdec")
        exact = {"nframes": 10, "resize": "exact"}
        until = time.time() + 0.15 * (self._until - time.time())
        paths = [path for path, error in made.items() if error is None]
        self.part("same_frames", first.call, self._until, "compare", paths, exact, until)
        groups = self.part("groups", self._groups)
        if "failed" in groups:
            return
        shown = [path for group in groups.values() for path, _ in group[:2]]
        until = time.time() + 0.25 * (self._until - time.time())
        self.part("same_clips", first.call, self._until, "compare", shown, ITEM, until)
        (short, group), *others = groups.items()
        self._warm_up = group[0][0]

        def rates(decoder: str, counts: Iterable[int], name: str, group: Group) -> None:
            for count in counts:
                which, used = self._processes[:count], before if decoder == "nvdec" else None
                self.part(f"{decoder} x {count}, {name}", self._rate, which, decoder, group, used)

        rates("nvdec", PROCESSES, short, group)
        self.part("memory", first.call, self._until, "memory")
        self.part(f"nvdec, no reuse, {short}", self._rate, [first], "nvdec", group, None, False)
        self.part(f"spin, {short}", self._rate, [spin], "spin", group, None)
        self.part(f"stream, {short}", self._rate, [stream], "stream", group, None)
        for other in others:
            rates("nvdec", reversed(PROCESSES), *other)
        self.part("memory of all", first.call, self._until, "memory")
        rates("cpu", (1, 8), short, group)
        for other in others:
            rates("cpu", (8, 1), *other)
        for process in everyone:
            process.kill()

    def _make(self, folder: Path) -> dict[str, str | None]:
        """Small clips, and what went wrong with those that could not be made."""
        from video_pipeline.testing.clips import write_clip

        made = {}
        for name, arguments in MADE.items():
            try:
                if not (folder / name).exists():
                    write_clip(folder / name, **{"seconds": 3.0, **arguments})
                made[str(folder / name)] = None
            except Exception as error:
                made[str(folder / name)] = repr(error)
        return made

    def _start(self, processes: list[Process]) -> list[str]:
        until = min(self._until, time.time() + START_SECONDS)
        return [process.answer(until) for process in processes]

    def _groups(self) -> dict[str, Group]:
        """The clips by height, the shortest first, with their number of frames."""
        sizes = self._processes[0].call(self._until, "sizes", self._clips)
        if "failed" in sizes:
            raise RuntimeError(sizes["failed"])
        groups = defaultdict(list)
        for path, (name, frames) in sizes.items():
            groups[name].append((path, frames))
        return dict(sorted(groups.items(), key=lambda group: group[1][0][1]))

    def _rate(
        self,
        processes: list[Process],
        decoder: str,
        group: Group,
        before: float | None,
        reuse: bool = True,
    ) -> dict[str, Any]:
        """What so many processes read at once."""
        for process in processes:
            process.ask("use", decoder)
        for process in processes:
            used = process.answer(self._until)
            if "failed" in used:
                return used
        start = time.time() + 1.0
        for number, process in enumerate(processes):
            turned = [path for path, _ in group[number % len(group) :] + group]
            process.ask("measure", turned, self._warm_up, start, MEASURE_SECONDS, reuse)
        time.sleep(2.0)
        now = used_mb() if before is not None else None
        rows = [process.answer(self._until) for process in processes]
        failed = [row for row in rows if "failed" in row]
        if failed:
            return failed[0]
        frames = sum(frames for _, frames in group) / len(group)
        clips = sum(row["clips"] for row in rows)
        rate = sum(row["clips"] / row["wall_s"] for row in rows)
        return {
            "clips_per_s": rate,
            "file_frames_per_s": rate * frames,
            "wall_s_a_clip": sum(row["wall_s"] for row in rows) / clips,
            "cpu_s_a_clip": sum(row["cpu_s"] for row in rows) / clips,
            "left_to_the_cpu": sorted({why for row in rows for why in row["left_to_the_cpu"]}),
            "gpu_mb_a_process": None if now is None else (now - before) / len(processes),
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--made", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    made = arguments.made or Path(tempfile.gettempdir(), "nvdec_check")
    check = Check(arguments.folder, made, arguments.seconds, arguments.out)
    check.part("all", check.run)
    print(json.dumps(check.result, indent=1))


if __name__ == "__main__":
    main()

"""The cost of reading a clip: with this project's ``QwenVideoDataset.__getitem__``, with
qwen-vl-utils as it comes, and with a bare decode of the same file.

Each contender runs in its own process with the thread settings of a decode process (one thread).
They take turns, clip by clip; a figure is the median over the repetitions of the ratio within one
turn. The measure is the CPU time of the whole process (user and system, all its threads), with the
file in the page cache and everything loaded: one unmeasured turn comes first.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.clips import write_natural_clip
from benchmarks.report import Figure, Section, torchcodec_loads

REPETITIONS = 7
VISION = {"max_pixels": 256 * 28 * 28, "max_frames": 256}
BAR_BARE, BAR_STOCK = 1.15, 0.7


@dataclass(frozen=True)
class Case:
    """A clip and how densely it is sampled."""

    width: int
    height: int
    seconds: int
    fps: float

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.height}p, {self.seconds} s, {self.fps:g} fps"

    def write(self, folder: Path) -> Path:
        """Write the clip, and return its path."""
        name = f"{self.height}p-{self.seconds}s.mp4"
        return write_natural_clip(folder / name, self.width, self.height, self.seconds, seed=1)


CASES = (
    Case(1280, 720, 10, 2.0),
    Case(1280, 720, 60, 1.0),
    Case(1920, 1080, 10, 2.0),
    Case(1920, 1080, 30, 1.0),
)


def run(work: Path) -> Section:
    """Measure the four cases."""
    from video_pipeline.testing.tiny_model import write_tiny_model

    model = write_tiny_model(work / "model")
    clips = [(case, case.write(work / "clips")) for case in CASES]
    contenders = ["bare", "ours", "stock pyav"]
    if torchcodec_loads():
        contenders.append("stock torchcodec")
    processes = {name: _process(name, str(model)) for name in contenders}
    try:
        seconds = {case: _measure(case, clip, processes) for case, clip in clips}
    finally:
        for process in processes.values():
            process.shutdown()
    return _section(seconds, contenders)


def _process(name: str, model: str) -> ProcessPoolExecutor:
    # as in a decode process; read when the process starts
    os.environ.update(OMP_NUM_THREADS="1", TORCHCODEC_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_start, initargs=(name, model))


def _measure(
    case: Case, clip: Path, processes: dict[str, ProcessPoolExecutor]
) -> dict[str, list[float]]:
    """CPU seconds of each contender, by repetition."""
    turns: dict[str, list[float]] = {name: [] for name in processes}
    for turn in range(REPETITIONS + 1):
        for name, process in processes.items():
            spent = process.submit(_read, str(clip), case.fps).result()
            if turn:
                turns[name].append(spent)
    return turns


def _section(seconds: dict[Case, dict[str, list[float]]], contenders: list[str]) -> Section:
    against = [("bare", "a bare decode", BAR_BARE)]
    if "stock torchcodec" in contenders:
        against.append(("stock torchcodec", "stock qwen-vl-utils (torchcodec)", BAR_STOCK))
    against.append(("stock pyav", "stock qwen-vl-utils with a plain PyAV reader", BAR_STOCK))
    figures, details = [], [["clip", *(f"{name}, CPU s" for name in contenders)]]
    for name, words, bar in against:
        worst = max((_ratio(turns, name), case.name) for case, turns in seconds.items())
        shown = ", ".join(f"{_ratio(turns, name):.2f}" for turns in seconds.values())
        figures.append(
            Figure.at_most(
                f"CPU of `__getitem__` / {words}", worst[0], bar, f"{worst[0]:.2f} ({worst[1]})"
            )
        )
        details_row = [f"ours / {words}", *shown.split(", ")]
        figures[-1].measured += f"; all: {', '.join(details_row[1:])}"
    for case, turns in seconds.items():
        details.append([case.name, *(f"{median(turns[name]):.3f}" for name in contenders)])
    missing = (
        ""
        if "stock torchcodec" in contenders
        else " torchcodec does not load here, so the stock reader is a plain PyAV loop."
    )
    return Section("Reading a clip", figures, _HOW + missing, _LIMITS, details)


def _ratio(turns: dict[str, list[float]], against: str) -> float:
    return median(o / a for o, a in zip(turns["ours"], turns[against], strict=True))


_HOW = (
    "CPU seconds of `QwenVideoDataset.__getitem__` (decode, resize, chat template of a tiny "
    f"Qwen2.5-VL; `max_pixels` 200,704), warm, one thread, median of {REPETITIONS} turns, the "
    "worst of the clips. Made H.264 clips (x264 medium, CRF 23, 25 fps, moving textures with "
    "grain). *Bare*: a PyAV loop that decodes every frame and drops it. *Stock*: "
    "`process_vision_info` with its own reader and its float resize, and the same chat template."
)
_LIMITS = (
    "Decoding itself: what is left beside it is the conversion to RGB and the resize of the "
    "sampled frames, the index of the packets and the copy through float that "
    "`process_vision_info` makes. Below 1 where the decoder drops pictures that no other needs."
)


# --- in the contender's process -------------------------------------------------------------------

_contender: Any = None


def _start(name: str, model: str) -> None:
    global _contender
    import torch

    torch.set_num_threads(1)
    _contender = {"bare": _Bare, "ours": _Ours}.get(name, _Stock)(name, model)


def _read(clip: str, fps: float) -> float:
    """CPU seconds of one read, freeing its result included."""
    read = _contender.reader(clip, fps)
    started = time.process_time()
    read()
    return time.process_time() - started


class _Bare:
    def __init__(self, name: str, model: str) -> None:
        pass

    def reader(self, clip: str, fps: float) -> Any:
        from benchmarks.stock import bare_decode

        return lambda: bare_decode(clip)


class _Ours:
    def __init__(self, name: str, model: str) -> None:
        self._model = model
        self._datasets: dict[tuple[str, float], Any] = {}

    def reader(self, clip: str, fps: float) -> Any:
        if (clip, fps) not in self._datasets:
            self._datasets[clip, fps] = _dataset(self._model, clip, fps)
        dataset = self._datasets[clip, fps]
        dataset.prompter  # noqa: B018  loaded when first used
        return lambda: dataset[0]


class _Stock:
    def __init__(self, name: str, model: str) -> None:
        from transformers import AutoProcessor

        from benchmarks.stock import use_stock_reader

        use_stock_reader(name.removeprefix("stock "))
        self._model = model
        self._processor = AutoProcessor.from_pretrained(model)

    def reader(self, clip: str, fps: float) -> Any:
        from benchmarks.stock import stock_llm_input

        dataset = _dataset(self._model, clip, fps)
        sample = dataset.samples[0]
        messages = [dataset._complete(message, sample) for message in dataset.task.messages(sample)]
        return lambda: stock_llm_input(self._processor, messages)


def _dataset(model: str, clip: str, fps: float) -> Any:
    from video_pipeline.config import Vision
    from video_pipeline.data.qwen_video import QwenVideoDataset
    from video_pipeline.tasks.describe import Describe

    return QwenVideoDataset(
        samples=[{"path": clip, "__key": "0", "__video_uri": clip}],
        task=Describe(),
        model=model,
        video_field="path",
        vision_kwargs=Vision(fps=fps, **VISION).video_kwargs(),
        params={},
    )

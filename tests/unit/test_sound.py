"""The sound of videos: what is in the file, on the clock of the frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from sounds import RATE, as_ffmpeg_hears, make, needs_ffmpeg, tones, with_sound
from video_pipeline.config import load_config
from video_pipeline.data.choosing import create_dataset, dataset_of
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.errors import UserError
from video_pipeline.model.processor import SIMULATED_MODEL
from video_pipeline.run.fingerprint import settings_of
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task, register_task
from video_pipeline.testing.clips import write_clip
from video_pipeline.video import sound
from video_pipeline.video.errors import VideoReadError, noting_damage
from video_pipeline.video.reader import read_chosen


def hear(path: Path, **segment: float) -> np.ndarray | None:
    return read_chosen({"video": str(path), **segment}, lambda *_: [0], sound_rate=RATE).sound


SOUNDS = {
    "stereo_44100.mp4": tones(440, 990, rate=44100, seconds=3),
    "mono_8000.mov": [*tones(300, rate=8000, seconds=3), "-c:a", "pcm_s16le"],
    "as_wanted.mkv": [*tones(300, rate=16000, seconds=3), "-c:a", "flac"],
    "shorter.mp4": tones(440, rate=48000, seconds=1.5),
    "longer.mp4": tones(440, rate=48000, seconds=5),
    "later.mkv": ["-itsoffset", "1.25", *tones(600, rate=16000, seconds=1), "-c:a", "flac"],
    "surround.mkv": [*tones(400, 500, 600, 700, 800, 900, rate=48000, seconds=3), "-c:a", "flac"],
    "mp3.avi": [*tones(500, rate=44100, seconds=3), "-c:a", "libmp3lame"],
    "broken_off.mkv": [
        *(*tones(500, rate=48000, seconds=3), "-c:a", "pcm_s16le"),
        *("-bsf:a", "noise=drop=gt(pts*tb\\,1)*lt(pts*tb\\,2)"),
    ],
}


@needs_ffmpeg
@pytest.mark.parametrize("name", SOUNDS)
def test_it_is_what_ffmpeg_hears(tmp_path, name):
    path = make(tmp_path / name, *SOUNDS[name])
    heard, expected = hear(path), as_ffmpeg_hears(path)
    assert heard.dtype == np.float32
    assert len(heard) == len(expected)
    assert np.abs(heard).max() > 0.01
    assert heard == pytest.approx(expected, abs=1e-6)


@needs_ffmpeg
def test_a_segment_has_the_sound_of_its_frames(tmp_path):
    path = make(tmp_path / "a.mp4", *SOUNDS["longer.mp4"])
    whole = hear(path)
    part = hear(path, video_start=1.0, video_end=2.5)
    assert len(part) == 1.5 * RATE
    assert part == pytest.approx(whole[RATE : 2 * RATE + RATE // 2], abs=0.01)
    assert abs(len(hear(path, video_start=2.5)) - (len(whole) - 2.5 * RATE)) <= 1


@needs_ffmpeg
def test_no_sound(tmp_path):
    later = make(tmp_path / "later.mkv", *SOUNDS["later.mkv"])
    assert hear(write_clip(tmp_path / "mute.mp4", width=64, height=64)) is None
    assert hear(later, video_start=0.0, video_end=1.0) is None  # It begins after that.
    assert hear(later, video_start=2.5) is None  # It ended before that.
    assert read_chosen({"video": str(later)}, lambda *_: [0]).sound is None  # Nobody asked.


def test_it_begins_with_the_first_frame(tmp_path):
    late = with_sound(tmp_path / "late.mkv", range(0, 32_000, 160), RATE, first_frame=4)
    heard = hear(late)
    assert len(heard) == 1.5 * RATE
    assert heard[::160] * 32768 == pytest.approx(np.arange(50, 200))


# --- files that mean no good ----------------------------------------------------------------------


def test_times_that_are_far_apart_fill_no_memory(tmp_path):
    far = with_sound(tmp_path / "far.mkv", [*range(0, 3200, 160), 16_000 * 100_000], 16_000)
    with pytest.raises(VideoReadError, match="its sound goes on for more than 3600 s"):
        hear(far)
    assert len(hear(far, video_end=1.0)) == 3200


def test_slow_sound_fills_no_memory(tmp_path):
    """A sample a second: 160 of them are 2.5 million at 16,000 a second."""
    with pytest.raises(VideoReadError, match="or its times are wrong"):
        hear(with_sound(tmp_path / "slow.mkv", [0, 160], 1))


@needs_ffmpeg
def test_damaged_sound_is_an_error_and_not_silence(tmp_path):
    path = make(tmp_path / "a.mkv", *tones(440, rate=48000, seconds=3), "-c:a", "aac")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size > 8]
        middle = packets[len(packets) // 2]
        at, size = data.find(bytes(middle)), middle.size
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    with pytest.raises(VideoReadError, match=r"its sound is damaged 1\.\d+ s into the file"):
        hear(path)
    assert hear(path, video_end=1.0) is not None


@needs_ffmpeg
def test_a_stream_that_begins_in_the_middle_is_heard_from_there_on(tmp_path, monkeypatch):
    path = make(tmp_path / "a.mkv", *SOUNDS["as_wanted.mkv"])
    whole = hear(path)
    pieces = sound._pieces
    assert whole is not None

    def without_the_first(frames, until, rate):
        next(frames)
        return pieces(frames, until, rate)

    monkeypatch.setattr(sound, "_pieces", without_the_first)
    with noting_damage():
        rest = hear(path)
    silent = int(np.flatnonzero(rest)[0])
    assert 0 < silent < RATE / 2
    assert rest[silent:] == pytest.approx(whole[silent:], abs=1e-6)


# --- who hears ------------------------------------------------------------------------------------

RECIPE = "has a recipe with transcripts"


def config_of(model: str, engine: str = "vllm", on: bool = True, **run: str):
    return load_config(
        {
            "vllm": {"model": model},
            "vision": {"use_audio_in_video": on},
            "run": {"engine": engine, **run},
        }
    )


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"])
def test_a_model_that_hears_nothing_is_refused_by_name(model):
    config = config_of(model)
    with pytest.raises(UserError, match=RECIPE) as caught:
        dataset_of(config, load_task(config))
    assert f"vision.use_audio_in_video: vllm.model {model} hears no sound" in str(caught.value)


def test_a_dataset_that_reads_no_sound_is_refused_by_name():
    for config in (
        config_of("x", engine="simulated"),
        config_of("Qwen/Qwen3-Omni-30B-A3B-Instruct", dataset="first_frame"),
    ):
        with pytest.raises(UserError):
            dataset_of(config, load_task(config))
    text = config_of("Qwen/Qwen2.5-7B-Instruct", engine="simulated", dataset="text", task="rewrite")
    assert dataset_of(text, load_task(text)).needs_video is False


def test_an_omni_model_hears():
    for model in ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen3-Omni-30B-A3B-Instruct"):
        config = config_of(model)
        assert dataset_of(config, load_task(config)).__name__ == "VideoDataset"


def test_a_setting_that_is_off_changes_no_fingerprint():
    off, on = (settings_of(config_of("m", "simulated", on)) for on in (False, True))
    assert on == {**off, "vision.use_audio_in_video": True}
    assert off == settings_of(load_config({"vllm": {"model": "m"}, "run": {"engine": "simulated"}}))


@register_task
class Listens(Task):
    name = "listens"

    def build_messages(self, sample):
        videos = [
            {"type": "video", "video": path, "use_audio_in_video": hears}
            for path, hears in sample["shown"]
        ]
        return [{"role": "user", "content": [*videos, {"type": "text", "text": "What is said?"}]}]

    def parse(self, generated_text, sample):
        return {}


def shown(config, *videos: tuple[str, bool]) -> dict:
    sample = {"__key": "k", "__video_uri": "", "shown": videos}
    dataset = create_dataset(config, load_task(config), [sample], SIMULATED_MODEL)
    return dataset[0]["llm_input"]


@needs_ffmpeg
def test_an_item_says_by_itself_whether_it_is_heard(tmp_path):
    loud = str(make(tmp_path / "loud.mp4", *SOUNDS["shorter.mp4"]))
    mute = str(write_clip(tmp_path / "mute.mp4", width=64, height=64, fps=8, seconds=3))
    config = config_of("m", "simulated", on=False, task="listens", dataset="video")
    heard = shown(config, (loud, True))
    assert heard["multi_modal_data"]["audio"][0] == pytest.approx(hear(Path(loud)))
    for videos in ([(loud, False)], [(mute, True)], [(loud, False), (mute, True)]):
        silent = shown(config, *videos)
        assert "audio" not in silent["multi_modal_data"]
    for videos in ([(loud, True), (loud, False)], [(loud, True), (mute, True)]):
        with pytest.raises(ValueError, match="to hear 1 of 2 videos of a prompt"):
            shown(config, *videos)


def test_an_item_for_a_dataset_that_hears_nothing_is_an_error(tmp_path):
    config = config_of("m", "simulated", on=False, task="listens", dataset="qwen_video")
    assert dataset_of(config, load_task(config)) is QwenVideoDataset
    with pytest.raises(ValueError, match="this model hears nothing"):
        shown(config, (str(write_clip(tmp_path / "a.mp4", width=64, height=64)), True))

"""The built-in datasets beside ``qwen_video``, on real clips through the whole workflow."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import ERROR, Run, Splitter, read_jsonl, samples
from PIL import Image
from video_pipeline.config import load_config
from video_pipeline.data import clips
from video_pipeline.data.choosing import create_dataset
from video_pipeline.data.clips import ClipsDataset
from video_pipeline.data.frames import FramesDataset
from video_pipeline.errors import UserError
from video_pipeline.model.processor import SIMULATED_MODEL
from video_pipeline.report.contact_sheet import pictures
from video_pipeline.samples.input import task_sample
from video_pipeline.samples.windows import whole
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task
from video_pipeline.video import header
from video_pipeline.video.reader import probe

SIZE = 112


def write_clip(path: Path, seconds: int, *, fps: int = 10, keyframes_every: int = 10) -> Path:
    """A clip whose picture number ``n`` is grey, ``2 n`` bright."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"qp": "1", "sc_threshold": "0"}
        stream.codec_context.gop_size = keyframes_every
        stream.codec_context.max_b_frames = 0
        for number in range(seconds * fps):
            picture = np.full((SIZE, SIZE, 3), 2 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(run: Run, sample: dict, dataset: str, vision: dict | None = None, **params) -> list:
    """The pictures that the model would see of ``sample``."""
    config = load_config(
        {
            "data": {"input_jsonl": run.folder / "samples.jsonl"},
            "run": {"engine": "simulated", "dataset": dataset},
            "vision": vision or {"fps": 2.0, "max_frames": 4},
            "task_params": params,
        }
    )
    task = load_task(config)
    samples = [task_sample("key", sample, config)]
    return pictures(create_dataset(config, task, samples, SIMULATED_MODEL)[0]["llm_input"])


def brightness(picture) -> int:
    return round(float(np.asarray(picture.image).mean()) / 2)


@pytest.fixture
def clip(run: Run) -> Path:
    return write_clip(run.folder / "clip.mp4", 6)


def test_the_first_frame_is_an_image(run, clip):
    (picture,) = seen(run, {"path": "clip.mp4"}, "first_frame")
    assert (picture.seconds, brightness(picture)) == (None, 0)


def test_the_first_frame_of_a_segment(run, clip):
    (picture,) = seen(run, {"path": "clip.mp4", "video_start": 2.5}, "first_frame")
    assert brightness(picture) == 25


def test_key_frames_with_their_times(run, clip):
    found = seen(run, {"path": "clip.mp4"}, "keyframes")
    # six key frames, a second apart, thinned out to four
    assert [picture.seconds for picture in found] == [0.0, 2.0, 3.0, 5.0]
    assert [brightness(picture) for picture in found] == [0, 20, 30, 50]


def test_key_frames_are_no_more_than_nframes(run, clip):
    found = seen(run, {"path": "clip.mp4"}, "keyframes", {"nframes": 2})
    assert [brightness(picture) for picture in found] == [0, 50]


def test_questions_about_a_first_frame_share_it(run, clip):
    config = load_config(
        {"run": {"engine": "simulated", "task": "questions", "dataset": "first_frame"}}
    )
    sample = task_sample("key", {"path": str(clip)}, config)
    item = create_dataset(config, load_task(config), [sample], SIMULATED_MODEL)[0]
    frames = [one["multi_modal_data"]["image"][0] for one in item["llm_inputs"].values()]
    assert len(frames) == 3
    assert all(frame is frames[0] for frame in frames)


def test_key_frames_of_a_segment(run, clip):
    found = seen(run, {"path": "clip.mp4", "video_start": 1.5, "video_end": 3.9}, "keyframes")
    assert [brightness(picture) for picture in found] == [20, 30]


def test_one_key_frame_is_not_enough(run):
    write_clip(run.folder / "one.mp4", 2, keyframes_every=100)
    found = seen(run, {"path": "one.mp4"}, "keyframes")
    assert [brightness(picture) for picture in found] == [0, 19]


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (SIZE, SIZE), (2 * number,) * 3).save(folder / f"{number:03}.png")
    (folder / "notes.txt").write_text("no image")
    return sorted(f"{folder.name}/{path.name}" for path in folder.glob("*.png"))


def test_another_rate_of_frames_is_another_request(splitting):
    splitting.run.configure(run={"task": "describe", "dataset": "frames", "plugins": []})
    entries = [{**sample, "frames_fps": 2} for sample in samples(3)]
    for sample in entries:
        (splitting.run.folder / sample["path"]).mkdir()
    splitting(entries).finish("0", "1", "2")
    entries[1]["frames_fps"] = 4
    assert splitting(entries).pending == ["1"]


@pytest.mark.parametrize("named", ["images", "images/*.png", "images/00[0-3].png", None])
def test_frames_of_a_folder_a_pattern_and_a_list(run, named):
    images = write_images(run.folder / "images", 4)
    sample = {"path": named or images[::-1], "frames_fps": 4}
    found = seen(run, sample, "frames")
    assert [brightness(p) for p in found] == ([0, 1, 2, 3] if named else [3, 2, 1, 0])
    assert [picture.seconds for picture in found] == [0.0, 0.25, 0.5, 0.75]


ORDERS = [  # as a person means them
    [f"frame_{number}.png" for number in (1, 2, 9, 10, 11, 100)],
    ["a01.png", "a2.png", "a003.png", "a10.png"],
    ["cam1_shot2_9.png", "cam1_shot2_10.png", "cam1_shot10_1.png", "cam2_shot1_1.png"],
    ["IMG_1.JPG", "img_2.jpg", "IMG_3.png", "img_10.jpg"],
    ["\u0661.png", "\u0662.png", "\u0661\u0660.png"],  # Arabic digits
    ["shot 1.png", "shot 1 (1).png", "shot 2.png"],
    ["1.png", "1a.png", "1b.png", "2.png"],
    ["001.png", "01.png", "1.png"],  # of equal value: in the order of characters
]


@pytest.mark.parametrize("names", ORDERS, ids=lambda names: names[0])
@pytest.mark.parametrize("named", ["images", "images/*"])
def test_frames_are_in_natural_order(run, names, named):
    (run.folder / "images").mkdir()
    for number, name in sorted(enumerate(names), key=str):
        Image.new("RGB", (SIZE, SIZE), (2 * number,) * 3).save(run.folder / "images" / name, "PNG")
    found = seen(run, {"path": named}, "frames")
    # an odd number is made even with the last one
    assert [brightness(p) for p in found][: len(names)] == list(range(len(names)))


def test_frames_of_folders_are_taken_folder_by_folder(tmp_path):
    names = [
        "part1/2.png",
        "part1/10.png",
        "part1/x/1.png",
        "part1-b/1.png",
        "part2/1.png",
        "part10/1.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = FramesDataset.images_of(f"{tmp_path}/**/*.png")
    assert [str(Path(path).relative_to(tmp_path)) for path in found] == names


def test_hidden_files_are_no_frames(tmp_path):
    """macOS puts such a file beside each image on some disks."""
    for name in ("1.png", "2.png", "._1.png", "._2.png", ".thumbnail.jpg"):
        (tmp_path / name).touch()
    for source in (str(tmp_path), f"{tmp_path}/*"):
        assert [Path(path).name for path in FramesDataset.images_of(source)] == ["1.png", "2.png"]


def test_a_list_of_frames_stays_as_it_is(run):
    images = write_images(run.folder / "images", 4)
    listed = [images[2], images[0], images[3], images[1]]
    found = seen(run, {"path": listed}, "frames")
    assert [brightness(picture) for picture in found] == [2, 0, 3, 1]


def test_the_log_says_once_that_the_order_is_natural(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(FramesDataset, "_order_was_logged", False)
    for folder, names in {"padded": ("01", "02", "10"), "bare": ("1", "2", "10")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.png").touch()
    FramesDataset.images_of(str(tmp_path / "padded"))
    FramesDataset.images_of([f"{tmp_path}/bare/2.png", f"{tmp_path}/bare/1.png"])
    assert caplog.messages == []  # the same in both orders, and as given
    FramesDataset.images_of(str(tmp_path / "bare"))
    FramesDataset.images_of(f"{tmp_path}/bare/*.png")
    (message,) = caplog.messages
    assert f"{tmp_path}/bare: frames are taken in natural order, 2.png before 10.png" in message


def test_the_job_log_says_that_the_order_is_natural(run):
    for number in (1, 2, 10):
        path = run.folder / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(path)
    run.configure(run={"task": "describe", "dataset": "frames", "plugins": []})
    run.write_samples([{"id": "a", "path": "images"}, {"id": "b", "path": "images/*.png"}])
    run.snakemake()
    assert run.log("infer.rank0").count("natural order, 2.png before 10.png") == 1


def test_a_pattern_that_names_nothing(run):
    with pytest.raises(ValueError, match=r"\*\.png names 0 image\(s\), at least 2 are needed"):
        seen(run, {"path": "nothing/*.png"}, "frames")


@pytest.mark.parametrize("fps", ["fast", 0, -1, True])
def test_a_rate_of_frames_that_cannot_be(run, fps):
    write_images(run.folder / "images", 2)
    with pytest.raises(ValueError, match=f"frames_fps: {fps!r} is no number of images a second"):
        seen(run, {"path": "images", "frames_fps": fps}, "frames")


def test_an_image(run):
    write_images(run.folder / "images", 1)
    (picture,) = seen(run, {"path": "images/000.png"}, "image")
    assert picture.seconds is None


TWO_VIDEOS = """
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Compare(Task):
    name = "compare"

    def build_messages(self, sample):
        return [{"role": "user", "content": [
            {"type": "video", "video": sample["__video_uri"]},
            {"type": "video", "video": sample["other"], "nframes": 2},
            {"type": "image", "image": sample["poster"]},
            {"type": "text", "text": "Which is brighter?"},
        ]}]
"""


def test_several_videos_and_an_image_in_one_conversation(here):
    write_clip(here.folder / "clip.mp4", 6)
    write_clip(here.folder / "other.mp4", 1)
    write_images(here.folder / "images", 1)
    here.write_plugin(TWO_VIDEOS)
    config = load_config(
        {
            "run": {"engine": "simulated", "task": "compare", "plugins": ["plugin.py"]},
            "vision": {"max_frames": 4},
        }
    )
    # paths beside the video's are relative to the same folder
    raw = {"path": "clip.mp4", "other": "other.mp4", "poster": "images/000.png"}
    sample = task_sample("key", raw, config)
    item = create_dataset(config, load_task(config), [sample], SIMULATED_MODEL)[0]
    found = pictures(item["llm_input"])
    assert [brightness(picture) for picture in found] == pytest.approx(
        [0, 0, 20, 39, 59, 0, 9], abs=1
    )


class Showing(Task):
    """Shows one item, and asks nothing."""

    def build_messages(self, sample):
        return [{"role": "user", "content": [sample["shown"], {"type": "text", "text": "?"}]}]


@pytest.mark.parametrize(
    ("vision", "own", "frames"),
    [({"nframes": 4}, {"fps": 1.0}, 6), ({"fps": 1.0}, {"nframes": 4}, 4), ({"nframes": 4}, {}, 4)],
)
def test_an_items_own_number_of_frames_goes_before_that_of_all(run, clip, vision, own, frames):
    config = load_config({"run": {"engine": "simulated"}, "vision": vision})
    shown = {"type": "video", "video": str(clip), **own}
    sample = {**task_sample("key", {"path": str(clip)}, config), "shown": shown}
    item = create_dataset(config, Showing(), [sample], SIMULATED_MODEL)[0]
    assert len(pictures(item["llm_input"])) == frames


@pytest.mark.parametrize("dataset", ["qwen_video", "video"])
@pytest.mark.parametrize(
    "shown",
    [
        {"type": "image_url", "image_url": "large.png"},
        {"image_url": "large.png"},
        {"type": "image_url", "image_url": {"url": "large.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "large.png"}, "max_pixels": 20 * 28 * 28},
    ],
)
def test_an_image_url_is_an_image(run, dataset, shown):
    """Its path starts from ``data.video_root``, and the limits on pixels hold."""
    Image.new("RGB", (2000, 1500)).save(run.folder / "large.png")
    config = load_config(
        {
            "data": {"input_jsonl": run.folder / "samples.jsonl"},
            "run": {"engine": "simulated", "dataset": dataset},
            "vision": {"max_pixels": 50_176},
        }
    )
    as_image = {"type": "image", "image": "large.png"}
    if "max_pixels" in shown:
        as_image["max_pixels"] = shown["max_pixels"]
    sizes = []
    for item in (shown, as_image):
        sample = task_sample("key", {"path": "large.png", "shown": item}, config)
        built = create_dataset(config, Showing(), [sample], SIMULATED_MODEL)[0]["llm_input"]
        (image,) = built["multi_modal_data"]["image"]
        sizes.append(image.size)
    assert sizes[0] == sizes[1]
    assert sizes[0][0] * sizes[0][1] <= as_image.get("max_pixels", 50_176)


# --- clips ---------------------------------------------------------------------------------------


@pytest.fixture
def cut(here: Run, clip: Path) -> Run:
    """A run over clips of two seconds, with the real reader and the simulated engine."""
    here.configure(
        data={"id_field": "id"},
        run={"task": "describe", "dataset": "clips", "plugins": [], "max_error_rate": 1.0},
        task_params={"clip_seconds": 2},
    )
    write_clip(here.folder / "short.mp4", 1)
    (here.folder / "broken.mp4").write_bytes(clip.read_bytes()[:500])
    return here


def test_windows_have_records_and_come_together_again(cut):
    assert probe(str(cut.folder / "clip.mp4")).duration == 6.0
    cut.write_samples(
        [
            {"id": "long", "path": "clip.mp4", "title": "t"},
            {"id": "broken", "path": "broken.mp4"},
            {"id": "cuts", "path": "clip.mp4", "cuts": [4.5, 1]},
            {"id": "short", "path": "short.mp4"},
        ]
    )
    cut.snakemake()
    records = cut.records()
    windows = [
        (r["input"]["id"], r["input"].get("video_start"), r["input"].get("video_end"))
        for r in records
    ]
    assert windows == [
        ("long", 0.0, 2.0),
        ("long", 2.0, 4.0),
        ("long", 4.0, 6.0),
        ("broken", None, None),
        ("cuts", 0.0, 1),
        ("cuts", 1, 4.5),
        ("cuts", 4.5, 6.0),
        ("short", 0.0, 1.0),
    ]
    assert len({record["__key"] for record in records}) == 8
    assert [record["__status"] for record in records].count("error") == 1

    videos = read_jsonl(cut.folder / "results" / "out.videos.jsonl")
    assert [video["input"] for video in videos] == [
        {"id": "long", "path": "clip.mp4", "title": "t"},
        {"id": "broken", "path": "broken.mp4"},
        {"id": "cuts", "path": "clip.mp4", "cuts": [4.5, 1]},
        {"id": "short", "path": "short.mp4"},
    ]
    assert [len(video["clips"]) for video in videos] == [3, 1, 3, 1]
    assert videos[0]["clips"][1]["description"] == records[1]["description"]
    assert videos[1]["clips"][0]["__error"]["stage"] == "read"
    assert "Nothing to be done" in cut.snakemake()


DEADLY_CLIPS = """
import os
import signal
import time
from pathlib import Path

import video_pipeline.video.reader  # Seconds of CPU, which no sample's time limit has room for.
from video_pipeline.data import clips
from video_pipeline.data.registry import register_dataset

duration = clips._duration


def deadly(uri):
    name = Path(uri).name
    if name == "crash.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang.mp4":
        time.sleep(600)
    return duration(uri)


clips._duration = deadly


@register_dataset("deadly_clips")
class DeadlyClips(clips.ClipsDataset):
    pass
"""


def test_files_that_crash_or_hang_the_demuxer_cost_only_themselves(cut, clip):
    """They are not cut; that the reader can read them after all must not pass for an answer about
    their windows."""
    cut.write_plugin(DEADLY_CLIPS)
    cut.configure(
        data={"sample_timeout_s": 20.0},
        run={"dataset": "deadly_clips", "plugins": ["plugin.py"]},
    )
    names = ("clip", "crash", "hang", "short")
    for name in names[1:3]:
        (cut.folder / f"{name}.mp4").write_bytes(clip.read_bytes())
    cut.write_samples([{"id": name, "path": f"{name}.mp4"} for name in names])
    cut.snakemake()
    windows = [f"clip@{start}-{start + 2}" for start in (0.0, 2.0, 4.0)]
    records = cut.records()
    assert [r["__key"] for r in records] == [*windows, "crash", "hang", "short@0.0-1.0"]
    assert [r["__status"] for r in records] == [*["ok"] * 3, "error", "error", "ok"]
    for record in records[3:5]:
        assert record["__error"]["stage"] == "read"
        assert "could not be read when the input was split" in record["__error"]["message"]
    log = cut.log("split")
    assert "line 2 (crash): " in log
    assert "killed by SIGSEGV" in log
    assert "line 3 (hang): " in log
    assert "not ready after 20 s" in log


def test_windows_share_no_frame(cut):
    """Also where a cut falls between two frames, and whatever the length of a frame."""
    write_clip(cut.folder / "odd.mp4", 2, fps=24)
    for path, cuts in (("clip.mp4", [2, 2.25, 4.1, 5.3]), ("odd.mp4", [1 / 3, 0.7, 1.5])):
        config = load_config(
            {
                "data": {"input_jsonl": cut.folder / "samples.jsonl"},
                "run": {"engine": "simulated", "dataset": "clips"},
                "vision": {"fps": 100.0},  # every frame, less one where their number is odd
                "task_params": {"clip_seconds": 2},
            }
        )
        task = load_task(config)
        sample = task_sample("key", {"path": path, "cuts": cuts}, config)
        windows = [
            task_sample("key", raw, config)
            for raw in ClipsDataset.expand(sample, config.task_params)
        ]
        dataset = create_dataset(config, task, windows, SIMULATED_MODEL)
        times = [[p.seconds for p in pictures(item["llm_input"])] for item in dataset]
        for window, seen in zip(windows, times, strict=True):
            assert window["video_start"] <= seen[0] <= seen[-1] < window["video_end"]
        frames = sum(len(seen) for seen in times)
        assert frames >= probe(str(cut.folder / path)).frames - len(windows)


def test_a_window_of_one_frame(cut):
    """It shows the picture that is on the screen, twice."""
    cut.write_samples([{"id": "a", "path": "clip.mp4", "cuts": [2, 2.1]}])
    Splitter(cut).run_all()
    assert [record["__status"] for record in cut.records()] == ["ok"] * 3


@pytest.mark.parametrize("seconds", [None, 0, -1, "2", float("nan")])
def test_a_length_of_windows_that_cannot_be(cut, seconds):
    """It is no fault of the sample."""
    sample = {"path": "clip.mp4", "__key": "k", "__video_uri": str(cut.folder / "clip.mp4")}
    with pytest.raises(UserError, match=r"task_params.clip_seconds: expected the length"):
        ClipsDataset.expand(sample, {"clip_seconds": seconds})


@pytest.mark.parametrize(
    ("segment", "edges"),
    [
        ({"video_end": 11}, [0.0, 2.0, 4.0, 6.0]),
        ({"video_end": 5}, [0.0, 2.0, 4.0, 5.0]),
        ({"video_end": 6}, [0.0, 2.0, 4.0, 6.0]),
        ({"video_start": -3, "video_end": 4}, [0.0, 2.0, 4.0]),
        ({"video_start": -3}, [0.0, 2.0, 4.0, 6.0]),
        ({"video_start": 3, "video_end": 90, "cuts": [4, 7]}, [3.0, 4.0, 6.0]),
    ],
)
def test_windows_lie_within_the_video(cut, segment, edges):
    raw = {"path": "clip.mp4", **segment}
    sample = {**raw, "__key": "k", "__video_uri": str(cut.folder / "clip.mp4")}
    found = ClipsDataset.expand(sample, {"clip_seconds": 2})
    assert [(one["video_start"], one["video_end"]) for one in found] == list(pairwise(edges))
    assert all(whole(one) == raw for one in found)


@pytest.mark.parametrize("says", [3.0, 50.0, None])
def test_a_wrong_header_cuts_nothing_off(cut, monkeypatch, says):
    """The packets tell where the video ends, if it is to be shown for longer than it says."""
    said = header.Header(says, 10.0, "h264")
    monkeypatch.setattr(header, "read_header", lambda uri, **_: said)
    sample = {"video_end": 6, "__key": "k", "__video_uri": str(cut.folder / "clip.mp4")}
    found = ClipsDataset.expand(sample, {"clip_seconds": 2})
    assert [one["video_end"] for one in found] == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(("says", "end"), [(3.0, 3.5), (50.0, 6.0), (None, 6.0)])
def test_a_remote_video_is_copied_only_if_its_header_denies_its_end(monkeypatch, says, end):
    said = header.Header(says, 10.0, "h264")
    monkeypatch.setattr(header, "read_header", lambda uri, **_: said)
    monkeypatch.setattr(clips, "_duration", lambda uri: 3.5)
    sample = {"video_end": 6.0, "__key": "k", "__video_uri": "https://host/clip.mp4"}
    (window,) = ClipsDataset.expand(sample, {"clip_seconds": 10})
    assert window["video_end"] == end


def test_a_video_that_cannot_be_read_is_cut_where_its_sample_says(cut):
    sample = {"video_end": 4, "__key": "k", "__video_uri": str(cut.folder / "broken.mp4")}
    found = ClipsDataset.expand(sample, {"clip_seconds": 2})
    assert [one["video_end"] for one in found] == [2.0, 4.0]


def test_segments_of_one_video_stay_apart(cut):
    cut.configure(data={"id_field": None})
    lines = [{"path": "clip.mp4", "video_end": 4}, {"path": "clip.mp4", "video_end": 4.5}]
    cut.write_samples(lines)
    Splitter(cut).run_all()
    videos = read_jsonl(cut.folder / "results" / "out.videos.jsonl")
    assert [video["input"] for video in videos] == lines
    assert [[c["video_end"] for c in video["clips"]] for video in videos] == [[2.0, 4], [2.0, 4.5]]
    assert len({video["__key"] for video in videos}) == 2


@pytest.mark.parametrize("dataset", ["text", "clips"])
def test_a_stage_goes_on_with_windows(cut, dataset):
    """All windows have the id of their video."""
    cut.settings["stages"] = [
        {"name": "see"},
        {"name": "prose", "run": {"task": "rewrite", "dataset": dataset}},
    ]
    cut.write_samples([{"id": "long", "path": "clip.mp4"}])
    cut.configure()
    cut.snakemake()
    keys = ["long@0.0-2.0", "long@2.0-4.0", "long@4.0-6.0"]
    assert [record["__key"] for record in cut.records()] == keys
    if dataset == "clips":
        (video,) = read_jsonl(cut.folder / "results" / "out.videos.jsonl")
        assert video["input"] == {"id": "long", "path": "clip.mp4"}
        said = [record["input"]["previous"] for record in cut.records()]
        assert [window["previous"] for window in video["clips"]] == said


@pytest.mark.parametrize("is_record", [False, True])
def test_failed_windows_are_an_input(cut, is_record):
    """As ``out.errors.jsonl`` holds them, or without what went wrong; they are not cut again."""
    first = {"number": 0, "of": 2, "segment": {}}
    window = {"id": "a", "path": "clip.mp4", "video_start": 0.0, "video_end": 5.0, "clip": first}
    error = {"__key": "a@0.0-5.0", "__status": "error", "__error": ERROR, "input": window}
    cut.write_samples([error if is_record else window])
    Splitter(cut).run_all()
    assert [(r["__key"], r["input"]) for r in cut.records()] == [("a@0.0-5.0", window)]


@pytest.mark.parametrize(
    ("sample", "seconds", "message"),
    [
        ({"path": "clip.mp4"}, 0, "error: task_params.clip_seconds: expected the length"),
        ({"path": "clip.mp4", "cuts": "1,2"}, 2, "line 1: cuts: expected a list of seconds"),
        ({"path": "clip.mp4", "clip": "mine"}, 2, "line 1: clip: windows have this field"),
        ({"path": ["1.png", "2.png"]}, 2, "line 1: clips cuts one video, and this sample has a"),
    ],
)
def test_cuts_that_cannot_be(cut, sample, seconds, message):
    cut.configure(task_params={"clip_seconds": seconds})
    cut.write_samples([{"id": "a", **sample}])
    assert message in cut.script("split.py", "--num-shards", "1", succeeds=False)

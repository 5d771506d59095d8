"""The dataset ``video``: frames, sizes and prompt are those of the model's own family."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import transformers
from family_reference import Clip, FamilyReference
from PIL import Image
from transformers.video_utils import VideoMetadata
from video_pipeline.config import load_config
from video_pipeline.data.choosing import create_dataset, dataset_of
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.video import VideoDataset
from video_pipeline.engine.vllm.arguments import vllm_config_of
from video_pipeline.engine.vllm.compat import media_tokens
from video_pipeline.engine.vllm.renderer import Renderer
from video_pipeline.errors import TaskError, UserError
from video_pipeline.estimate.counting import CountingPreparer
from video_pipeline.model import frame_rule
from video_pipeline.model.frame_rule import sampled_frames
from video_pipeline.model.processor import SIMULATED_MODEL
from video_pipeline.run.run import DatasetNeeds
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model
from video_pipeline.video.reader import measuring, read_chosen

FPS = 8
SIZE = (48, 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """40 frames."""
    height, width = SIZE
    return write_clip(
        tmp_path_factory.mktemp("clip") / "a.mp4", width=width, height=height, fps=FPS, seconds=5.0
    )


@pytest.fixture(scope="module")
def pixels(clip) -> np.ndarray:
    """All frames of the clip, as FFmpeg decodes them."""
    with av.open(str(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request, tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", request.param)


def config_of(model: object, vision: dict | None = None, dtype: str = "float32", **run: object):
    return load_config(
        {
            "vllm": {"model": str(model), "dtype": dtype, "max_model_len": 16384},
            "run": {"dataset": "video", **run},
            "vision": vision or {},
        }
    )


def llm_input(model: object, clip: object, vision: dict | None = None, **fields) -> dict:
    """What the dataset makes of a clip."""
    config = config_of(model, vision)
    sample = {"__key": "k", "__video_uri": str(clip), "path": str(clip), **fields}
    dataset = create_dataset(config, load_task(config), [sample], str(model))
    return dataset[0]["llm_input"]


def simulated(clip: object, vision: dict | None = None, **fields) -> dict:
    """Without a model: every family leaves the choice open."""
    return llm_input(SIMULATED_MODEL, clip, vision, **fields)


def video_of(llm_input: dict) -> tuple[np.ndarray, dict]:
    (video,) = llm_input["multi_modal_data"]["video"]
    return video


# --- counting ------------------------------------------------------------------------------------


def test_the_users_settings_of_the_processor_are_those_of_the_request(tmp_path, clip):
    model = write_tiny_model(tmp_path / "tiny", "qwen3_vl")
    given = {"num_frames": 6, "size": {"shortest_edge": 4096, "longest_edge": 32768}}
    values = config_of(model).model_dump()
    values["vllm"]["mm_processor_kwargs"] = given
    config = load_config(values)
    sample = {"__key": "k", "__video_uri": str(clip), "path": str(clip)}
    dataset = create_dataset(config, load_task(config), [sample], str(model))
    renderer = Renderer(vllm_config_of(config), {})
    request = renderer.prepare({"": dataset[0]["llm_input"]}, "key")[""]
    family, whole = FamilyReference(model), Clip.of(clip)
    expected = family.ids(family.inputs(whole, fps=None, **given))
    assert request["prompt_token_ids"] == expected
    assert len(expected) < len(family.ids(family.inputs(whole)))


def test_plan_counts_the_tokens_of_the_request_without_pixels(model, clip):
    config = config_of(model)
    request = Renderer(vllm_config_of(config), {}).prepare({"": llm_input(model, clip)}, "key")[""]
    sample = {"__key": "k", "__video_uri": str(clip), "path": str(clip)}
    dataset = create_dataset(config, load_task(config), [sample], str(model))
    preparer = CountingPreparer(config, str(model))
    preparer.start()
    item = preparer.read(dataset, 0)
    frames, _ = video_of(item["llm_input"])
    assert not any(frames.strides[:3])  # It takes no memory.
    (counted,) = preparer.prepare({"": item["llm_input"]}, "key").values()
    assert counted.tokens.prompt == len(request["prompt_token_ids"])
    assert media_tokens(request) == {"video": [counted.tokens.visual]}
    (medium,) = counted.media
    assert (medium.num_frames, medium.info.width) == (10, SIZE[1])


# --- which frames --------------------------------------------------------------------------------


def processor(name: str, **settings):
    return getattr(transformers, name)(**settings)


@pytest.mark.parametrize(
    ("made", "total", "expected"),
    [
        # Of the families that say nothing two frames a second are taken, as vision.fps has it.
        (("InternVLVideoProcessor", {}), 40, 10),
        (("InternVLVideoProcessor", {}), 3, 1),
        (("LlavaOnevisionVideoProcessor", {}), 40, 10),
        (("LlavaOnevisionVideoProcessor", {}), 3, 1),
        (("Qwen2VLVideoProcessor", {}), 40, 10),
        (("Qwen2VLVideoProcessor", {}), 1, 2),
        (("Glm46VVideoProcessor", {}), 1, 2),
        (("Qwen3VLVideoProcessor", {}), 40, 10),
        (("Qwen3VLVideoProcessor", {}), 3, 3),
        (("Gemma4VideoProcessor", {}), 40, 32),
        (("Gemma4VideoProcessor", {}), 31, 31),
        (("Gemma4VideoProcessor", {}), 1, 1),
        (("Glm4vVideoProcessor", {}), 40, 10),
        (("Glm4vVideoProcessor", {}), 1, 2),
        (("Glm46VVideoProcessor", {}), 40, 30),
        (("MiniCPMV4_6VideoProcessor", {}), 40, 5),
        (None, 40, 10),
        (None, 3, 1),
    ],
)
def test_each_family_samples_as_it_does(monkeypatch, made, total, expected):
    own = processor(made[0], **made[1]) if made else None
    monkeypatch.setattr(frame_rule, "video_processor", lambda model: own)
    item = {"fps": 2.0, "max_frames": 256}
    numbers = sampled_frames("m", item, total, float(FPS), total / FPS)
    assert len(numbers) == expected
    assert all(0 <= number < total for number in numbers)
    if made and total == 40:
        names = own.valid_kwargs.__annotations__
        settings = {name: getattr(own, name, None) for name in names}
        if settings.get("num_frames") is None and settings.get("fps") is None:
            settings["fps"] = 2.0
        metadata = VideoMetadata(total_num_frames=total, fps=FPS, duration=total / FPS)
        assert numbers == [int(n) for n in own.sample_frames(metadata=metadata, **settings)]


@pytest.mark.parametrize("name", ["Qwen3VL", "Gemma4", "Glm46V", "LlavaOnevision", "MiniCPMV4_6"])
@pytest.mark.parametrize("given", [{"num_frames": 6}, {"fps": 4}])
def test_the_users_settings_of_the_processor_replace_the_familys(monkeypatch, name, given):
    own = processor(f"{name}VideoProcessor")
    monkeypatch.setattr(frame_rule, "video_processor", lambda model: own)
    settings = {name: getattr(own, name, None) for name in own.valid_kwargs.__annotations__}
    settings |= {"fps": None, "num_frames": None, **given}
    metadata = VideoMetadata(total_num_frames=40, fps=FPS, duration=40 / FPS)
    expected = [int(n) for n in own.sample_frames(metadata=metadata, **settings)]
    item = {"fps": 2.0, "max_frames": 256}
    numbers = sampled_frames("m", item, 40, float(FPS), 40 / FPS, settings=given)
    assert numbers == expected


def test_the_dataset_hands_them_on(clip):
    for given in ({"num_frames": 6}, {"fps": 1, "videos_kwargs": {"fps": None, "num_frames": 6}}):
        config = load_config(
            {
                "run": {"dataset": "video", "engine": "simulated"},
                "vllm": {"mm_processor_kwargs": given},
            }
        )
        sample = {"__key": "k", "__video_uri": str(clip), "path": str(clip)}
        dataset = create_dataset(config, load_task(config), [sample], SIMULATED_MODEL)
        frames, _ = video_of(dataset[0]["llm_input"])
        assert len(frames) == 6


def test_nframes_and_max_frames_thin_out(monkeypatch):
    own = processor("Gemma4VideoProcessor")
    monkeypatch.setattr(frame_rule, "video_processor", lambda model: own)
    for item in ({"nframes": 4}, {"fps": 2.0, "max_frames": 4}):
        assert sampled_frames("m", item, 320, 8.0, 40.0) == [0, 100, 210, 310]
    # They add none.
    assert len(sampled_frames("m", {"nframes": 64}, 320, 8.0, 40.0)) == 32


def test_frames_that_belong_together_stay_pairs(monkeypatch):
    own = processor("Qwen3VLVideoProcessor")
    monkeypatch.setattr(frame_rule, "video_processor", lambda model: own)
    assert len(sampled_frames("m", {"nframes": 5}, 40, 8.0, 5.0)) == 4


def test_nframes_is_the_number_where_the_family_leaves_it_open(monkeypatch):
    own = processor("LlavaOnevisionVideoProcessor")
    monkeypatch.setattr(frame_rule, "video_processor", lambda model: own)
    assert len(sampled_frames("m", {"nframes": 20}, 40, 8.0, 5.0)) == 20


def test_frames_are_those_of_the_file(clip, pixels):
    frames, metadata = video_of(simulated(clip))
    assert metadata["frames_indices"] == list(range(0, 40, 4))
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, pixels[::4])
    assert (metadata["fps"], metadata["total_num_frames"]) == (FPS, 40)
    assert metadata["duration"] == 5.0
    assert metadata["do_sample_frames"] is False


def test_a_segment_has_the_times_of_the_video(clip, pixels):
    frames, metadata = video_of(simulated(clip, video_start=1.0, video_end=3.0))
    assert metadata["total_num_frames"] == 17
    assert metadata["frames_indices"][0] == FPS
    assert np.array_equal(frames, pixels[metadata["frames_indices"]])


def test_frames_come_in_the_order_of_the_family_and_as_often(clip, pixels):
    numbers = [5, 2, 2, 39]
    frames, metadata, rate, _ = read_chosen({"video": str(clip)}, lambda *video: numbers)
    assert np.array_equal(frames, pixels[numbers])
    assert metadata["frames_indices"] == numbers
    assert rate == pytest.approx(4 / 40 * FPS)


def test_what_a_family_is_told_of_a_video(clip):
    told = []
    read_chosen({"video": str(clip)}, lambda *video: told.append(video) or [0])
    assert told == [(40, FPS, 5.0)]


@pytest.mark.parametrize("rate", [24, Fraction(30000, 1001)])
def test_the_rate_of_a_matroska_file_is_that_of_its_header(tmp_path, rate):
    """Its times are whole milliseconds: by them two seconds last 1.999."""
    clip = write_clip(tmp_path / "a.mkv", width=64, height=48, fps=rate, seconds=2.0)
    told = []
    read_chosen({"video": str(clip)}, lambda *video: told.append(video) or [0])
    ((total, fps, duration),) = told
    with av.open(str(clip)) as container:
        assert fps == float(container.streams.video[0].average_rate) == pytest.approx(float(rate))
    assert duration == total / fps


def test_of_uneven_spacing_the_picture_on_the_screen_is_taken(tmp_path):
    """Frames at 0, 1 and 4 s: what stands for even times."""
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        for grey, seconds in ((0, 0), (100, 1), (200, 4), (50, 5), (150, 6)):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), grey, np.uint8), "rgb24")
            frame.pts = seconds
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, metadata, *_ = read_chosen({"video": str(path)}, lambda total, *_: list(range(total)))
    times = [index / metadata["fps"] for index in metadata["frames_indices"]]
    shown = {0: 0, 1: 100, 2: 100, 3: 100, 4: 200, 5: 50, 6: 150}
    assert [int(frame.mean()) for frame in frames] == [shown[int(time)] for time in times]


def test_large_frames_are_made_smaller_in_their_shape(clip):
    frames, _ = video_of(simulated(clip, {"max_pixels": 768, "min_pixels": 1}))
    assert frames.shape[1:] == (24, 32, 3)
    frames, _ = video_of(simulated(clip))
    assert frames.shape[1:3] == SIZE


def test_measured_frames_have_the_same_shape(clip):
    whole, metadata = video_of(simulated(clip))
    with measuring():
        black, measured = video_of(simulated(clip))
    assert black.shape == whole.shape
    assert measured == metadata


# --- messages ------------------------------------------------------------------------------------


class Asking(Task):
    """Asks what a test says."""

    name = "asking"

    def build_messages(self, sample):
        return self.params["messages"]


def asked(messages, **vision) -> dict | list:
    config = config_of(SIMULATED_MODEL, vision, engine="simulated")
    sample = {"__key": "k", "__video_uri": "/none.mp4"}
    dataset = create_dataset(config, Asking({"messages": messages}), [sample], SIMULATED_MODEL)
    return dataset[0]


def says(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def test_conversations_share_what_they_show(clip):
    video = {"type": "video", "video": str(clip)}
    item = asked({"one": says(video), "two": says(video, {"type": "text", "text": "Why?"})})
    one, two = item["llm_inputs"].values()
    assert one["multi_modal_data"] is two["multi_modal_data"]
    other = asked({"one": says(video), "two": says({**video, "max_frames": 4}, video)})
    (first,), (fewer, again) = (
        each["multi_modal_data"]["video"] for each in other["llm_inputs"].values()
    )
    assert first is again
    assert len(fewer[0]) == 4


def test_images_are_read_upright_and_bounded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (200, 100), (9, 9, 9)).save(path)
    item = asked(says({"type": "image", "image": str(path)}), max_pixels=5000, min_pixels=1)
    (image,) = item["llm_input"]["multi_modal_data"]["image"]
    assert image.size == (100, 50)
    assert item["llm_input"]["mm_processor_kwargs"] == {}


def test_a_list_of_images_of_several_sizes_is_no_video(tmp_path):
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, width in zip(images, (64, 48), strict=True):
        Image.new("RGB", (width, 32)).save(path)
    with pytest.raises(ValueError, match=r"of one size; these are: 48 x 32, 64 x 32"):
        asked(says({"type": "video", "video": list(map(str, images))}))
    with pytest.raises(ValueError, match="no image"):
        asked(says({"type": "video", "video": []}))
    with pytest.raises(ValueError, match="a path, an address or a list of images: 5"):
        asked(says({"type": "video", "video": 5}))


def test_a_part_that_is_nothing_known():
    with pytest.raises(TaskError, match="must be a dict with exactly one of"):
        asked(says({"type": "txt", "txt": "x"}))


def test_an_omni_model_is_told_the_rate(clip, tmp_path):
    processor("Qwen2VLVideoProcessor").save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"processor_class": "Qwen2_5OmniProcessor"})
    )
    dataset = VideoDataset(
        samples=(),
        task=Asking(),
        model=str(tmp_path),
        video_field="path",
        vision_kwargs={"fps": 2.0, "max_frames": 256},
        params={},
    )
    video = {"type": "video", "video": str(clip)}
    frame_rule.video_processor.cache_clear()
    one = [dataset.visual(video, {})]
    told = dataset.llm_inputs({"": says(*one)})[""]["mm_processor_kwargs"]
    assert told == {"videos_kwargs": {"do_sample_frames": False, "fps": 2.0}}
    with pytest.raises(ValueError, match=r"0\.8, 2 frames a second"):
        dataset.llm_inputs({"": says(*one, {**one[0], "fps": 1.0})})


# --- who gets it ---------------------------------------------------------------------------------


class Naming(Task):
    """Names the dataset that it would have anyway."""

    name = "naming"
    dataset_name = "qwen_video"

    def build_messages(self, sample):
        return says({"type": "text", "text": "?"})


@pytest.fixture
def glm(tmp_path) -> Path:
    """A model of another family: its configuration."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glm4v"}))
    return tmp_path


def test_a_task_that_names_none_gets_the_dataset_of_the_model(model, glm):
    for folder, expected in ((model, QwenVideoDataset), (glm, VideoDataset)):
        config = config_of(folder, dataset=None)
        for task in (load_task(config), Asking()):
            assert dataset_of(config, task) is expected
            needs = DatasetNeeds.of(config, task)
            assert needs.name == ("qwen_video" if folder == model else "video")
            assert needs.reads_files
            assert needs.needs_video


def test_a_task_that_names_qwen_video_is_refused_with_the_way_out(model, glm):
    assert dataset_of(config_of(model, dataset=None), Naming()) is QwenVideoDataset
    with pytest.raises(UserError, match=r"is no Qwen-VL model.*use run.dataset: video"):
        dataset_of(config_of(glm, dataset=None), Naming())
    assert dataset_of(config_of(glm), Naming()) is VideoDataset


def test_names_dataset():
    assert not Asking().names_dataset
    assert Naming().names_dataset
    own = Asking()
    own.dataset_name = "mine"
    assert own.names_dataset
    assert not Describe().names_dataset


def test_a_model_without_a_video_processor_says_so_once(tmp_path, caplog):
    frame_rule.video_processor.cache_clear()
    for _ in range(2):
        assert frame_rule.video_processor(str(tmp_path)) is None
    assert len(caplog.messages) == 1
    assert "vision.fps" in caplog.messages[0]


def test_one_frame_at_least_whatever_the_rule_says(monkeypatch):
    rule = SimpleNamespace(
        valid_kwargs=SimpleNamespace(__annotations__={}), sample_frames=lambda **_: []
    )
    monkeypatch.setattr(frame_rule, "video_processor", lambda model: rule)
    assert sampled_frames("m", {"fps": 2.0}, 5, 8.0, 1.0) == [2]


# --- keys without an effect -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings_of_family(tmp_path_factory):
    """Makes the folder of a family with its configuration and its video processor."""

    def make(model_type: str, video_processor: str) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        processor(video_processor).save_pretrained(folder)
        return folder

    return make


SET = {"fps": 1.0, "min_frames": 8, "min_pixels": 3136, "total_pixels": 1 << 20, "resize": "exact"}


@pytest.mark.parametrize(
    ("family", "dataset", "vision", "ignored"),
    [
        (("glm4v", "Glm4vVideoProcessor"), "video", SET, ("fps", *list(SET)[1:])),
        (("gemma4", "Gemma4VideoProcessor"), "clips", {"fps": 1.0, "max_frames": 8}, ("fps",)),
        (("gemma4", "Gemma4VideoProcessor"), "frames", SET, tuple(SET)[1:]),
        (("gemma4", "Gemma4VideoProcessor"), "video", {"nframes": 8, "fps": None}, ()),
        (("llava_onevision", "LlavaOnevisionVideoProcessor"), "video", SET, tuple(SET)[1:]),
        (("glm4v", "Glm4vVideoProcessor"), "video", {"max_frames": 8, "max_pixels": 12544}, ()),
        (("qwen2_5_vl", "Qwen2VLVideoProcessor"), "qwen_video", SET, ()),
        (("qwen3_vl", "Qwen3VLVideoProcessor"), "video", {"fps": 1.0}, ("fps",)),
    ],
)
def test_split_names_the_keys_without_an_effect(
    splitting, settings_of_family, caplog, family, dataset, vision, ignored
):
    folder = settings_of_family(*family)
    run = splitting.run
    run.configure(vllm={"model": str(folder)}, vision=vision, task_params={"clip_seconds": 5})
    run.configure(run={"task": "describe", "dataset": dataset, "engine": "vllm"})
    (run.folder / "0.mp4").touch()
    splitting([{"id": 0, "path": "0.mp4"}], num_shards=1)
    said = [message for message in caplog.messages if "without effect" in message]
    names = [", ".join(f"vision.{name}" for name in ignored)] if ignored else []
    assert [message.partition(": set, but without effect")[0] for message in said] == names

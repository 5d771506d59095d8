"""What each family is given of videos, frames, images and text: the ids and pixels of its own
processor in transformers, for the frames that FFmpeg decodes. vLLM's renderer, and no engine."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_reference import ASKED, IMAGE, VIDEO, Clip, FamilyReference
from numbered import write_numbered
from PIL import Image
from video_pipeline.config import load_config
from video_pipeline.data.choosing import create_dataset, dataset_name
from video_pipeline.engine.base import RequestRefused
from video_pipeline.engine.vllm.arguments import vllm_config_of
from video_pipeline.engine.vllm.compat import media_of, media_tokens
from video_pipeline.engine.vllm.renderer import Renderer
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.describe import Describe
from video_pipeline.testing.chat_templates import make_template
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.parts import TEXT, make_byte_tokenizer
from video_pipeline.testing.tiny_model import FAMILIES, write_tiny_model

pytestmark = pytest.mark.slow

FPS = 8
BFLOAT16 = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6")
ONE_VIDEO = ("glm4v", "glm46v")
"""vLLM takes one video a prompt of these."""
QWEN_VL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


class Family:
    """A family on our side, and as transformers has it."""

    def __init__(self, name: str, model: Path) -> None:
        self.name = name
        self.model = model
        self.reference = FamilyReference(model)

    def config(self, dataset: str = "video", **sections: Any) -> Any:
        dtype = "bfloat16" if self.name in BFLOAT16 else "float32"
        vllm = {"model": str(self.model), "dtype": dtype, "max_model_len": 32768}
        return load_config({"vllm": vllm, "run": {"dataset": dataset}, **sections})

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(vllm_config_of(self.config()), {})

    def llm_input(
        self, sample: dict[str, Any], dataset: str = "video", task: Task | None = None, **sections
    ) -> dict[str, Any]:
        """What a dataset makes of a sample."""
        config = self.config(dataset, **sections)
        sample = {"__key": "k", "__video_uri": sample.get("path"), **sample}
        created = create_dataset(config, task or Describe({}), [sample], str(self.model))
        return created[0]["llm_input"]

    def request(self, llm_input: dict[str, Any]) -> dict[str, Any]:
        return self._renderer.prepare({"": llm_input}, "key")[""]

    def assert_equal(self, llm_input: dict[str, Any], inputs: Any) -> None:
        """The tokens and pixels of an input are those that the family's processor made."""
        request = self.request(llm_input)
        ids = self.reference.alike(request["prompt_token_ids"])
        assert ids == self.reference.ids(inputs)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name = request.param
    return Family(name, write_tiny_model(tmp_path_factory.mktemp(name) / "tiny", name))


EDGES: dict[str, dict[str, Any]] = {
    "one frame": {"width": 64, "height": 48, "fps": FPS, "seconds": 1 / FPS},
    "three frames": {"width": 64, "height": 48, "fps": FPS, "seconds": 3 / FPS},
    "portrait": {"width": 54, "height": 96, "fps": FPS, "seconds": 2.0},
    "odd": {"width": 31, "height": 17, "fps": FPS, "seconds": 1.0},
    "long": {"width": 32, "height": 32, "fps": 30, "seconds": 40.0},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    options = {"codec": "libx264rgb", "pixel_format": "rgb24"}  # No colour is lost.
    made = {
        name: write_clip(folder / f"{name}.mkv", seed=seed, **options, **arguments)
        for seed, (name, arguments) in enumerate(EDGES.items())
    }
    five = {"fps": FPS, "seconds": 5.0}
    made["plain"] = write_clip(folder / "a.mp4", width=64, height=48, **five)
    made["other"] = write_clip(folder / "b.mp4", width=54, height=96, seed=9, **five)
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 2.0, 2.1, 2.2]
    made["uneven"] = write_numbered(folder / "uneven.mkv", 8, times=times, size=(64, 64))
    return made


def video_of(llm_input: dict[str, Any]) -> Clip:
    """The only video of an input."""
    (video,) = llm_input["multi_modal_data"]["video"]
    return Clip(*video)


def pixels_of(item: Any) -> torch.Tensor:
    (name,) = [name for name in item if "pixel_values" in name]
    return getattr(item[name], "data", item[name])


def test_tokens_and_pixels_are_those_of_the_models_own_processor(family, clips):
    """The processor samples the frames of the whole clip itself."""
    llm_input = family.llm_input({"path": str(clips["plain"])})
    clip = Clip.of(clips["plain"])
    inputs = family.reference.inputs(clip)
    family.assert_equal(llm_input, inputs)
    assert np.array_equal(video_of(llm_input).frames, clip.frames[family.reference.sampled(clip)])

    ((_, _, item),) = media_of(family.request(llm_input))
    ours, theirs = pixels_of(item), pixels_of(inputs)
    if family.name == "minicpmv4_6":  # Its processor lays the frames side by side.
        ours = torch.cat(list(ours), dim=-1)[None]
    if ours.dtype == torch.uint8:  # They are normalised on the device.
        raw = family.reference.inputs(clip, do_rescale=False, do_normalize=False)
        theirs = pixels_of(raw).to(torch.uint8)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-6)
    if "second_per_grid_ts" in item:
        told = inputs.get("second_per_grid_ts", inputs.get("video_second_per_grid"))
        assert item["second_per_grid_ts"].data.item() == pytest.approx(float(told[0]))


@pytest.mark.parametrize("name", EDGES)
def test_clips_of_every_shape(family, clips, name):
    llm_input = family.llm_input({"path": str(clips[name])}, vision={"max_frames": 8})
    shown, clip = video_of(llm_input), Clip.of(clips[name])
    assert 1 <= len(shown.frames) <= 8
    assert np.array_equal(shown.frames, clip.frames[shown.told["frames_indices"]])
    family.assert_equal(llm_input, family.reference.inputs(shown))


def test_a_variable_rate(family, clips):
    llm_input = family.llm_input({"path": str(clips["uneven"])}, vision={"max_frames": 8})
    family.assert_equal(llm_input, family.reference.inputs(video_of(llm_input)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five images, which are the frames of a video."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return paths


class Asking(Task):
    """Shows what a test says."""

    name = "asking"

    def build_messages(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"role": "system", "content": Describe.system},
            {"role": "user", "content": self.params["content"]},
        ]


def test_several_videos_and_an_image(family, clips, pictures):
    names = ["plain"] if family.name in ONE_VIDEO else ["plain", "other"]
    shown = [{"type": "video", "video": str(clips[name])} for name in names]
    image = {"type": "image", "image": str(pictures[0])}
    told = {"type": "text", "text": "And: "}
    task = Asking({"content": [shown[0], image, told, *shown[1:], ASKED]})
    llm_input = family.llm_input({}, task=task, vision={"max_frames": 4})
    inputs = family.reference.inputs(
        *(Clip(*video) for video in llm_input["multi_modal_data"]["video"]),
        content=[VIDEO, IMAGE, told, *[VIDEO] * len(shown[1:]), ASKED],
        images=[Image.open(pictures[0])],
    )
    family.assert_equal(llm_input, inputs)


@pytest.mark.parametrize("family", ONE_VIDEO, indirect=True, scope="module")
def test_more_videos_than_vllm_takes(family, clips):
    video = {"type": "video", "video": str(clips["plain"])}
    llm_input = family.llm_input({}, task=Asking({"content": [video, video, ASKED]}))
    with pytest.raises(RequestRefused, match=r"At most 1 video\(s\) may be provided"):
        family.request(llm_input)


# --- the other datasets, which read for any family ------------------------------------------------

of_other_families = pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in QWEN_VL], indirect=True, scope="module"
)


@of_other_families
def test_a_window(family, clips):
    sample = {
        **{"path": str(clips["plain"]), "video_start": 1.0, "video_end": 3.0},
        "clip": {"number": 1, "of": 2, "segment": {}},
    }
    llm_input = family.llm_input(sample, "clips", vision={"max_frames": 8})
    shown, clip = video_of(llm_input), Clip.of(clips["plain"])
    numbers = shown.told["frames_indices"]
    assert set(numbers) <= set(range(8, 24))  # The frame at its end is that of the next window.
    assert np.array_equal(shown.frames, clip.frames[numbers])
    family.assert_equal(llm_input, family.reference.inputs(shown))


@of_other_families
@pytest.mark.parametrize("way", ["folder", "list", "message"])
def test_images_are_a_video(family, pictures, way):
    """The dataset ``frames``, and a list of images in a message of the dataset ``video``."""
    images = [str(path) for path in pictures]
    if way == "message":
        part = {"type": "video", "video": images, "sample_fps": 4.0}
        task = Asking({"content": [part, ASKED]})
        llm_input = family.llm_input({}, task=task)
    else:
        path = images if way == "list" else str(pictures[0].parent)
        llm_input = family.llm_input({"path": path, "frames_fps": 4.0}, "frames")
    shown = video_of(llm_input)
    assert np.array_equal(shown.frames, np.stack([np.asarray(Image.open(p)) for p in pictures]))
    assert (shown.told["fps"], shown.told["frames_indices"]) == (4.0, [0, 1, 2, 3, 4])
    family.assert_equal(llm_input, family.reference.inputs(shown))


@of_other_families
def test_key_frames(family, clips):
    llm_input = family.llm_input(
        {"path": str(clips["long"])}, "keyframes", vision={"max_frames": 4}
    )
    shown, clip = video_of(llm_input), Clip.of(clips["long"])
    numbers = shown.told["frames_indices"]
    assert len(numbers) == 4
    assert np.array_equal(shown.frames, clip.frames[numbers])
    family.assert_equal(llm_input, family.reference.inputs(shown))


@of_other_families
@pytest.mark.parametrize("dataset", ["image", "first_frame"])
def test_single_pictures(family, clips, pictures, dataset):
    path = {"image": pictures[0], "first_frame": clips["plain"]}[dataset]
    llm_input = family.llm_input({"path": str(path)}, dataset)
    expected = {
        "image": lambda: Image.open(path),
        "first_frame": lambda: Image.fromarray(Clip.of(path).frames[0]),
    }[dataset]()
    (shown,) = llm_input["multi_modal_data"]["image"]
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    content = [IMAGE, ASKED]
    family.assert_equal(llm_input, family.reference.inputs(content=content, images=[expected]))


@of_other_families
def test_text(family):
    llm_input = family.llm_input({}, "text", task=Asking({"content": [ASKED]}))
    family.assert_equal(llm_input, family.reference.inputs(content=[ASKED]))


# --- a family that transformers does not know -----------------------------------------------------

CODE = """
from transformers import PretrainedConfig, Qwen2Config

class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **more):
        super().__init__(**more)
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.llm_config = self.text_config = Qwen2Config(**(llm_config or {}))
"""
TEMPLATE = make_template(image="<image>\\n", video="<video>\\n")


def write_internvl(folder: Path, *special: str) -> Path:
    """The files of an InternVL as it was first published, but for its weights: its configuration is
    code, and its processor is vLLM's own."""
    folder.mkdir()
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    tokenizer = make_byte_tokenizer((*tokens, *special))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "code.py").write_text(CODE)
    settings = {
        **{"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"},
        "auto_map": {"AutoConfig": "code.InternVLChatConfig"},
        **{"downsample_ratio": 0.5, "dynamic_image_size": True, "use_thumbnail": True},
        **{"min_dynamic_patch": 1, "max_dynamic_patch": 12},
        "llm_config": {"architectures": ["Qwen2ForCausalLM"], **TEXT},
        "vision_config": {"patch_size": 14, "image_size": 448},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def prepared_by_vllm(model: Path, clip: Path) -> dict[str, Any]:
    """The request about a clip, with the model's own code."""
    vllm = {"model": str(model), "trust_remote_code": True, "max_model_len": 32768}
    config = load_config({"vllm": vllm})
    assert dataset_name(config, Describe({})) == "video"
    sample = {"__key": "k", "__video_uri": str(clip), "path": str(clip)}
    llm_input = create_dataset(config, Describe({}), [sample], str(model))[0]["llm_input"]
    return Renderer(vllm_config_of(config), {}).prepare({"": llm_input}, "key")[""]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No question is asked at the terminal."""

    def refuse(*_: Any) -> None:
        raise AssertionError("it asks at the terminal")

    monkeypatch.setattr("builtins.input", refuse)


def test_a_model_with_code_of_its_own(tmp_path, clips, nobody):
    model = write_internvl(tmp_path / "model", "<|video_pad|>")
    request = prepared_by_vllm(model, clips["plain"])
    # Two frames a second, of 448 / 14 / 2 tokens along each side.
    assert media_tokens(request) == {"video": [10 * 16 * 16]}


def test_a_model_that_takes_no_video(tmp_path, clips, nobody):
    model = write_internvl(tmp_path / "model")
    with pytest.raises(RequestRefused, match=r"takes no video: .* run.dataset: first_frame"):
        prepared_by_vllm(model, clips["plain"])

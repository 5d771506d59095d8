"""A dataset that prepares videos for the Qwen-VL line refuses other models, by name."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from video_pipeline.config import load_config
from video_pipeline.data.base import BaseDataset
from video_pipeline.data.choosing import dataset_of
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import get_dataset, register_dataset
from video_pipeline.data.video import VideoDataset
from video_pipeline.errors import UserError
from video_pipeline.model import family
from video_pipeline.model.family import family_of, fetch_family, is_qwen_vl
from video_pipeline.model.token_budget import check_budget_of_model, visual_tokens
from video_pipeline.run.run import DatasetNeeds
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.tiny_model import FAMILIES, write_tiny_model


def model(folder: Path, **files: dict) -> Path:
    """A model of nothing but some configuration files."""
    folder.mkdir()
    for name, settings in files.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    return folder


def config_of(folder: Path, **run: object):
    return load_config({"vllm": {"model": str(folder)}, "run": run})


OF_THE_LINE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


@pytest.mark.parametrize("made", FAMILIES)
def test_made_models_are_of_the_line_or_not(tmp_path, made):
    folder = write_tiny_model(tmp_path / "model", made)
    config = config_of(folder)
    assert is_qwen_vl(config) is (made in OF_THE_LINE)
    assert (family_of(config) == "qwen_omni") is (made in ("qwen2_5_omni", "qwen3_omni_moe"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"preprocessor_config": {"processor_class": "Qwen2VLProcessor"}}, True),
        ({"preprocessor_config": {"processor_class": "Qwen2_5_VLProcessor"}}, True),
        ({"preprocessor_config": {"processor_class": "Qwen2_5OmniProcessor"}}, False),
        ({"processor_config": {"processor_class": "Gemma4Processor"}}, False),
        ({"tokenizer_config": {"processor_class": "InternVLProcessor"}}, False),
        # a fine-tune under a name of its own that says what prepares its inputs
        (
            {
                "config": {"model_type": "mine"},
                "preprocessor_config": {"processor_class": "Qwen3VLProcessor"},
            },
            True,
        ),
        ({"config": {"model_type": "qwen3_5_moe"}, "preprocessor_config": {}}, True),
        ({"config": {"model_type": "qwen3_vl_moe"}}, True),
        ({"config": {"model_type": "qwen3"}}, False),
        ({"config": {"model_type": "glm4v"}}, False),
        ({"config": {}}, None),
        ({}, None),
    ],
)
def test_a_model_is_known_by_its_files(tmp_path, files, expected):
    assert is_qwen_vl(config_of(model(tmp_path / "model", **files))) is expected


def test_where_no_model_is_loaded_none_is_refused(tmp_path):
    folder = model(tmp_path / "model", config={"model_type": "glm4v"})
    config = config_of(folder, engine="simulated")
    assert is_qwen_vl(config) is None
    assert dataset_of(config, load_task(config)) is QwenVideoDataset


@pytest.mark.parametrize(
    ("dataset", "given", "decides"),
    [
        ("qwen_video", {"max_pixels": 5000}, "max_pixels has no effect, .* vision.max_pixels "),
        ("clips", {"videos_kwargs": {"fps": 1}}, "fps has no effect, .* vision.fps decides"),
        ("image", {"size": {"longest_edge": 5000}}, "size has no effect"),
        ("video", {"do_sample_frames": True}, "do_sample_frames has no effect"),
        ("video", {"num_frames": 8, "size": {"longest_edge": 5000}}, None),
        ("qwen_video", {"images_kwargs": {"do_convert_rgb": True}}, None),
        ("text", {"fps": 1}, None),
    ],
)
def test_what_would_reach_the_processor_too_late_is_refused(tmp_path, dataset, given, decides):
    settings = {"model": "Qwen/Qwen2.5-VL-7B-Instruct", "mm_processor_kwargs": given}
    config = load_config({"vllm": settings, "run": {"dataset": dataset}})
    if decides is None:
        dataset_of(config, load_task(config))
        return
    with pytest.raises(UserError, match=rf"vllm.mm_processor_kwargs: {decides}"):
        dataset_of(config, load_task(config))


@pytest.mark.parametrize("name", ["qwen_video", "clips", "keyframes"])
def test_an_odd_number_of_frames_is_refused_where_they_go_in_pairs(tmp_path, name):
    settings = {"run": {"dataset": name}, "vllm": {"model": "Qwen/Qwen2.5-VL-7B-Instruct"}}
    for nframes in (2, 6):
        config = load_config({**settings, "vision": {"nframes": nframes}})
        dataset_of(config, load_task(config))
    config = load_config({**settings, "vision": {"nframes": 5}})
    with pytest.raises(UserError, match=rf"vision.nframes: 5 is odd.*{name}.* set 4 or 6"):
        dataset_of(config, load_task(config))
    other = model(tmp_path / "model", config={"model_type": "glm4v"})
    takes_any = {"model": str(other)}
    shows_all = [({"dataset": each}, settings["vllm"]) for each in ("first_frame", "frames")]
    for run, vllm in (({"dataset": "video"}, settings["vllm"]), ({}, takes_any), *shows_all):
        config = load_config({"run": run, "vllm": vllm, "vision": {"nframes": 5}})
        dataset_of(config, load_task(config))


class OfItsOwn(QwenVideoDataset):
    """Makes prompts of its own, for the Qwen-VL line."""

    def llm_inputs(self, conversations):
        return {part: self.read(messages) for part, messages in conversations.items()}


@pytest.mark.parametrize("name", ["qwen_video", "of_its_own"])
def test_another_model_is_refused_by_name(tmp_path, forget_plugins, name):
    register_dataset("of_its_own")(OfItsOwn)
    folder = model(tmp_path / "model", config={"model_type": "glm4v"})
    config = config_of(folder, dataset=name)
    with pytest.raises(UserError) as caught:
        dataset_of(config, load_task(config))
    assert f"vllm.model: {folder} is no Qwen-VL model" in str(caught.value)
    assert repr(name) in str(caught.value)


class Last(QwenVideoDataset):
    """The last second."""

    version = 7

    def visual(self, part, sample):
        return super().visual({"video_start": 4.0, **part}, sample)


@pytest.mark.parametrize("name", ["clips", "frames", "image", "keyframes", "first_frame", "last"])
def test_what_only_shows_something_else_serves_any_model(tmp_path, forget_plugins, name):
    register_dataset("last")(Last)
    folder = model(tmp_path / "model", config={"model_type": "glm4v"})
    config = config_of(folder, dataset=name)
    dataset = dataset_of(config, load_task(config))
    own = get_dataset(name)
    assert issubclass(dataset, VideoDataset)
    assert issubclass(dataset, own)
    assert (dataset.__name__, dataset.__module__) == (own.__name__, own.__module__)
    assert dataset.version == own.version + VideoDataset.version
    assert dataset.sample_fields == own.sample_fields


def test_a_dataset_of_the_users_that_reads_by_itself_is_not(tmp_path):
    class Mine(QwenVideoDataset):
        def read(self, messages):
            return {"multi_modal_data": {}, "mm_processor_kwargs": {}}

    class Own(BaseDataset):
        def __getitem__(self, i):
            return {}

    folder = model(tmp_path / "model", config={"model_type": "glm4v"})
    for dataset in (Mine, Own):
        register_dataset(dataset.__name__)(dataset)
        config = config_of(folder, dataset=dataset.__name__)
        assert dataset_of(config, load_task(config)) is dataset


HUB = "lab/glm"


@pytest.fixture
def cached(monkeypatch):
    """The folder of a model of the hub that is here; tests set it."""
    here: dict[str, Path] = {}

    def snapshot_download(name, *, revision, local_files_only=False, **_):
        if name not in here and local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(here[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return here


def test_a_model_of_the_hub_is_known_when_its_files_are_here(tmp_path, cached):
    assert is_qwen_vl(config_of(Path(HUB))) is None
    cached[HUB] = model(tmp_path / "model", config={"model_type": "glm4v"})
    assert is_qwen_vl(config_of(Path(HUB))) is False


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3.5-9B", "x/Qwen3-VL-2B"]
)
def test_names_of_the_line_need_no_files(cached, name):
    assert is_qwen_vl(config_of(Path(name)))
    fetch_family(config_of(Path(name)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"preprocessor_config": {"processor_class": "Qwen2_5OmniProcessor"}}, "qwen_omni"),
        ({"preprocessor_config": {"processor_class": "Qwen3OmniMoeProcessor"}}, "qwen_omni"),
        ({"config": {"model_type": "qwen3_omni_moe"}}, "qwen_omni"),
        ({"config": {"model_type": "gemma4"}}, "other"),
        ({}, None),
    ],
)
def test_an_omni_model_is_known_by_its_files(tmp_path, files, expected):
    assert family_of(config_of(model(tmp_path / "model", **files))) == expected


def test_files_that_tell_the_family_are_fetched(tmp_path, cached, monkeypatch):
    asked = []
    monkeypatch.setattr(family, "processor_folder", lambda *model: asked.append(model))
    fetch_family(config_of(Path(HUB)))
    assert asked == [(HUB, "main")]
    cached[HUB] = model(tmp_path / "model", config={"model_type": "glm4v"})
    fetch_family(config_of(Path(HUB)))
    fetch_family(config_of(tmp_path / "model"))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("dataset", "asks"), [("clips", True), ("first_frame", True), ("video", False), ("text", False)]
)
def test_a_dataset_is_the_same_before_and_after_the_model_is_fetched(
    tmp_path, cached, monkeypatch, dataset, asks
):
    """Its version is a part of the fingerprint, which must not change between two runs."""
    folder = model(tmp_path / "model", config={"model_type": "glm4v"})
    monkeypatch.setattr(family, "processor_folder", lambda *_: cached.update({HUB: folder}))
    config = config_of(Path(HUB), dataset=dataset)
    first = DatasetNeeds.of(config)
    assert (HUB in cached) is asks
    cached[HUB] = folder
    assert DatasetNeeds.of(config) == first


def test_the_engine_says_what_is_wrong_with_a_file(tmp_path):
    """Split looks at the files of a model, and leaves a damaged one to the engine."""
    folder = model(tmp_path / "model", processor_config={})
    for name in ("preprocessor_config", "config"):
        (folder / f"{name}.json").write_text("{")
    config = load_config({"vllm": {"model": str(folder)}})
    check_budget_of_model(config)
    assert family_of(config) is None


@pytest.mark.parametrize(("text", "rate"), [("0.5", 0.5), ("0", None)])
def test_a_pruning_rate_may_be_a_text(text, rate):
    """As vLLM takes it."""
    as_text, as_number = (load_config({"vllm": {"video_pruning_rate": r}}) for r in (text, rate))
    assert visual_tokens(as_text, 14) == visual_tokens(as_number, 14)
    assert as_text.vllm.prunes_videos == as_number.vllm.prunes_videos == bool(rate)

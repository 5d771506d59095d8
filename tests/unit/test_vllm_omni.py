"""What vLLM and its corrected workers make of a video with sound, against transformers."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sounds import RATE, make, needs_ffmpeg, tones
from video_pipeline.config import load_config
from video_pipeline.data.choosing import create_dataset
from video_pipeline.data.video import _check_length
from video_pipeline.engine.vllm.arguments import vllm_config_of
from video_pipeline.engine.vllm.compat import media_of, media_tokens
from video_pipeline.engine.vllm.renderer import Renderer
from video_pipeline.estimate.counting import CountingPreparer
from video_pipeline.model.sound import SoundRule, sound_rule
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.tiny_model import FAMILIES, write_tiny_model
from video_pipeline.video.errors import VideoReadError

pytestmark = [pytest.mark.slow, needs_ffmpeg]

SOUNDS = {
    "even.mp4": (3.0, tones(440, 990, rate=44100, seconds=4)),
    # Its frames are no whole steps of positions apart.
    "odd.mp4": (5.7, tones(700, rate=48000, seconds=4)),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [make(folder / name, *sound, seconds=length) for name, (length, sound) in SOUNDS.items()]


@pytest.fixture(scope="module", params=sorted({"qwen2_5_omni", "qwen3_omni_moe"} & set(FAMILIES)))
def model(request, tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", request.param)


@pytest.fixture(scope="module")
def config(model):
    return load_config(
        {
            "vllm": {"model": str(model), "dtype": "float32", "max_model_len": 8192},
            "vision": {"use_audio_in_video": True},
        }
    )


@pytest.fixture(scope="module")
def renderer(config) -> Renderer:
    return Renderer(vllm_config_of(config), {})


def llm_input(config, *clips: Path) -> dict[str, Any]:
    samples = [{"__key": "k", "__video_uri": str(clip), "path": str(clip)} for clip in clips]
    dataset = create_dataset(config, load_task(config), samples, config.vllm.model)
    return dataset[0]["llm_input"]


def reference(processor: Any, shown: dict[str, Any]) -> Any:
    """What the model's own processor makes of the same frames and sound."""
    media, settings = shown["multi_modal_data"], shown["mm_processor_kwargs"]
    content = [{"type": "video"}, {"type": "text", "text": Describe.default_prompt}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": Describe.system}]},
        {"role": "user", "content": content},
    ]
    return processor(
        text=[processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2) for frames, _ in media["video"]],
        audio=media["audio"],
        use_audio_in_video=True,
        fps=settings["videos_kwargs"]["fps"],
        do_sample_frames=False,
        return_tensors="pt",
    )


def vllm_positions(model: Path, processor: str, request: dict[str, Any]) -> torch.Tensor:
    """As vLLM's workers compute them, with the correction."""
    from video_pipeline.engine.vllm import omni
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    features = [
        MultiModalFeatureSpec(data=item, modality=modality, identifier=name, mm_position=place)
        for (modality, name, item), place in zip(
            media_of(request),
            [place for places in request["mm_placeholders"].values() for place in places],
            strict=True,
        )
    ]
    kind = omni._QWEN3 if "Qwen3" in processor else omni._QWEN2_5
    thinker = kind.__new__(kind)
    thinker.__dict__["config"] = transformers.AutoConfig.from_pretrained(model).thinker_config
    positions, delta = thinker.get_mrope_input_positions(request["prompt_token_ids"], features)
    assert delta == int(positions.max()) + 1 - len(request["prompt_token_ids"])
    return positions


def test_tokens_features_and_positions_are_those_of_transformers(model, config, renderer, clips):
    processor = transformers.AutoProcessor.from_pretrained(model)
    whole = transformers.AutoModelForMultimodalLM.from_pretrained(model, dtype=torch.float32)
    audio_token, video_token = processor.tokenizer.convert_tokens_to_ids(
        [processor.audio_token, processor.video_token]
    )
    for clip in clips:
        shown = llm_input(config, clip)
        request = renderer.prepare({"": shown}, "key")[""]
        expected = reference(processor, shown)
        ids = expected["input_ids"][0].tolist()
        assert request["prompt_token_ids"] == ids
        assert media_tokens(request) == {
            "video": [ids.count(video_token)],
            "audio": [ids.count(audio_token)],
        }

        fields = {modality: item for modality, _, item in media_of(request)}
        mask = expected["feature_attention_mask"].bool()
        features = expected["input_features"].permute(0, 2, 1)[mask].T
        assert torch.equal(fields["audio"]["input_audio_features"].data.float(), features)
        pixels = expected["pixel_values_videos"]
        assert torch.equal(fields["video"]["pixel_values_videos"].data.float(), pixels)

        positions, _ = whole.thinker.get_rope_index(
            expected["input_ids"],
            None,
            expected["video_grid_thw"],
            expected["attention_mask"],
            True,
            mask.sum(-1),
            torch.as_tensor(expected["video_second_per_grid"]),
        )
        ours = vllm_positions(model, type(processor).__name__, request)
        assert torch.equal(ours, positions[:, 0].floor().long())


def test_plan_counts_the_tokens_of_the_request(model, config, renderer, clips):
    preparer = CountingPreparer(config, str(model), with_engine=True)
    preparer.start()
    samples = [{"__key": "k", "__video_uri": str(clips[1]), "path": str(clips[1])}]
    dataset = create_dataset(config, load_task(config), samples, str(model))
    (counted,) = preparer.prepare({"": preparer.read(dataset, 0)["llm_input"]}, "key").values()
    request = renderer.prepare({"": llm_input(config, clips[1])}, "key")[""]
    assert counted.tokens.prompt == len(request["prompt_token_ids"])
    tokens = media_tokens(request)
    assert ([counted.tokens.visual], [counted.tokens.sound]) == (tokens["video"], tokens["audio"])
    assert len(counted.media) == 1


def test_sound_that_the_model_would_cut_off_is_refused(model):
    """The feature extractor of Qwen2.5-Omni says nothing about it."""
    processor = transformers.AutoProcessor.from_pretrained(model)
    rule = sound_rule(str(model))
    sound = np.zeros(301 * RATE, np.float32)
    heard = processor(text="", audio=[sound], return_tensors="pt")["feature_attention_mask"].sum()
    cuts = int(heard) * processor.feature_extractor.hop_length < len(sound)
    assert rule == (SoundRule(RATE, 300, 1) if cuts else SoundRule(RATE, math.inf, 160))
    if cuts:
        with pytest.raises(VideoReadError, match=r"lasts 301\.0 s, and the model hears 300 s"):
            _check_length(sound, rule)


def test_what_is_corrected_is_there():
    from video_pipeline.engine.vllm import omni

    for kind in (omni._QWEN2_5, omni._QWEN3):
        assert "check_interleaved_audio_video(" in inspect.getsource(kind.embed_input_ids)
        assert "get_mrope_input_positions" in vars(kind)

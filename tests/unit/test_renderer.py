"""The engine's part of a decode process, with vLLM's own renderer and no engine."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from video_pipeline.config import load_config
from video_pipeline.engine.base import RequestRefused
from video_pipeline.engine.vllm.arguments import vllm_config_of
from video_pipeline.engine.vllm.causes import origin_of
from video_pipeline.engine.vllm.compat import media_of, media_tokens
from video_pipeline.engine.vllm.renderer import Renderer
from video_pipeline.model.prompt import Prompter
from video_pipeline.testing.tiny_model import write_tiny_model

PROMPT = "<|vision_start|><|video_pad|><|vision_end|>What happens?"
METADATA = {"fps": 2.0, "duration": 1.0, "total_num_frames": 2, "frames_indices": [0, 1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def renderer(model):
    settings = {"model": str(model), "dtype": "float32", "max_model_len": 4096}
    return Renderer(vllm_config_of(load_config({"vllm": settings})), {})


def test_an_error_is_its_cause_in_one_line(renderer):
    """vLLM writes the frames into the error around it."""
    frames = np.zeros((2, 56, 56, 3, 1), np.uint8)
    llm_input = {"prompt": PROMPT, "multi_modal_data": {"video": [(frames, METADATA)]}}
    with pytest.raises(RequestRefused) as caught:
        renderer.prepare({"": llm_input}, "key")
    around = caught.value.__cause__
    assert "Failed to apply" in str(around)
    message = str(caught.value)
    assert "Failed to apply" not in message
    assert message
    assert "\n" not in message
    assert len(message) < 500
    assert caught.value.type == type(around.__cause__).__name__


def test_an_error_that_says_little_names_its_place():
    def refuse(error: Exception):
        try:
            raise RuntimeError("on the way") from error
        except RuntimeError as around:
            return origin_of(around)

    assert refuse(ValueError("too long")) == ("ValueError", "too long")
    try:
        [][0]
    except IndexError as error:
        kind, text = refuse(error)
    assert kind == "IndexError"
    assert re.fullmatch(rf"list index out of range \({__file__}, line \d+\)", text)


# --- conversations -------------------------------------------------------------------------------


def frames(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (2, 56, 56, 3), np.uint8)


def conversation(*parts: dict, system: str = "You watch.") -> list[dict]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]},
    ]


VIDEO = {"type": "video", "video": "a.mp4"}


def of_messages(*parts: dict, videos: int = 1, **more) -> dict:
    media = {"video": [(frames(seed), METADATA) for seed in range(videos)]}
    return {"messages": conversation(*parts, **more), "multi_modal_data": media}


def test_messages_become_the_prompt_of_the_models_template(renderer, model):
    prompter = Prompter(str(model))
    given = of_messages({"text": "Look: "}, VIDEO)
    written = {
        "prompt": prompter.prompt(given["messages"]),
        "multi_modal_data": given["multi_modal_data"],
    }
    ours, expected = (
        renderer.prepare({"": llm_input}, "key")[""] for llm_input in (given, written)
    )
    assert ours["prompt_token_ids"] == expected["prompt_token_ids"]
    assert ours["prompt"] == written["prompt"]
    pixels = [
        item["pixel_values_videos"].data
        for request in (ours, expected)
        for _, _, item in media_of(request)
    ]
    assert torch.equal(*pixels)
    assert media_tokens(ours) == {"video": [4]}


def test_media_are_named_and_shared_between_conversations(renderer):
    media = {"video": [(frames(), METADATA)]}
    llm_inputs = {
        part: {"messages": conversation(VIDEO, system=part), "multi_modal_data": media}
        for part in ("one", "two")
    }
    one, two = (list(media_of(each)) for each in renderer.prepare(llm_inputs, "key").values())
    assert one[0][1] == two[0][1]
    other = renderer.prepare({"": of_messages(VIDEO)}, "another")[""]
    assert next(iter(media_of(other)))[1] != one[0][1]


def test_special_tokens_in_the_text_of_messages_are_characters(renderer):
    title = "<|im_end|> and <|video_pad|>"
    plain = renderer.prepare({"": of_messages({"text": "x" * len(title)}, VIDEO)}, "k")[""]
    request = renderer.prepare({"": of_messages({"text": title}, VIDEO)}, "k")[""]
    assert len(request["prompt_token_ids"]) == len(plain["prompt_token_ids"])
    assert media_tokens(request) == media_tokens(plain)


@pytest.mark.parametrize("videos", [0, 2])
def test_messages_show_each_medium_once(renderer, videos):
    with pytest.raises(RequestRefused, match="media of the kind video") as caught:
        renderer.prepare({"": of_messages(VIDEO, videos=videos)}, "key")
    assert caught.value.type == "PlaceholderError"


def test_messages_without_media(renderer):
    llm_input = {"messages": conversation(), "multi_modal_data": {}}
    request = renderer.prepare({"": llm_input}, "key")[""]
    assert list(media_of(request)) == []
    assert request["prompt"].endswith("<|im_start|>assistant\n")


def test_a_part_of_a_message_that_is_nothing_known(renderer):
    with pytest.raises(RequestRefused, match="must be a dict with exactly one of") as caught:
        renderer.prepare({"": of_messages({"type": "txt", "txt": "x"}, VIDEO)}, "key")
    assert caught.value.type == "TaskError"


def test_switches_of_the_template_reach_messages(model, tmp_path):
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ 'quick' if enable_thinking is false }}")
    settings = {"model": str(copied), "dtype": "float32", "max_model_len": 4096}
    vllm_config = vllm_config_of(load_config({"vllm": settings}))
    prompts = [
        Renderer(copy.deepcopy(vllm_config), switches).prepare({"": of_messages(VIDEO)}, "k")[""]
        for switches in ({}, {"enable_thinking": False})
    ]
    assert prompts[1]["prompt"] == prompts[0]["prompt"] + "quick"

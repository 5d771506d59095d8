"""The made checkpoints of every family: transformers loads them without a network, and they answer.

The number of frames of each family's rule is that of its publication.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.video_utils import VideoMetadata
from video_pipeline.testing.families import FAMILIES
from video_pipeline.testing.tiny_model import write_tiny_model

FRAMES, RATE = 40, 10.0
OWN_RULE = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), 8),  # 2 a second
    "glm4v": 8,  # 2 a second
    "glm46v": 24,  # 3 pairs a second
    "gemma4": 32,  # 32 a video
    "minicpmv4_6": 4,  # 1 a second
}
"""How many frames of four seconds a family asks for. All others leave it to the caller."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("families") / family, family)


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise AssertionError("something connects to the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return AutoProcessor.from_pretrained(checkpoint)


def clip(seed: int) -> np.ndarray:
    """Noise over a colour that changes from frame to frame."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 200, (FRAMES, 1, 1, 3))
    return (colours + random.integers(0, 50, (FRAMES, 72, 96, 3))).astype(np.uint8)


def metadata() -> dict[str, Any]:
    indices = list(range(FRAMES))
    seconds = FRAMES / RATE
    return {"fps": RATE, "total_num_frames": FRAMES, "duration": seconds, "frames_indices": indices}


def prepare(processor: Any, family: str, seed: int) -> Any:
    video = {"type": "video", "video": clip(seed)}
    conversation = [{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}]
    rule = {} if family in OWN_RULE else {"num_frames": 8}
    return processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"video_metadata": [metadata()], **rule},
    )


def test_each_clip_has_an_answer_of_its_own(family: str, checkpoint: Path, processor: Any) -> None:
    model: Any = AutoModelForMultimodalLM.from_pretrained(checkpoint)
    model = getattr(model, "thinker", model)  # An omni model's own method wants to speak.
    answers = set()
    for seed in range(2):
        inputs = prepare(processor, family, seed).to(model.dtype)
        assert {"pixel_values", "pixel_values_videos"} & set(inputs)
        new = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = processor.tokenizer.decode(new[0, inputs["input_ids"].shape[1] :])
        assert len(answer) == 16, "something ended it"
        assert answer.isascii()
        assert answer.isprintable()
        answers.add(answer)
    assert len(answers) == 2


def test_the_frames_are_those_of_the_family(family: str, processor: Any) -> None:
    rule = processor.video_processor
    if family in OWN_RULE:
        assert rule.do_sample_frames
        assert len(rule.sample_frames(VideoMetadata(**metadata()))) == OWN_RULE[family]
    else:
        assert (rule.do_sample_frames, rule.fps, rule.num_frames) == (False, None, None)


def test_the_template_takes_strings_and_parts(family: str, processor: Any) -> None:
    def render(content: Any, **switches: Any) -> str:
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, **switches
        )
        return text

    text = {"type": "text", "text": "What happens?"}
    assert render("What happens?") == render([text])
    for kind in ("image", "video"):
        parts = render([{"type": kind}, text])
        token = getattr(processor, f"{kind}_token")
        assert parts.count(token) == 1
        assert parts.index(token) < parts.index("What happens?")
    thinks = family in ("qwen3_5", "qwen3_5_moe", "glm46v", "gemma4", "minicpmv4_6")
    off, on = (render("Hi", enable_thinking=switch) for switch in (False, True))
    assert (off != on) == thinks


def test_special_tokens_are_one_token_each(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for token in tokenizer.all_special_tokens:
        assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1


def test_the_same_family_gives_the_same_bytes(
    family: str, checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)  # What was drawn before must not matter.
    again = write_tiny_model(tmp_path / "again", family)
    assert sorted(path.name for path in again.iterdir()) == sorted(
        path.name for path in checkpoint.iterdir()
    )
    for path in again.iterdir():
        assert path.read_bytes() == (checkpoint / path.name).read_bytes(), path.name

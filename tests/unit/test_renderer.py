"""The engine's part of a decode process, with vLLM's own renderer and no engine."""

from __future__ import annotations

import numpy as np
import pytest
from video_pipeline.config import load_config
from video_pipeline.engine.base import RequestRefused
from video_pipeline.engine.vllm.arguments import vllm_config_of
from video_pipeline.engine.vllm.renderer import Renderer
from video_pipeline.testing.tiny_model import write_tiny_model

PROMPT = "<|vision_start|><|video_pad|><|vision_end|>What happens?"
METADATA = {"fps": 2.0, "duration": 1.0, "total_num_frames": 2, "frames_indices": [0, 1]}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    model = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    settings = {"model": str(model), "dtype": "float32", "max_model_len": 4096}
    return Renderer(vllm_config_of(load_config({"vllm": settings})))


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

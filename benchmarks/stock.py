"""What a user of qwen-vl-utils has without this project: its own reader and resize."""

from __future__ import annotations

from typing import Any

import av
import torch
from qwen_vl_utils import vision_process as qwen


def use_stock_reader(name: str) -> None:
    """Have ``process_vision_info`` of this process read with ``torchcodec`` or ``pyav``."""
    qwen.VIDEO_READER_BACKENDS["pyav"] = read_with_pyav
    qwen.get_video_reader_backend = lambda: name


def read_with_pyav(ele: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """A reader for qwen-vl-utils as one would write it where torchcodec does not load: decode the
    file on one thread, keep the sampled frames. ``fetch_video`` resizes them."""
    with av.open(ele["video"]) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        fps, total = float(stream.average_rate), stream.frames
        first, last, count = qwen.calculate_video_frame_range(ele, total, fps)
        nframes = qwen.smart_nframes(ele, total_frames=count, video_fps=fps)
        positions = torch.linspace(first, last, nframes).round().long().tolist()
        wanted = set(positions)
        frames = {
            number: torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            for number, frame in enumerate(container.decode(stream))
            if number in wanted
        }
    video = torch.stack([frames[position] for position in positions])
    metadata = {
        "fps": fps,
        "frames_indices": positions,
        "total_num_frames": count,
        "video_backend": "pyav",
    }
    return video, metadata, nframes / count * fps


def stock_llm_input(processor: Any, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The input of ``LLM.generate`` as the model's README makes it. ``do_resize`` is off, so that
    frames have the size that this project gives them (without, they are resized once more)."""
    _, videos, video_kwargs = qwen.process_vision_info(
        messages,
        image_patch_size=processor.image_processor.patch_size,
        return_video_kwargs=True,
        return_video_metadata=True,
    )
    return {
        "prompt": processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        ),
        "multi_modal_data": {"video": videos},
        "mm_processor_kwargs": {**video_kwargs, "do_resize": False},
    }


def bare_decode(path: str) -> None:
    """Decode all frames of a file with PyAV on one thread and drop them."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for _ in container.decode(stream):
            pass

"""A tiny checkpoint of a video model with random weights.

    python -m video_pipeline.testing.tiny_model --family qwen3_vl /tmp/tiny

The folder has the files of a real checkpoint (configuration, safetensors, tokenizer, image and
video processors, chat template), so transformers and vLLM load it like a real one, in a second and
on a CPU. It gives a different answer to each clip, in printable ASCII. With greedy decoding no
answer ends by itself: it is as long as ``max_tokens`` allows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from video_pipeline.common.files import read_object
from video_pipeline.testing.families import FAMILIES
from video_pipeline.testing.parts import make_generation_configuration

MARKER = "tiny_model.json"
VERSION = 1
"""The version of the weights and files below: raise it when they change."""

GAIN = 2.0
"""Standard deviation of a weight, times sqrt(fan-in). With 1 the layers average their inputs, and
answers fall into the same few loops; with 2, thirty clips gave thirty answers in both families."""


def write_tiny_model(folder: Path, family: str = "qwen2_5_vl", seed: int = 0) -> Path:
    """Write a tiny random-weight checkpoint and return its folder.

    The same family and seed give the same bytes. The folder appears complete or not at all. If it
    holds this checkpoint already, nothing changes, not even the times of the files.

    Raises:
        ValueError: ``family`` is not one of :data:`FAMILIES`.
        FileExistsError: ``folder`` holds something else.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    identity = {"family": family, "seed": seed, "version": VERSION}
    marker = folder / MARKER
    if read_object(marker) == identity:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_checkpoint(temporary, family, seed)
        (temporary / MARKER).write_text(json.dumps(identity) + "\n")
        temporary.chmod(0o755)  # mkdtemp lets no other user in.
        if read_object(marker) not in ({}, identity):
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError as error:  # The folder is not empty.
            if read_object(marker) != identity:  # Another process has not written it either.
                raise FileExistsError(f"{folder} is not empty and no tiny model") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_checkpoint(folder: Path, family: str, seed: int) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForMultimodalLM
    from transformers.utils import logging

    quiet: Any = logging  # Its functions have no annotations.
    quiet.disable_progress_bar()
    parts = FAMILIES[family]()
    make: Any = AutoModelForMultimodalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # Some vectors keep the values that their class draws.
        model = make.from_config(parts.configuration)
    model.generation_config = make_generation_configuration(parts.tokenizer, parts.stops)
    printable = bytes(range(32, 127)).decode()
    _initialise(model, seed, parts.tokenizer(printable, add_special_tokens=False).input_ids)
    model.save_pretrained(folder)
    if parts.publish:
        weights = folder / "model.safetensors"
        save_file(parts.publish(load_file(weights)), weights, metadata={"format": "pt"})
    parts.processor.save_pretrained(folder)
    for name, content in parts.files.items():
        torch.save(content, folder / name)


def _initialise(model: Any, seed: int, speakable: list[int]) -> None:
    """Draw the weights so that answers differ from clip to clip and stay readable.

    Only the tokens ``speakable`` have a row in the output layer that is not zero. So one of them
    always wins, and never a token that ends an answer.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Experts are matrices side by side; else three dimensions are a convolution.
                matrix = parameter[0] if name.endswith(("gate_up_proj", "down_proj")) else parameter
                fan_in = matrix[0].numel()
                parameter.normal_(0.0, GAIN / fan_in**0.5, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                # Qwen3-VL and later: these norms would undo the gain. Some classes add one to the
                # weight and start from zero, others start from one.
                parameter.add_(GAIN - 1.0)
        head = getattr(model, "thinker", model).get_output_embeddings().weight
        silent = torch.ones(len(head), dtype=torch.bool)
        silent[speakable] = False
        head[silent] = 0.0


def main() -> None:
    """Run ``python -m video_pipeline.testing.tiny_model``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write the checkpoint")
    parser.add_argument("--family", choices=list(FAMILIES), default="qwen2_5_vl")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    arguments = parser.parse_args()
    print(write_tiny_model(arguments.folder, arguments.family, arguments.seed))


if __name__ == "__main__":
    main()

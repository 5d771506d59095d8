"""A tiny Qwen2.5-VL or Qwen3-VL checkpoint with random weights.

    python -m video_pipeline.testing.tiny_model --family qwen3_vl /tmp/tiny

The folder has the files of a real checkpoint (configuration, safetensors, tokenizer, image and
video processors, chat template), so transformers and vLLM load it like one, in a second and on a
CPU. It answers every clip with words of its own, in printable ASCII. With greedy decoding it never
ends by itself: an answer is as long as ``max_tokens`` allows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from video_pipeline.testing import qwen_vl
from video_pipeline.testing.qwen_vl import FAMILIES, SPECIAL_TOKENS

MARKER = "tiny_model.json"
VERSION = 1
"""The version of the weights and files below: raise it when they change."""

GAIN = 2.0
"""Standard deviation of a weight, times sqrt(fan-in). With 1 the layers average their inputs, and
answers fall into the same few loops; with 2, thirty clips gave thirty answers in both families."""


def write_tiny_model(folder: Path, family: str = "qwen2_5_vl", seed: int = 0) -> Path:
    """Write a tiny random-weight checkpoint and return its folder.

    The same family and seed give the same bytes. The folder appears complete or not at all, and one
    that already holds this checkpoint is left untouched, times of the files included.

    Raises:
        ValueError: ``family`` is not one of :data:`FAMILIES`.
        FileExistsError: ``folder`` holds something else.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    identity = {"family": family, "seed": seed, "version": VERSION}
    if _identity(folder) == identity:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_checkpoint(temporary, family, seed)
        (temporary / MARKER).write_text(json.dumps(identity) + "\n")
        temporary.chmod(0o755)  # mkdtemp lets no other user in.
        if _identity(folder) not in (None, identity):
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError as error:  # The folder is not empty.
            if _identity(folder) != identity:  # Nor did another process write it.
                raise FileExistsError(f"{folder} is not empty and no tiny model") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _identity(folder: Path) -> dict[str, Any] | None:
    """The identity in the marker of ``folder``; None if no tiny model is there."""
    try:
        identity: dict[str, Any] = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return identity


def _write_checkpoint(folder: Path, family: str, seed: int) -> None:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    quiet: Any = logging  # Its functions have no annotations.
    quiet.disable_progress_bar()
    # Without merges every byte is a token.
    tokenizer = qwen_vl.make_tokenizer(
        sorted(ByteLevel.alphabet()), [], list(SPECIAL_TOKENS), max_length=32768
    )
    make: Any = AutoModelForImageTextToText
    text, vision = _dimensions(family)
    model = make.from_config(qwen_vl.make_configuration(family, tokenizer, "float32", text, vision))
    model.generation_config = qwen_vl.make_generation_configuration(tokenizer)
    _initialise(model, seed, speakable=tokenizer(bytes(range(32, 127)).decode()).input_ids)
    model.save_pretrained(folder)
    qwen_vl.save_processor(family, tokenizer, folder)


def _dimensions(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two layers each for text and vision, and heads of 32, the smallest of vLLM on a CPU."""
    text: dict[str, Any] = {
        "vocab_size": 320,  # 256 bytes and the special tokens, rounded up as vLLM prefers.
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    }
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 64, "intermediate_size": 128}
    vision |= {"num_heads": 2, "out_hidden_size": text["hidden_size"]}
    # The three sections (time, height, width) share the 16 frequencies of a head.
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    if family == "qwen2_5_vl":
        text |= {"rope_parameters": rope | {"mrope_section": [4, 6, 6]}}
        vision |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    else:
        rope |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        text |= {"rope_parameters": rope, "head_dim": 32}
        vision |= {"patch_size": 16, "num_position_embeddings": 256}
        vision |= {"deepstack_visual_indexes": [0]}
    return text, vision


def _initialise(model: Any, seed: int, speakable: list[int]) -> None:
    """Draw the weights so that answers differ from clip to clip and stay readable.

    Only the tokens ``speakable`` have a row in the output layer that is not zero. One of them
    always beats all others, and the tokens that end an answer are among the others.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, GAIN / fan_in**0.5, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(GAIN)  # Qwen3-VL: these norms would undo the gain.
        head = model.get_output_embeddings().weight
        silent = torch.ones(len(head), dtype=torch.bool)
        silent[speakable] = False
        head[silent] = 0.0


def main() -> None:
    """Run ``python -m video_pipeline.testing.tiny_model``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write the checkpoint")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0])
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    arguments = parser.parse_args()
    print(write_tiny_model(arguments.folder, arguments.family, arguments.seed))


if __name__ == "__main__":
    main()

"""A tiny Qwen2.5-VL or Qwen3-VL checkpoint with random weights.

    python -m video_pipeline.testing.tiny_model --family qwen3_vl /tmp/tiny

The folder is shaped as a real checkpoint is (configuration, safetensors, tokenizer, image and video
processors, chat template), so transformers and vLLM load it like one, in a second and on a CPU. It
answers every clip with 'words' of its own, in printable ASCII, and never ends by itself when
decoding is greedy: an answer is as long as `max_tokens` allows.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
MARKER = "tiny_model.json"
VERSION = 1  # of the weights and files below: raise it when they change

# In the order in which the real tokenizers number them, behind the ordinary tokens.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)

# Standard deviation of a weight, times sqrt(fan-in). With 1 the layers average what they see, and
# answers fall into the same few loops; with 2, thirty clips gave thirty answers in both families.
GAIN = 2.0

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# What the published templates of both families do with text, images and videos. Qwen2.5-VL puts a
# system message before a conversation that has none.
DEFAULT_SYSTEM = """\
{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
CHAT_TEMPLATE = """\
{%- for message in messages -%}
DEFAULT_SYSTEM
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'video' or 'video' in item -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in item -%}
{{- item.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def write_tiny_model(folder: Path, family: str = "qwen2_5_vl", seed: int = 0) -> Path:
    """Write a tiny random-weight checkpoint and return its folder.

    The same family and seed give the same bytes. The folder appears complete or not at all, and one
    that already holds this very checkpoint is left untouched, times of the files included, because
    the fingerprint of a run hashes them.

    Raises:
        ValueError: `family` is not one of `FAMILIES`.
        FileExistsError: `folder` holds something else than a checkpoint written by this function.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    folder = Path(folder)
    identity = {"family": family, "seed": seed, "version": VERSION}
    if _identity(folder) == identity:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_checkpoint(temporary, family, seed)
        (temporary / MARKER).write_text(json.dumps(identity) + "\n")
        temporary.chmod(0o755)  # mkdtemp keeps others out
        if _identity(folder) not in (None, identity):
            shutil.rmtree(folder)
        try:
            os.rename(temporary, folder)
        except OSError as error:  # the folder is not empty
            if _identity(folder) != identity:  # nor written by another process meanwhile
                raise FileExistsError(f"{folder} is not empty and no tiny model") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _identity(folder: Path) -> dict | None:
    """What the checkpoint in `folder` says it is; None if no tiny model is there."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _write_checkpoint(folder: Path, family: str, seed: int) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(family, **_configuration(family, ids))
    )
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    _initialise(model, seed, speakable=tokenizer(bytes(range(32, 127)).decode()).input_ids)
    model.save_pretrained(folder)
    _processor(family, tokenizer).save_pretrained(folder)


def _tokenizer():
    """Byte-level BPE without merges: every byte is a token, in Qwen's pre-tokenization."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens = (*sorted(ByteLevel.alphabet()), *SPECIAL_TOKENS)
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens=list(SPECIAL_TOKENS),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
    )


def _configuration(family: str, ids: dict[str, int]) -> dict:
    """Two layers each for text and vision, and heads of 32, the smallest of vLLM on a CPU."""
    text = {
        "vocab_size": 320,  # 256 bytes and the special tokens, rounded up as vLLM likes it
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    vision["out_hidden_size"] = text["hidden_size"]
    # The three sections (time, height, width) share the 16 frequencies of a head.
    rope = {"rope_type": "default", "rope_theta": 1e6}
    if family == "qwen2_5_vl":
        text |= {"rope_parameters": rope | {"mrope_section": [4, 6, 6]}}
        vision |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    else:
        rope |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        text |= {"rope_parameters": rope, "head_dim": 32}
        vision |= {"patch_size": 16, "num_position_embeddings": 256}
        vision |= {"deepstack_visual_indexes": [0]}
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "dtype": "float32",
    }


def _initialise(model, seed: int, speakable: list[int]) -> None:
    """Draw the weights so that answers differ from clip to clip and stay readable.

    Only the tokens `speakable` have a row in the output layer that is not zero: some of them always
    beats the others, among which are the tokens that end an answer.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, GAIN / fan_in**0.5, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(GAIN)  # Qwen3-VL: the norms would undo the gain of the projections
        head = model.get_output_embeddings().weight
        silent = torch.ones(len(head), dtype=torch.bool)
        silent[speakable] = False
        head[silent] = 0.0


def _processor(family: str, tokenizer):
    """Image and video processor with the numbers of the published checkpoints.

    vLLM normalises videos with the image processor's mean and std, so both must agree.
    """
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    if family == "qwen2_5_vl":
        pixels = {"patch_size": 14, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size, **pixels),
            video_processor=Qwen2VLVideoProcessor(size=size, **pixels),
            tokenizer=tokenizer,
            chat_template=CHAT_TEMPLATE.replace("DEFAULT_SYSTEM\n", DEFAULT_SYSTEM),
        )
    pixels = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image_size = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
    video_size = {"shortest_edge": 4096, "longest_edge": 32 * 32 * 2 * 12288}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=image_size, **pixels),
        video_processor=Qwen3VLVideoProcessor(size=video_size, **pixels),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("DEFAULT_SYSTEM\n", ""),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write the checkpoint")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0])
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    arguments = parser.parse_args()
    print(write_tiny_model(arguments.folder, arguments.family, arguments.seed))


if __name__ == "__main__":
    main()

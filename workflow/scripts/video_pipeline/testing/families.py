"""The families of tiny checkpoints: the classes, special tokens and rules of the published ones.

Numbers of a processor that are not set here are those of its class, which are the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from video_pipeline.testing import parts, qwen_vl
from video_pipeline.testing.chat_templates import CHAT_TEMPLATES
from video_pipeline.testing.parts import CONTEXT, TEXT, TOWER, VISION, WIDTH, Parts, Weights

_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THOUGHTS = ["<think>", "</think>"]


def _transformers() -> Any:
    """The library, which loads when a checkpoint is written. Its classes have no annotations."""
    import transformers

    return transformers


def _processor(name: str, family: str, tokenizer: Any, **more: Any) -> Any:
    """The processor of a family whose classes begin with ``name``."""
    library = _transformers()
    return getattr(library, f"{name}Processor")(
        image_processor=getattr(library, f"{name}ImageProcessor")(),
        video_processor=getattr(library, f"{name}VideoProcessor")(),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATES[family],
        **more,
    )


def _qwen_vl(family: str, text: dict[str, Any], vision: dict[str, Any]) -> Parts:
    tokenizer = parts.make_byte_tokenizer(qwen_vl.SPECIAL_TOKENS)
    configuration = qwen_vl.make_configuration(family, tokenizer, "float32", text, vision)
    return Parts(tokenizer, configuration, qwen_vl.make_processor(family, tokenizer))


def _qwen3_vl_moe() -> Parts:
    text = {**parts.QWEN3_TEXT, **parts.EXPERTS, **parts.UNTIED}

    def publish(weights: Weights) -> Weights:
        return {
            name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
            for name, tensor in weights.items()
        }

    return replace(_qwen_vl("qwen3_vl_moe", text, parts.QWEN3_VISION), publish=publish)


def _qwen3_5(family: str, **more: Any) -> Parts:
    tokenizer = parts.make_byte_tokenizer(qwen_vl.SPECIAL_TOKENS, kind="Qwen3_5Tokenizer")
    tokenizer.add_tokens(_THOUGHTS)
    text, vision = {**parts.QWEN3_5_TEXT, **more}, parts.QWEN3_5_VISION
    configuration = qwen_vl.make_configuration(family, tokenizer, "bfloat16", text, vision)
    return Parts(tokenizer, configuration, qwen_vl.make_processor(family, tokenizer))


def _omni(
    family: str,
    processor: str,
    names: dict[str, str],
    media: str,
    pixels: dict[str, Any],
    **thinker: Any,
) -> Parts:
    """The part of an omni model that understands and writes. It has no voice.

    Args:
        family: The type of the model.
        processor: The name of the processor's class.
        names: Special tokens by the processor's names for them.
        media: The ending of the names of media tokens in the configuration.
        pixels: The arguments of image and video processor.
        thinker: The sizes of text, vision and sound model, and numbers that they share.
    """
    tokenizer = parts.make_byte_tokenizer((*_CHATML, *names.values()), **parts.named(**names))
    tokens = {
        f"{kind}_token_{media}": names[f"{kind}_token"] for kind in ("image", "video", "audio")
    }
    for kind in ("audio", "vision"):
        tokens[f"{kind}_start_token_id"] = names[f"{kind}_bos_token"]
        tokens[f"{kind}_end_token_id"] = names[f"{kind}_eos_token"]
    thinker |= parts.numbers(tokenizer, tokens)
    library = _transformers()
    return Parts(
        tokenizer,
        parts.make_configuration(
            family, tokenizer, {}, thinker_config=thinker, enable_audio_output=False
        ),
        getattr(library, processor)(
            image_processor=library.Qwen2VLImageProcessor(**pixels),
            video_processor=library.Qwen2VLVideoProcessor(**pixels),
            feature_extractor=library.WhisperFeatureExtractor(feature_size=128, chunk_length=300),
            tokenizer=tokenizer,
            chat_template=CHAT_TEMPLATES[family],
        ),
        files={"spk_dict.pt": {}},  # Qwen2.5-Omni does not load without its speakers.
    )


_SOUND = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2}
_SOUND |= {"encoder_ffn_dim": 128, "output_dim": WIDTH}
_OMNI_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}

_qwen2_5_omni = partial(
    _omni,
    "qwen2_5_omni",
    "Qwen2_5OmniProcessor",
    {
        **{"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>"},
        **{"vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>"},
        **{"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
    },
    media="index",
    pixels={"patch_size": 14, "size": _OMNI_SIZE},
    text_config={**parts.QWEN2_TEXT, **parts.UNTIED},
    vision_config=parts.QWEN2_5_VISION,
    audio_config=_SOUND,
)
_qwen3_omni = partial(
    _omni,
    "qwen3_omni_moe",
    "Qwen3OmniMoeProcessor",
    {
        **{"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        **{"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"},
        **{"audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"},
        "audio_token": "<|audio_pad|>",
    },
    media="id",
    pixels={"patch_size": 16, "size": _OMNI_SIZE, **qwen_vl.HALVES},
    text_config={**parts.QWEN3_TEXT, **parts.EXPERTS, **parts.UNTIED},
    # vLLM finds the grid of positions by the size of an image.
    vision_config={**parts.QWEN3_VISION, "image_size": 256, "apply_vit_abs_pos_embed": True},
    audio_config={**_SOUND, "downsample_hidden_size": 32},
    position_id_per_seconds=13,  # The class has 25; its processor and published models have 13.
)


def _gemma4() -> Parts:
    """The kind of E2B and E4B, but deaf: the processor knows sound, the model does not."""
    library = _transformers()
    names = {
        **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
        **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
    }
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|channel>"]
    special += ["<channel|>", "<|think|>", *names.values(), "<|video|>"]
    # A space is one token, and characters beyond ASCII are spelled in bytes.
    letters = ["\N{LOWER ONE EIGHTH BLOCK}", *(chr(code) for code in range(33, 127))]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokenizer = library.GemmaTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens=special[5:],
        model_max_length=CONTEXT,
        **parts.named(**names),
    )
    text = {
        **TEXT,
        **{"vocab_size": 384, "vocab_size_per_layer_input": 384, "hidden_size_per_layer_input": 32},
        **{"head_dim": 32, "global_head_dim": 64, "final_logit_softcapping": 30.0},
        "layer_types": ["sliding_attention", "full_attention"],
        **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": False},
    }
    vision = {**TOWER, "num_key_value_heads": 2, "head_dim": 32, "default_output_length": 280}
    configuration = parts.make_configuration(
        "gemma4",
        tokenizer,
        {
            **{
                "image_token_id": "<|image|>",
                "boi_token_id": "<|image>",
                "eoi_token_id": "<image|>",
            },
            **{"audio_token_id": "<|audio|>", "boa_token_id": "<|audio>"},
            **{"eoa_token_index": "<audio|>", "video_token_id": "<|video|>"},
        },
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
    )
    hearing = library.Gemma4AudioFeatureExtractor()
    processor = _processor("Gemma4", "gemma4", tokenizer, feature_extractor=hearing)
    return Parts(tokenizer, configuration, processor, stops=("<eos>", "<turn|>"))


def _internvl() -> Parts:
    library = _transformers()
    names = {
        **{"start_image_token": "<img>", "end_image_token": "</img>"},
        **{"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
    }
    tokenizer = parts.make_byte_tokenizer((*_CHATML, *names.values()), **parts.named(**names))
    pixels = {
        "size": {"height": 448, "width": 448},
        **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    }
    processor = library.InternVLProcessor(
        image_processor=library.GotOcr2ImageProcessor(**pixels),
        # The published processor sets neither a number nor a rate of frames: callers do.
        video_processor=library.InternVLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATES["internvl"],
    )
    configuration = parts.make_configuration(
        "internvl",
        tokenizer,
        {"image_token_id": "<IMG_CONTEXT>"},
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={**TOWER, "patch_size": 14, "image_size": 448},
        tie_word_embeddings=False,
    )
    return Parts(tokenizer, configuration, processor)


def _glm(family: str, name: str) -> Parts:
    """GLM-4.6V-Flash is a GLM-4.1V with another processor and template."""
    tokens = {f"{kind}_token_id": f"<|{kind}|>" for kind in ("image", "video")}
    for kind in ("image", "video"):
        tokens[f"{kind}_start_token_id"] = f"<|begin_of_{kind}|>"
        tokens[f"{kind}_end_token_id"] = f"<|end_of_{kind}|>"
    stops = ("<|endoftext|>", "<|user|>", "<|observation|>")
    special = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|assistant|>"]
    tokenizer = parts.make_byte_tokenizer(
        (*stops, *special, *tokens.values()), eos_token="<|endoftext|>"
    )
    tokenizer.add_tokens([*_THOUGHTS, "/nothink"])
    configuration = parts.make_configuration(
        "glm4v",
        tokenizer,
        tokens,
        text_config={**TEXT, "rope_parameters": parts.rope(2, 3, 3, partial_rotary_factor=0.5)},
        vision_config={**VISION, "patch_size": 14, "image_size": 336},
    )
    return Parts(tokenizer, configuration, _processor(name, family, tokenizer), stops)


def _llava_onevision() -> Parts:
    tokenizer = parts.make_byte_tokenizer((*_CHATML, "<image>", "<video>"))
    configuration = parts.make_configuration(
        "llava_onevision",
        tokenizer,
        {"image_token_index": "<image>", "video_token_index": "<video>"},
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            **{"model_type": "siglip_vision_model", **TOWER, "patch_size": 14},
            **{"image_size": 384, "vision_use_head": False},
        },
    )
    processor = _processor(
        "LlavaOnevision",
        "llava_onevision",
        tokenizer,
        num_image_tokens=(384 // 14) ** 2,
        vision_feature_select_strategy="full",
    )

    def publish(weights: Weights) -> Weights:
        old, new = "vision_tower.", "vision_tower.vision_model."
        return {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor
            for name, tensor in weights.items()
        }

    return Parts(tokenizer, configuration, processor, publish=publish)


def _minicpm() -> Parts:
    names = {
        **{"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        **{"image_start_token": "<image>", "image_end_token": "</image>"},
        **{"slice_start_token": "<slice>", "slice_end_token": "</slice>"},
        **{"image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"},
    }
    tokenizer = parts.make_byte_tokenizer(
        (*_CHATML, *names.values()), kind="Qwen3_5Tokenizer", **parts.named(**names)
    )
    tokenizer.add_tokens(_THOUGHTS)
    configuration = parts.make_configuration(
        "minicpmv4_6",
        tokenizer,
        {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
        dtype="bfloat16",
        text_config={"model_type": "qwen3_5_text", **parts.QWEN3_5_TEXT},
        vision_config={**TOWER, "patch_size": 14, "image_size": 980},
        insert_layer_id=0,
    )
    return Parts(tokenizer, configuration, _processor("MiniCPMV4_6", "minicpmv4_6", tokenizer))


FAMILIES: dict[str, Callable[[], Parts]] = {
    "qwen2_vl": partial(
        _qwen_vl,
        "qwen2_vl",
        parts.QWEN2_TEXT,
        {"depth": 2, "embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 2, "num_heads": 2},
    ),
    "qwen2_5_vl": partial(_qwen_vl, "qwen2_5_vl", parts.QWEN2_TEXT, parts.QWEN2_5_VISION),
    "qwen3_vl": partial(_qwen_vl, "qwen3_vl", parts.QWEN3_TEXT, parts.QWEN3_VISION),
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": partial(_qwen3_5, "qwen3_5"),
    "qwen3_5_moe": partial(
        _qwen3_5, "qwen3_5_moe", **parts.EXPERTS, shared_expert_intermediate_size=64
    ),
    "qwen2_5_omni": _qwen2_5_omni,
    "qwen3_omni_moe": _qwen3_omni,
    "gemma4": _gemma4,
    "internvl": _internvl,
    "glm4v": partial(_glm, "glm4v", "Glm4v"),
    "glm46v": partial(_glm, "glm46v", "Glm46V"),
    "llava_onevision": _llava_onevision,
    "minicpmv4_6": _minicpm,
}
"""The parts of each family's checkpoint. The name of a family is the model's type in transformers,
except for ``glm46v``, whose small model is a ``glm4v``."""

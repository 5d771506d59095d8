"""Chat templates of the tiny checkpoints: short, but with each family's turns, placeholders and
switches, for content that is a string or a list of parts."""

from __future__ import annotations

_PARTS = {
    "image": "item.type == 'image' or 'image' in item or 'image_url' in item",
    "video": "item.type == 'video' or 'video' in item",
    "audio": "item.type == 'audio' or 'audio' in item or 'audio_url' in item",
}
"""How a template recognises a part of each kind."""


def make_template(
    *,
    image: str,
    video: str,
    audio: str = "",
    first: str = "",
    turn: str = "'<|im_start|>' + message.role + '\\n'",
    text: str = "item.text",
    end: str = "'<|im_end|>\\n'",
    answer: str = "'<|im_start|>assistant\\n'",
) -> str:
    """A template that writes turn after turn.

    Args:
        image: The placeholder of an image.
        video: The placeholder of a video.
        audio: The placeholder of a sound; empty if the family hears nothing.
        first: Statements that run at the start of each turn.
        turn: The expression that opens a turn of ``message``.
        text: The expression that writes the text of ``item``.
        end: The expression that closes a turn.
        answer: The expression that asks for an answer.
    """
    lines = ["{%- for message in messages -%}", *first.splitlines(), f"{{{{- {turn} -}}}}"]
    whole = text.replace("item.text", "message.content")
    lines += ["{%- if message.content is string -%}", f"{{{{- {whole} -}}}}"]
    lines += ["{%- else -%}", "{%- for item in message.content -%}"]
    branch = "if"
    for kind, placeholder in {"image": image, "video": video, "audio": audio}.items():
        if placeholder:
            lines += [f"{{%- {branch} {_PARTS[kind]} -%}}", f"{{{{- '{placeholder}' -}}}}"]
            branch = "elif"
    lines += ["{%- elif 'text' in item -%}", f"{{{{- {text} -}}}}", "{%- endif -%}"]
    lines += ["{%- endfor -%}", "{%- endif -%}", f"{{{{- {end} -}}}}", "{%- endfor -%}"]
    lines += ["{%- if add_generation_prompt -%}", f"{{{{- {answer} -}}}}", "{%- endif -%}"]
    return "".join(f"{line}\n" for line in lines)


def at_start(expression: str, condition: str = "") -> str:
    """Statements for ``first`` that write ``expression`` before the first turn."""
    when = f"loop.first and {condition}" if condition else "loop.first"
    return f"{{%- if {when} -%}}\n{{{{- {expression} -}}}}\n{{%- endif -%}}"


def answer_with_thoughts(*, default: bool) -> str:
    """The expression of templates like Qwen3.5's: it opens the thoughts, or writes an empty pair of
    tags, as ``enable_thinking`` says; ``default`` is its value if it is not set."""
    thinks = f"enable_thinking | default({str(default).lower()})"
    tags = f"('<think>\\n' if {thinks} else '<think>\\n\\n</think>\\n\\n')"
    return f"'<|im_start|>assistant\\n' + {tags}"


_QWEN_VISION = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}
_HELPFUL = at_start(
    "'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n'", "message.role != 'system'"
)
"""The system message of families that add one if a conversation has none."""

_QWEN2 = make_template(**_QWEN_VISION, first=_HELPFUL)
_QWEN3 = make_template(**_QWEN_VISION)
_QWEN3_5 = make_template(**_QWEN_VISION, answer=answer_with_thoughts(default=True))

_GLM = {
    "image": "<|begin_of_image|><|image|><|end_of_image|>",
    "video": "<|begin_of_video|><|video|><|end_of_video|>",
    "first": at_start("'[gMASK]<sop>'"),
    "turn": "'<|' + message.role + '|>\\n'",
}
_NO_THOUGHTS = "not enable_thinking | default(true)"

CHAT_TEMPLATES = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "qwen2_5_omni": make_template(
        image="<|vision_bos|><|IMAGE|><|vision_eos|>",
        video="<|vision_bos|><|VIDEO|><|vision_eos|>",
        audio="<|audio_bos|><|AUDIO|><|audio_eos|>",
        first=_HELPFUL,
    ),
    "qwen3_omni_moe": make_template(
        **_QWEN_VISION, audio="<|audio_start|><|audio_pad|><|audio_end|>"
    ),
    "gemma4": make_template(
        image="\\n\\n<|image|>\\n\\n",
        video="\\n\\n<|video|>\\n\\n",
        audio="<|audio|>",
        first=at_start("bos_token")
        + "\n"
        + at_start("'<|turn>system\\n<|think|><turn|>\\n'", "enable_thinking | default(false)"),
        turn="'<|turn>' + message.role | replace('assistant', 'model') + '\\n'",
        end="'<turn|>\\n'",
        answer="'<|turn>model\\n'",
    ),
    "internvl": make_template(image="<IMG_CONTEXT>\\n", video="<video>\\n"),
    "glm4v": make_template(**_GLM, end="''", answer="'<|assistant|>\\n'"),
    "glm46v": make_template(
        **_GLM,
        end=f"'/nothink' if message.role == 'user' and {_NO_THOUGHTS} else ''",
        answer=f"'<|assistant|>' + ('\\n<think></think>' if {_NO_THOUGHTS} else '') + '\\n'",
    ),
    "llava_onevision": make_template(
        image="<image>",
        video="<video>",
        turn="'<|im_start|>' + message.role + ' '",
        text="'\\n' + item.text",
        end="'<|im_end|>'",
    ),
    "minicpmv4_6": make_template(
        image="<|image_pad|>\\n",
        video="<|video_pad|>\\n",
        answer=answer_with_thoughts(default=False),
    ),
}
"""The template of each family."""

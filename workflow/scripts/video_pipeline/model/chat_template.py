"""Whether ``vllm.chat_template_kwargs`` fit the model's chat template."""

from __future__ import annotations

import logging
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

from video_pipeline.common.files import read_object
from video_pipeline.config import Config

logger = logging.getLogger(__name__)

THINKING = "enable_thinking"
"""The switch of the templates of models that think before they answer."""

THINKING_TOKENS = 2048
"""An answer with fewer tokens may end within the thoughts."""


def template_of(folder: Path) -> str:
    """The source of the chat template in the folder of a model; empty if there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        # The engine says what is wrong with a file.
        if template := read_object(folder / name).get("chat_template"):
            return str(template)  # A list of named templates, too, shows its switches.
    return ""


def _thinks(template: str) -> bool:
    """Whether a model thinks if nobody says whether it should: the prompt is then not the one that
    turns thinking off."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    messages = [{"role": "user", "content": "What happens?"}]

    def prompt(**switches: bool) -> str:
        template_of_model = environment.from_string(template)
        return template_of_model.render(messages=messages, add_generation_prompt=True, **switches)

    try:
        return prompt() != prompt(**{THINKING: False})
    except Exception:  # It wants something of transformers.
        return THINKING in template


def check_template(config: Config, folder: Path) -> None:
    """Log a warning for a switch that the template in ``folder`` does not have, and for a model
    that thinks where nobody has said whether it should and the answer is short."""
    template = template_of(folder)
    switches = config.vllm.chat_template_kwargs
    if not template:
        return
    for name in switches:
        if name not in template:
            logger.warning(
                "vllm.chat_template_kwargs.%s: the chat template of %s does not have this switch",
                name,
                config.vllm.model,
            )
    tokens = config.sampling.max_tokens
    if tokens < THINKING_TOKENS and THINKING not in switches and _thinks(template):
        logger.warning(
            "%s may think before it answers, and sampling.max_tokens: %d may end within its "
            "thoughts. Turn them off with vllm.chat_template_kwargs: {%s: false}; or set it to "
            "true, vllm.reasoning_parser to the parser of this model, and raise "
            "sampling.max_tokens",
            config.vllm.model,
            tokens,
            THINKING,
        )

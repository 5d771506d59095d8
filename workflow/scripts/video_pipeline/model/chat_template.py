"""Checks ``vllm.chat_template_kwargs`` against the model's chat template."""

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
        # If a file is damaged, the engine says so.
        if template := read_object(folder / name).get("chat_template"):
            return str(template)  # The text of a list of named templates has all switches, too.
    return ""


def _thinks(template: str) -> bool:
    """Whether a model thinks by default: its default prompt is not the one without thinking."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    messages = [{"role": "user", "content": "What happens?"}]

    def prompt(**switches: bool) -> str:
        template_of_model = environment.from_string(template)
        return template_of_model.render(messages=messages, add_generation_prompt=True, **switches)

    try:
        return prompt() != prompt(**{THINKING: False})
    except Exception:  # It uses a function that only transformers has.
        return THINKING in template


def check_template(config: Config, folder: Path) -> None:
    """Log a warning for a switch that the template in ``folder`` does not have, and if the model
    thinks by default, the configuration does not set that, and answers must be short."""
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

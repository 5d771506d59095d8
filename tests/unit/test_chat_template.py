"""Switches of a chat template: they reach every prompt and the fingerprint."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from video_pipeline.config import load_config
from video_pipeline.data.choosing import create_dataset
from video_pipeline.errors import UserError
from video_pipeline.model.chat_template import check_template, template_of
from video_pipeline.model.prompt import Prompter
from video_pipeline.run.fingerprint import fingerprint, settings_of, written_settings
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.chat_templates import CHAT_TEMPLATES
from video_pipeline.testing.tiny_model import write_tiny_model

THINKS = "{%- if enable_thinking is not defined or enable_thinking %}<think>{%- endif %}"
MESSAGES = [{"role": "user", "content": "What happens?"}]
OFF = {"enable_thinking": False}


@pytest.fixture(scope="module")
def thinking(tmp_path_factory) -> Path:
    """A tiny model whose prompts begin a thought unless they are told not to."""
    folder = write_tiny_model(tmp_path_factory.mktemp("thinking") / "model", "qwen3_vl")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + THINKS)
    return folder


def config_of(model: object = "a/b", **vllm):
    return load_config({"vllm": {"model": str(model), **vllm}})


def test_a_prompt_follows_the_switches(thinking):
    prompts = [Prompter(str(thinking), switches).prompt(MESSAGES) for switches in (None, {}, OFF)]
    assert prompts[0] == prompts[1] == prompts[2] + "<think>"


def test_so_does_one_whose_text_holds_special_tokens(thinking):
    messages = [{"role": "user", "content": "<|im_end|>"}]
    ids = [
        Prompter(str(thinking), switches).llm_input(messages)["prompt_token_ids"]
        for switches in ({}, OFF)
    ]
    assert ids[0][: len(ids[1])] == ids[1]
    assert len(ids[0]) > len(ids[1])


@pytest.mark.parametrize("name", ["qwen_video", "text"])
def test_datasets_hand_the_switches_on(thinking, name):
    config = load_config(
        {
            "vllm": {"model": str(thinking), "chat_template_kwargs": OFF},
            "run": {"dataset": name},
        }
    )
    dataset = create_dataset(config, load_task(config), [], str(thinking))
    assert not dataset.prompter.prompt(MESSAGES).endswith("<think>")


def test_the_default_changes_no_fingerprint():
    plain, empty = (
        settings_of(config) for config in (config_of(), config_of(chat_template_kwargs={}))
    )
    assert plain == empty == {"vllm.model": "a/b"}
    # as it was before there were switches
    assert fingerprint(plain, "qwen_video", 2, 8) == "abc68af4ffbd70bd4b9c70f1a487fb8e"
    assert "vllm.chat_template_kwargs" not in written_settings(config_of())


def test_a_switch_changes_the_fingerprint():
    assert settings_of(config_of(chat_template_kwargs=OFF))["vllm.chat_template_kwargs"] == OFF


def test_vllm_does_not_get_the_switches():
    assert "chat_template_kwargs" not in config_of(chat_template_kwargs=OFF).vllm.arguments


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "return_dict"])
def test_what_the_pipeline_sets_itself_is_refused(name):
    with pytest.raises(UserError, match=rf"vllm.chat_template_kwargs.{name}: .*itself"):
        config_of(chat_template_kwargs={name: True})


@pytest.mark.parametrize(
    ("settings", "max_tokens", "message"),
    [
        ({}, 512, "enable_thinking: false"),
        ({}, 4096, None),
        ({"chat_template_kwargs": OFF}, 512, None),
        ({"chat_template_kwargs": {"enable_thinking": True}}, 512, None),
        ({"chat_template_kwargs": {**OFF, "enable_thoughts": 1}}, 512, "enable_thoughts"),
    ],
)
def test_a_model_that_thinks_is_noticed(thinking, caplog, settings, max_tokens, message):
    config = load_config(
        {
            "vllm": {"model": str(thinking), **settings},
            "sampling": {"max_tokens": max_tokens},
        }
    )
    with caplog.at_level(logging.WARNING):
        check_template(config, thinking)
    assert len(caplog.messages) == (message is not None)
    assert message is None or message in caplog.messages[0]


@pytest.mark.parametrize(
    ("family", "thinks"),
    [
        ("qwen3_5", True),
        ("glm46v", True),
        ("gemma4", False),
        ("minicpmv4_6", False),
        ("glm4v", False),
    ],
)
def test_only_a_model_that_thinks_by_itself_is_noticed(tmp_path, caplog, family, thinks):
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATES[family])
    check_template(config_of(tmp_path), tmp_path)
    assert len(caplog.messages) == thinks


def test_a_template_of_which_only_transformers_makes_a_prompt(tmp_path, caplog):
    (tmp_path / "chat_template.jinja").write_text("{% generation %}{{ enable_thinking }}")
    check_template(config_of(tmp_path), tmp_path)
    assert "may think" in caplog.text


def test_the_template_is_found_where_checkpoints_keep_it(tmp_path):
    assert template_of(tmp_path) == ""
    for name in ("tokenizer_config.json", "chat_template.json"):
        (tmp_path / name).write_text(json.dumps({"chat_template": f"of {name}"}))
        assert template_of(tmp_path) == f"of {name}"
    (tmp_path / "chat_template.jinja").write_text("of a file")
    assert template_of(tmp_path) == "of a file"

"""Secrets: refused in a configuration, by the name of their key in any spelling. What only looks
like one is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import Run
from video_pipeline.config import load_config
from video_pipeline.config.secrets import is_secret, secrets_in
from video_pipeline.config.vllm_names import known_names
from video_pipeline.errors import UserError

SECRETS = """
    hf_token HF_TOKEN hfToken hf-token HFToken hftoken hf.token hf_token2 hf_tokens
    huggingface_token token Token access_token accessToken auth-token bearer_token github_token
    my_token refreshtoken api_key apiKey API-KEY apikey APIKEY api.key api_keys apikeys
    X-API-Key OPENAI_API_KEY openaiApiKey openai_key hf_key secret_key secretkey accesskey
    aws_secret_access_key private_key privateKey master_key secret Secrets client_secret
    password Password passwords db_password dbPassword passwd pwd passphrase credentials
    Authorization bearer jwt
"""

OTHERS = """
    max_tokens max_token min_tokens num_tokens output_tokens tokens maxTokens tokenizer
    tokenizer_mode
    token_field token_ids stop_token_ids token_count tokens_per_second skip_special_tokens
    thinking_token_budget bad_tokens stop_tokens eos_token image_token stop_token endToken
    detokenize key keys id_key sort_key answer_key key_field keyframes primary_key keyword
    monkey keyboard secretary secretion author authority passes compass password_field
    secret_file hf_token_file api_key_env HF_TOKEN_PATH credentials_path lora_path revision
"""


@pytest.mark.parametrize("name", [*SECRETS.split(), "api key"])
def test_a_secret_in_any_spelling(name: str) -> None:
    assert is_secret(name, "abc")
    assert is_secret(name, ["", "abc"])


@pytest.mark.parametrize("name", OTHERS.split())
def test_what_is_no_secret(name: str) -> None:
    assert not is_secret(name, "abc")
    assert not is_secret(name, "a-Long-Value/0123456789+=")


def test_of_vllms_own_names_one_holds_a_secret() -> None:
    names = {*known_names()["vllm"], *known_names()["sampling"]}
    assert [name for name in sorted(names) if is_secret(name, "abc")] == ["hf_token"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hf_token", True),  # take the one that is stored
        ("hf_token", False),
        ("password", True),
        ("hf_token", None),
        ("hf_token", ""),
        ("token", 5),
        ("token", "<|im_end|>"),
        ("my_token", "[SEP]"),
        ("password", "Is there a password on the screen? Answer yes or no."),
        ("credentials", {"type": "string"}),
        ("secret", {"prompt": "What?"}),
    ],
)
def test_values_that_are_no_secrets(name: str, value: Any) -> None:
    assert not is_secret(name, value)
    assert list(secrets_in({name: value})) == []


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"


@pytest.mark.parametrize(
    ("value", "variable"),
    [
        (f"hf_{LETTERS}", "HF_TOKEN"),
        (f"Authorization: Bearer hf_{LETTERS}", "HF_TOKEN"),
        (f"sk-proj-{LETTERS}", "X_Y"),
        (f"sk-{LETTERS}", "X_Y"),
        (f"ghp_{LETTERS}", "X_Y"),
        ("AKIAIOSFODNN7EXAMPLE", "X_Y"),
    ],
)
def test_a_known_form_of_a_secret_under_any_key(value: Any, variable: str) -> None:
    assert list(secrets_in({"task_params": {"xY": value}})) == [("task_params.xY", variable)]
    assert [place for place, _ in secrets_in({"plugins": ["a.py", value]})] == ["plugins.1"]


@pytest.mark.parametrize("value", ["hf_model", "sk-learn-based-classification-of-clips", "hf-a/b"])
def test_what_only_begins_like_a_token(value: str) -> None:
    assert list(secrets_in({"vllm": {"model": value}})) == []


def test_numbers_may_be_passwords() -> None:
    assert is_secret("password", 123456)
    assert is_secret("pwd", "four words and spaces")


@pytest.mark.parametrize(
    ("raw", "place", "variable"),
    [
        ({"vllm": {"hf_token": "s3cret"}}, "vllm.hf_token", "HF_TOKEN"),
        ({"vllm": {"HF-Token": "s3cret"}}, "vllm.HF-Token", "HF_TOKEN"),
        ({"vllm": {"token": "s3cret"}}, "vllm.token", "HF_TOKEN"),
        (
            {"vllm": {"additional_config": {"a": {"apiKey": "s3cret"}}}},
            "vllm.additional_config.a.apiKey",
            "API_KEY",
        ),
        ({"sampling": {"extra_args": {"password": "s3cret"}}}, "password", "PASSWORD"),
        ({"data": {"hub_token": "s3cret"}}, "data.hub_token", "HF_TOKEN"),
        ({"run": {"wandb_api_key": "s3cret"}}, "run.wandb_api_key", "WANDB_API_KEY"),
        ({"api_key": "s3cret"}, "api_key", "API_KEY"),
        (
            {"task_params": {"deep": [{"x": 1}, {"openaiApiKey": "s3cret"}]}},
            "task_params.deep.1.openaiApiKey",
            "OPENAI_API_KEY",
        ),
        ({"task_params": {"secrets": {"hf": "s3cret"}}}, "task_params.secrets", "SECRETS"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "vllm": {"hf_token": "s3cret"}}]},
            "stages.1.vllm.hf_token",
            "HF_TOKEN",
        ),
    ],
)
def test_a_configuration_with_a_secret_is_refused_without_showing_it(
    raw: Any, place: str, variable: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config({**raw, "dta": {}})
    message = str(caught.value)
    assert f"{place}: a secret has no place in the configuration" in message
    assert message.endswith(f"set the environment variable {variable}")
    assert "s3cret" not in message
    assert caught.value.__cause__ is None


def test_all_secrets_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config({"vllm": {"hf_token": "a"}, "task_params": {"api_key": "b"}})
    assert len(str(caught.value).splitlines()) == 3


def test_what_only_looks_like_a_secret_is_taken() -> None:
    params = {
        "max_tokens": 5,
        "token_field": "title",
        "stop_token": "END",
        "questions": {"password": "Is a password to be seen on the screen?"},
    }
    config = load_config({"vllm": {"hf_token": True, "tokenizer": "a/b"}, "task_params": params})
    assert config.task_params == params
    assert config.vllm.arguments["hf_token"] is True


@pytest.mark.slow
def test_a_refused_secret_is_written_nowhere(run: Run) -> None:
    run.write_samples([{"id": 1, "path": "a.mp4"}])
    run.configure(vllm={"hf_token": "hf_s3cret"}, task_params={"apiKey": "hf_s3cret"})
    printed = [
        run.snakemake(succeeds=False),
        run.snakemake("-n", succeeds=False),
        run.snakemake("plan", succeeds=False),
        run.snakemake("--config", 'vllm={"token": "hf_s3cret"}', succeeds=False),
        run.module("preview", "--no-engine", succeeds=False),
    ]
    assert all("set the environment variable HF_TOKEN" in each for each in printed)
    assert "hf_s3cret" not in json.dumps(printed)
    for path in run.folder.rglob("*"):
        if path.is_file() and path.name != "my.yaml":
            assert b"hf_s3cret" not in path.read_bytes(), path

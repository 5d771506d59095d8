"""The files that a configuration names: each one is there, or the message says which is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from video_pipeline.config import Config, load_config
from video_pipeline.errors import UserError
from video_pipeline.run.origin import check_files, file_digest, origin_of


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with an input and a model."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "samples.jsonl").touch()
    (folder / "model").mkdir()
    monkeypatch.chdir(folder)
    return folder


def fault(**sections) -> str:
    """What is wrong with the files of a configuration; empty if nothing is."""
    try:
        check_files([load_config(sections)])
    except UserError as error:
        return str(error)
    return ""


def test_all_files_are_there(folder):
    (folder / "mine.py").touch()
    (folder / "ask.txt").touch()
    assert not fault(
        run={"plugins": ["mine.py", "package.module"]},
        vllm={"model": "./model", "lora_path": "model"},
        task_params={"prompt_file": "ask.txt", "prompt": None, "other_file": None},
    )


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"data": {"input_jsonl": "gone"}}, "data.input_jsonl"),
        ({"data": {"input_jsonl": "no/such/gone"}}, "data.input_jsonl"),
        ({"run": {"plugins": ["gone.py"]}}, "run.plugins"),
        ({"run": {"plugins": ["./gone"]}}, "run.plugins"),
        ({"task_params": {"prompt_file": "gone.j2"}}, "task_params.prompt_file"),
        ({"vllm": {"model": "/no/such/gone"}}, "vllm.model"),
        ({"vllm": {"model": "./gone"}}, "vllm.model"),
        ({"vllm": {"model": "runs/7/gone"}}, "vllm.model"),
        ({"vllm": {"model": "~/gone"}}, "vllm.model"),
        ({"vllm": {"lora_path": "gone"}}, "vllm.lora_path"),
    ],
)
def test_each_file_that_is_not_there_is_named(folder, sections, place):
    message = fault(**sections)
    (value,) = (v if isinstance(v, str) else v[0] for v in next(iter(sections.values())).values())
    assert message.startswith(f"{place}: {os.path.abspath(value)} does not exist")


def test_all_of_them_are_named_at_once(folder):
    message = fault(run={"plugins": ["a.py", "b.py"]}, data={"input_jsonl": "c.jsonl"})
    for line, name in zip(message.splitlines(), ("c.jsonl", "a.py", "b.py"), strict=False):
        assert f"{folder}/{name} does not exist" in line


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-7B", "gpt2", "s3://a/b/c", "a/b/c.gguf"])
def test_a_model_of_the_hub_is_no_file(folder, model):
    assert not fault(vllm={"model": model})


def test_a_model_that_is_not_asked_need_not_be_there(folder):
    assert not fault(vllm={"model": "/no/such"}, run={"engine": "simulated"})


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("sampels.jsonl", "samples.jsonl"),
        ("Samples.JSONL", "samples.jsonl"),
        ("../wrok/samples.jsonl", "samples.jsonl"),
        ("../wrok/other.jsonl", ""),
    ],
)
def test_the_nearest_name_is_proposed(folder, given, near):
    expected = str(folder / near).rstrip("/")
    assert f"did you mean {expected}?" in fault(data={"input_jsonl": given})


def test_no_name_is_near(folder):
    assert "did you mean" not in fault(data={"input_jsonl": "xyz"})


def test_home_is_not_put_in(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert f"did you mean {folder}/model" in fault(vllm={"model": "~/model"})


def test_what_is_there_but_is_no_file(folder):
    (folder / "link.jsonl").symlink_to("gone.jsonl")
    os.mkfifo(folder / "pipe")
    assert "model is not a file, but a folder" in fault(run={"plugins": ["./model"]})
    assert "pipe is not a file" in fault(data={"input_jsonl": "pipe"})
    assert "link.jsonl is a link to gone.jsonl" in fault(data={"input_jsonl": "link.jsonl"})
    assert "samples.jsonl is not a folder" in fault(vllm={"lora_path": "samples.jsonl"})
    assert "does not exist" in fault(data={"input_jsonl": "samples.jsonl/x"})


def test_the_output_of_a_stage_need_not_be_there(folder):
    stages = {"stages": [{"name": "one"}, {"name": "two", "vllm": {"model": "./gone"}}]}
    configs = [own for _, own in load_config(stages).by_stage()]
    check_files(configs[:1])
    with pytest.raises(UserError) as caught:
        check_files(configs)
    assert str(caught.value).splitlines()[0].startswith("vllm.model")  # and nothing else
    assert "output.describe.one.jsonl" not in str(caught.value)


def test_a_configuration_file_that_is_not_there(folder):
    (folder / "my.yaml").touch()
    with pytest.raises(UserError, match=r"work/my\.yml does not exist; did you mean .*my\.yaml"):
        load_config("my.yml")


def test_the_digest_of_a_large_file_is_its_size_and_time(folder):
    path = folder / "large"
    with open(path, "wb") as stream:
        stream.truncate(1_000_001)
    first = file_digest(path)
    os.utime(path, ns=(1, 1))
    assert file_digest(path) != first
    assert file_digest(folder / "gone") is None


def test_an_origin_reads_back_from_the_resolved_configuration(folder):
    config = load_config(
        {
            "vllm": {"hf_overrides": {"a": 1e-5}, "lora_path": "model"},
            "sampling": {"top_p": 0.9, "stop": ["x"]},
            "task_params": {"prompt": "é", "n": 1.0},
        }
    )
    (folder / "resolved.yaml").write_text(config.to_yaml())
    assert origin_of(load_config("resolved.yaml")) == origin_of(config)
    assert origin_of(config) != origin_of(Config())

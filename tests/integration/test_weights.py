"""Weights of a model of the hub: fetched once, with a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from helpers import Run, samples
from hub import COMMIT, Hub, serving

MODEL = "lab/tiny"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FILES = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps({"weight_map": dict(enumerate(SHARDS))}).encode(),
    **{name: name.encode() * 100 for name in SHARDS},
    "original/consolidated.00.pth": b"x",
    "extra.safetensors": b"in no index",
    "pytorch_model.bin": b"the same once more",
}


@pytest.fixture
def hub():
    """A hub with one model."""
    with serving(Hub(MODEL, dict(FILES))) as hub:
        yield hub


@pytest.fixture
def split(run: Run) -> Run:
    """A run whose input is split."""
    run.write_samples(samples(2))
    run.configure(run={"engine": "vllm"}, vllm={"model": MODEL, "revision": COMMIT})
    run.script("split.py", "--num-shards", "1")
    return run


def fetch(run: Run, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start the step that fetches."""
    return subprocess.Popen(
        run.command("fetch.py", "--num-shards", "1"),
        cwd=run.folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_each_file_is_fetched_once_and_then_no_network_is_needed(split, hub, tmp_path):
    environment = hub.environment(tmp_path / "hf")
    started = [fetch(split, environment) for _ in range(3)]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    expected = {"config.json", "model.safetensors.index.json", *SHARDS}
    assert hub.served == dict.fromkeys(expected, 1)
    (marker,) = split.folder.rglob("weights.txt")
    assert marker.read_text().strip().endswith(f"models--lab--tiny/snapshots/{COMMIT}")

    # a node without a network
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    process = fetch(split, offline)
    assert process.wait() == 0, process.stdout.read()
    (tmp_path / "hf/hub/models--lab--tiny/snapshots" / COMMIT / SHARDS[1]).unlink()
    process = fetch(split, offline)
    text = process.communicate()[0]
    assert process.returncode == 1
    assert f"the hub does not give {MODEL}" in text
    assert f"hf download {MODEL}" in text
    assert "Traceback" not in text


def test_a_gated_model_says_what_to_do(split, hub, tmp_path):
    hub.token = "hf_letmein"
    environment = hub.environment(tmp_path / "hf")
    process = fetch(split, {**environment, "HF_TOKEN": ""})
    text = process.communicate()[0]
    assert process.returncode == 1
    assert f"accept its terms on https://huggingface.co/{MODEL}" in text
    assert "HF_TOKEN" in text
    assert "Traceback" not in text
    assert fetch(split, {**environment, "HF_TOKEN": hub.token}).wait() == 0


def test_what_is_not_here_without_a_network_is_said_with_the_command(split, tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    process = fetch(split, environment)
    text = process.communicate()[0]
    assert process.returncode == 1
    assert f"hf download {MODEL}" in text


def test_infer_waits_for_the_weights_where_a_model_is_of_the_hub(split):
    assert has_fetch(split.snakemake("-n"))
    (split.folder / "local").mkdir()
    split.configure(vllm={"model": "local"})
    assert not has_fetch(split.snakemake("-n"))
    split.configure(run={"engine": "simulated"}, vllm={"model": MODEL, "revision": COMMIT})
    assert not has_fetch(split.snakemake("-n"))


def has_fetch(said: str) -> bool:
    """Whether a dry run lists the rule that fetches."""
    rules = {line.split()[0] for line in said.splitlines() if line.strip()}
    assert "infer" in rules
    return "fetch" in rules

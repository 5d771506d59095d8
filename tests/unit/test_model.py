"""The commit of a model of the hub: resolved once, kept, and the one that is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from helpers import Splitter, samples
from huggingface_hub import constants
from video_pipeline.config import Config, load_config
from video_pipeline.errors import UserError
from video_pipeline.infer import infer as inference
from video_pipeline.model.model import Model, with_commit
from video_pipeline.run.layout import Layout


class Unreachable(Exception):
    """As of the client's own HTTP library: no OSError."""


OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub, whose ``main`` tests move; ``asked`` are the names and revisions that were asked for.
    None: it does not answer."""
    hub = SimpleNamespace(main=OLD, asked=[])

    def model_info(
        self: object, model: str, revision: str | None = None, timeout: float | None = None
    ) -> SimpleNamespace:
        hub.asked.append((model, revision))
        if hub.main is None:
            raise Unreachable("no network")
        return SimpleNamespace(sha=hub.main)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


def of(tmp_path: Path, **vllm: Any) -> tuple[Config, Layout]:
    config = load_config(
        {"data": {"output_jsonl": str(tmp_path / "out.jsonl")}, "vllm": {"model": "a/b", **vllm}}
    )
    return config, Layout.of(config, 1)


def known_commit(config: Config, layout: Layout) -> str | None:
    return Model.of(config).known_commit(layout.commits)


def resolve_commit(config: Config, layout: Layout) -> str | None:
    return Model.of(config).resolve_commit(layout.commits)


def test_it_is_resolved_once(tmp_path: Path, hub: SimpleNamespace) -> None:
    """What is pushed later is another model, and nobody's finished samples are inferred again."""
    here = of(tmp_path)
    assert known_commit(*here) is None
    assert resolve_commit(*here) == OLD
    hub.main = NEW
    assert resolve_commit(*here) == known_commit(*here) == OLD
    assert hub.asked == [("a/b", "main")]
    assert resolve_commit(*of(tmp_path, revision="v2")) == NEW
    assert resolve_commit(*here) == OLD


@pytest.mark.parametrize("model", [".", "s3://bucket/a", "/models/a/b", "a/b/c.gguf"])
def test_a_model_that_is_not_of_the_hub_has_none(
    tmp_path: Path, hub: SimpleNamespace, model: str
) -> None:
    assert resolve_commit(*of(tmp_path, model=model)) is None
    assert not hub.asked
    assert not (tmp_path / ".journal").exists()


def test_a_commit_in_the_configuration_is_the_commit(tmp_path: Path, hub: SimpleNamespace) -> None:
    assert resolve_commit(*of(tmp_path, revision=NEW)) == NEW
    assert not hub.asked


@pytest.mark.parametrize("revision", [None, "v2"])
def test_without_a_network_the_cache_tells(
    tmp_path: Path, hub: SimpleNamespace, revision: str | None
) -> None:
    hub.main = None
    here = of(tmp_path, revision=revision)
    with pytest.raises(UserError, match=r"a/b is no folder here.*no network.*hf download a/b"):
        resolve_commit(*here)
    refs = tmp_path / "cache" / "models--a--b" / "refs"
    refs.mkdir(parents=True)
    (refs / (revision or "main")).write_text(NEW)
    assert resolve_commit(*here) == NEW


def test_what_is_written_down_and_damaged_is_said(tmp_path: Path, hub: SimpleNamespace) -> None:
    config, layout = of(tmp_path)
    resolve_commit(config, layout)
    layout.commits.write_text("{")
    with pytest.raises(UserError, match=r"commits\.json is damaged"):
        resolve_commit(config, layout)


def test_the_engine_loads_that_commit(tmp_path: Path) -> None:
    config, _ = of(tmp_path, revision="v2")
    assert with_commit(config, NEW).vllm.arguments["revision"] == NEW
    assert with_commit(config, None) is config
    other = with_commit(of(tmp_path, tokenizer="c/d")[0], NEW).vllm.arguments
    assert (other["revision"], other["tokenizer_revision"]) == (NEW, "main")


def test_a_job_loads_the_commit_that_split_resolved(
    splitting: Splitter, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a node that reaches no hub, and after somebody pushed."""
    splitting.run.configure(run={"engine": "vllm"}, vllm={"model": "a/b"})
    splitting(samples(2), 1)
    assert splitting.manifest.commit == OLD
    written = json.loads(splitting.layout.commits.read_text())
    assert written == {"a/b@main": OLD}
    hub.main = None
    seen = []

    def stop(shard: inference.Shard) -> None:
        seen.append(shard.config.vllm.arguments["revision"])
        raise UserError("stop here")

    monkeypatch.setattr(inference.Shard, "find_pending", stop)
    with pytest.raises(UserError, match="stop here"):
        inference.infer(splitting.run.config, splitting.layout, 0, 1)
    assert seen == [OLD]
    assert splitting().manifest.journal == str(
        splitting.layout.journal / splitting.manifest.journal.rsplit("/", 1)[1]
    )

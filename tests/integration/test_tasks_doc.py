"""The examples of the pages about tasks, datasets, stages and costs work as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, Run
from video_pipeline.commands.preview import preview
from video_pipeline.config import load_config
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.clips import write_demo_clips

PAGES = ("tasks", "vision", "datasets", "choosing", "stages", "cost")
TEXT = "".join((PROJECT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def name_of(plugin: str) -> str:
    return re.findall(r'^    name = "(\w+)"$', plugin, re.MULTILINE)[-1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_demo_clips(tmp_path_factory.mktemp("clips"))[0]


@pytest.mark.parametrize("plugin", [pytest.param(b, id=name_of(b)) for b in blocks("python")])
def test_a_plugin_shows_its_video(plugin, here: Run, clip, capsys):
    (here.folder / f"{name_of(plugin)}.py").write_text(plugin, encoding="utf-8")
    config = load_config(
        {
            "run": {
                "task": name_of(plugin),
                "plugins": [f"{name_of(plugin)}.py"],
                "engine": "simulated",
            }
        }
    )
    preview(config, [{"path": str(clip)}], Path("sheet.png"), with_engine=False)
    assert "<|im_start|>user" in capsys.readouterr().out
    assert Path("sheet.png").stat().st_size > 0
    task = load_task(config)
    answers = {"judge": json.dumps({"kind": "film", "people": 2})}
    fields = task.parsed(answers.get(task.name, "Rain."), {"__key": "k"}, "mood")
    assert fields or task.name in ("how_it_ends", "colour")


def test_a_transcript_goes_into_the_prompt_if_there_is_one(run: Run, clip):
    (plugin,) = (block for block in blocks("python") if name_of(block) == "with_transcript")
    run.write_plugin(plugin)
    run.configure(run={"task": "with_transcript"})
    said = "Good evening. " * 40
    transcripts = {"said": {"transcript": said}, "null": {"transcript": None}, "missing": {}}
    run.write_samples([{"id": key, "path": str(clip), **t} for key, t in transcripts.items()])
    run.snakemake()
    tokens = {record["__key"]: record["__usage"]["prompt_tokens"] for record in run.records()}
    assert tokens["null"] == tokens["missing"]
    assert tokens["said"] - tokens["null"] >= len(said) // 4

    (settings,) = (yaml.safe_load(block) for block in blocks("yaml") if "transcript" in block)
    task = load_task(load_config(settings))
    for key, fields in transcripts.items():
        (_, user) = task.messages({"__key": key, "__video_uri": "a.mp4", **fields})
        text = user["content"][-1]["text"]
        assert ("Good evening" in text) == (key == "said")
        assert "None" not in text
        assert text.endswith("Describe it.")


def test_the_plugins_are_all_there():
    assert len(blocks("python")) == 6
    assert len(blocks("yaml")) == 15


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_configuration_is_one(text, here: Run):
    settings = yaml.safe_load(text)
    if settings.get("run", {}).get("plugins"):
        return  # its task is in the plugin above
    (judge,) = (block for block in blocks("python") if name_of(block) == "judge")
    (here.folder / "judge.py").write_text(judge, encoding="utf-8")
    for _, config in load_config(settings).by_stage():
        assert load_task(config).name == config.run.task


def test_the_shipped_stages_are_stages():
    names = [name for name, _ in load_config(PROJECT / "config" / "stages.yaml").by_stage()]
    assert names == ["caption", "prose"]


def test_the_shipped_questions_are_three():
    task = load_task(load_config(PROJECT / "config" / "questions.yaml"))
    assert len(task.conversations({"__key": "k", "__video_uri": "a.mp4"})) == 3


def test_the_shipped_example_for_a_thinking_model_turns_thinking_off():
    config = load_config(PROJECT / "config" / "thinking.yaml")
    assert config.vllm.chat_template_kwargs == {"enable_thinking": False}

"""The examples of docs/tasks.md work as they stand."""

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

PAGE = (PROJECT / "docs" / "tasks.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


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
    preview(config, {"path": str(clip)}, Path("sheet.png"), with_engine=False)
    assert "<|im_start|>user" in capsys.readouterr().out
    assert Path("sheet.png").stat().st_size > 0
    task = load_task(config)
    answers = {"judge": json.dumps({"kind": "film", "people": 2})}
    fields = task.parsed(answers.get(task.name, "Rain."), {"__key": "k"}, "mood")
    assert fields or task.name in ("how_it_ends", "colour")


def test_the_plugins_are_all_there():
    assert len(blocks("python")) == 5
    assert len(blocks("yaml")) == 11


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_configuration_is_one(text):
    settings = yaml.safe_load(text)
    if settings.get("run", {}).get("plugins"):
        return  # its task is in the plugin above
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

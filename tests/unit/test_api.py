"""The module that plugins import from: every name of it, and no torch before a dataset is asked
for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Run
from video_pipeline import api, errors
from video_pipeline.commands.preview import preview
from video_pipeline.config import load_config
from video_pipeline.data import base as data_base
from video_pipeline.data import qwen_video
from video_pipeline.data import registry as data_registry
from video_pipeline.model import prompt
from video_pipeline.tasks import base as tasks_base
from video_pipeline.tasks import prompts, scores
from video_pipeline.tasks import registry as tasks_registry
from video_pipeline.testing.clips import write_clip

PLUGIN = """\
from video_pipeline.api import Prompt, QwenVideoDataset, Task, UserError
from video_pipeline.api import register_dataset, register_task

@register_dataset("mine")
class Mine(QwenVideoDataset):
    pass

@register_task
class Ask(Task):
    name = "ask"
    dataset_name = "mine"

    def build_messages(self, sample):
        video = {"type": "video", "video": sample["__video_uri"]}
        text = Prompt(self.params, "prompt", "Who is that?").render(sample)
        return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]
"""


def test_its_names_are_those_of_the_modules_that_define_them() -> None:
    of_tasks = (errors, tasks_base, tasks_registry, prompts, scores)
    homes = (*of_tasks, data_base, data_registry, qwen_video, prompt)
    for name in api.__all__:
        definition = getattr(api, name)
        (home,) = [home for home in homes if home.__name__ == definition.__module__]
        assert getattr(home, name) is definition


def test_torch_is_imported_with_the_first_dataset() -> None:
    program = """
import sys
from video_pipeline.api import Prompt, Task, TaskError, UserError, register_task
assert "torch" not in sys.modules, "by tasks"
from video_pipeline.api import BaseDataset
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_another_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Tusk'"):
        exec("from video_pipeline.api import Tusk")


def test_a_plugin_needs_no_other_module(
    here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=1.0)
    here.write_plugin(PLUGIN)
    config = load_config({"run": {"task": "ask", "plugins": ["plugin.py"], "engine": "simulated"}})
    preview(config, [{"path": str(clip)}], Path("sheet.png"), with_engine=False)
    assert "Who is that?" in capsys.readouterr().out

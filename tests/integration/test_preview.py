"""``python -m video_pipeline.preview``: what a task asks and what the model sees."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SCRIPTS, forgetting_plugins
from PIL import Image
from video_pipeline.commands import preview
from video_pipeline.errors import UserError
from video_pipeline.testing.clips import write_demo_clips
from video_pipeline.testing.tiny_model import write_tiny_model

PLUGIN = """\
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Mine(Task):
    name = "mine"

    def build_messages(self, sample):
        text = BUILD
        return [{"role": "user", "content": [
            {"type": "video", "video": sample["__video_uri"]}, {"type": "text", "text": text}]}]

    def parse(self, text, sample):
        return {"answer": PARSE}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, clips, and a vLLM that cannot be imported."""
    folder = tmp_path_factory.mktemp("preview")
    write_tiny_model(folder / "model")
    write_demo_clips(folder)
    (folder / "videos").mkdir()
    (folder / "broken" / "vllm").mkdir(parents=True)
    (folder / "broken" / "vllm" / "__init__.py").write_text("raise ImportError('no vLLM here')\n")
    return folder


def arguments_of(folder: Path, arguments: tuple[str, ...], build: str, parse: str) -> list[str]:
    """Writes the plugin; returns the arguments of preview."""
    plugin = PLUGIN.replace("BUILD", build).replace("PARSE", parse)
    (folder / "mine.py").write_text(plugin, encoding="utf-8")
    return ["mine.py", "--task", "mine", "--video", "h264.mp4", *arguments]


def failing(folder: Path, *arguments: str) -> str:
    """What the command says, which fails."""
    paths = os.pathsep.join([str(folder / "broken"), str(SCRIPTS)])
    command = [sys.executable, "-m", "video_pipeline.preview"]
    done = subprocess.run(
        [*command, *arguments_of(folder, arguments, "'Why?'", "text")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture
def show(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs preview in this process; returns what it printed."""

    def call(*arguments: str, build: str = "'Why?'", parse: str = "text") -> str:
        return only(*arguments_of(folder, arguments, build, parse))

    def only(*arguments: str) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["preview", *arguments])
        with forgetting_plugins():
            preview.main()
        return capsys.readouterr().out

    call.only = only
    return call


WITHOUT_ENGINE = ("--model", "model", "--no-engine")


def test_all_is_shown_without_vllm_before_a_sheet_that_cannot_be_written(folder: Path) -> None:
    printed = failing(folder, *WITHOUT_ENGINE, "--sheet", "missing/x.png")
    assert "<|vision_start|><|video_pad|><|vision_end|>Why?<|im_end|>" in printed
    assert "error: --sheet missing/x.png: " in printed


def test_without_no_engine_it_says_that_vllm_is_missing(folder: Path) -> None:
    printed = failing(folder, "--model", "model")
    assert re.search(r"vLLM .* \(no vLLM here\).* --no-engine shows everything", printed)


def test_what_the_model_sees(folder: Path, show) -> None:
    printed = show(*WITHOUT_ENGINE)
    assert '"text": "Why?"' in printed
    assert "<|vision_start|><|video_pad|><|vision_end|>Why?<|im_end|>" in printed
    times = re.findall(r"^(\d+\.\d\d) s  (\d+)x(\d+)$", printed, re.MULTILINE)
    assert float(times[0][0]) == 0.0
    assert [float(t) for t, _, _ in times] == sorted({float(t) for t, _, _ in times})
    # a token stands for two frames of 28 x 28 pixels
    width, height = int(times[0][1]), int(times[0][2])
    visual = len(times) // 2 * (width // 28) * (height // 28)
    assert f"{visual} of them visual" in printed
    with Image.open(folder / "preview.png") as sheet:
        assert sheet.width > 200


@pytest.mark.parametrize(
    ("arguments", "build", "message"),
    [
        ([], "sample['title']", r"KeyError: 'title' \(.*mine\.py, line 9"),
        (["--video", "gone.mp4"], "''", r"cannot read .*gone\.mp4: VideoReadError: No such file"),
        (
            ["--video", ""],
            "''",
            r"no video in 'path' \(data.video_field\): give --video, or 'path' in --sample",
        ),
        (["--sample", "[1]"], "''", "--sample: expected a JSON object"),
    ],
)
def test_mistakes_are_named(show, arguments: list[str], build: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        show(*WITHOUT_ENGINE, *arguments, build=build)


def test_parse_that_fails_names_the_line(folder: Path, show) -> None:
    (folder / "simulated.yaml").write_text("run: {engine: simulated}\n")
    with pytest.raises(UserError, match=r"parse: AttributeError: .*no_such.*mine\.py, line 14\)"):
        show("--configfile", "simulated.yaml", parse="text.no_such_thing")


def test_a_hostile_text_stays_text(show) -> None:
    printed = show(*WITHOUT_ENGINE, "--sample", r'{"t": "\u001b[2J"}', build="sample['t']")
    assert "\x1b" not in printed
    assert r"\x1b[2J" in printed


def test_a_title_that_looks_like_structure_is_shown_as_what_it_is(show) -> None:
    title = "an <|im_end|> and a <|video_pad|>"
    printed = show(*WITHOUT_ENGINE, build=repr(title))
    assert f"<|vision_end|>{title}<|im_end|>" in printed
    assert "\nplain characters in the text of a message: <|im_end|>, <|video_pad|>\n" in printed
    # as many tokens as a title of the same length has, each of one character
    (tokens,) = re.findall(r"tokens: .*", printed)
    assert tokens in show(*WITHOUT_ENGINE, build=repr(title.replace("<", "#")))
    assert "plain characters" not in show(*WITHOUT_ENGINE)


def test_of_a_folder_three_samples_are_shown(folder: Path, show) -> None:
    for name in "abcde":
        shutil.copy(folder / "h264.mp4", folder / "videos" / f"{name}.mp4")
    printed = show(*WITHOUT_ENGINE, "--video", "videos", build="sample['path']")
    assert re.findall(r"sample (\d): (\S+) ", printed) == [
        ("1", "a.mp4"),
        ("2", "c.mp4"),
        ("3", "e.mp4"),
    ]
    assert "<|vision_end|>e.mp4<|im_end|>" in printed
    assert {path.name for path in folder.glob("preview[0-9].png")} == {
        "preview1.png",
        "preview2.png",
        "preview3.png",
    }


def test_of_a_configuration_the_first_three_samples_are_shown(folder: Path, show) -> None:
    plugin = arguments_of(folder, (), "sample['title']", "text")[:3]
    lines = [{"path": "h264.mp4", "title": f"title {number}"} for number in range(5)]
    lines[1]["path"] = "gone.mp4"
    (folder / "titles.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "mine.yaml").write_text("data: {input_jsonl: titles.jsonl}\nvllm: {model: model}\n")
    printed = show.only(*plugin, "--configfile", "mine.yaml", "--no-engine")
    assert re.search(
        r"it fails: the dataset cannot read \S+/gone.mp4: VideoReadError: No such", printed
    )
    assert re.findall(r"<\|vision_end\|>(.*?)<\|im_end\|>", printed) == [
        "title 0",
        "title 2",
    ]


def test_samples_without_a_video_are_shown_and_an_input_without_samples_is_named(
    folder: Path, show
) -> None:
    (folder / "text.yaml").write_text(
        "data: {input_jsonl: texts.jsonl}\ntask_params: {prompt: 'Shorten: {{ caption }}'}\n"
        "run: {engine: simulated, task: rewrite, dataset: text}\n"
    )
    (folder / "texts.jsonl").write_text('{"caption": "a long walk"}\n')
    assert "Shorten: a long walk" in show.only("--configfile", "text.yaml", "--no-engine")
    for content, words in (("", "holds no samples"), ("[1]\n", r"1 bad line\(s\)")):
        (folder / "texts.jsonl").write_text(content)
        with pytest.raises(UserError, match=rf"texts\.jsonl:? {words}"):
            show.only("--configfile", "text.yaml", "--no-engine")


def test_a_folder_without_videos_is_named(folder: Path, show) -> None:
    (folder / "none").mkdir()
    with pytest.raises(UserError, match="/none: no videos in this folder or below"):
        show(*WITHOUT_ENGINE, "--video", "none")


def test_a_value_that_is_no_json_is_named(folder: Path, show) -> None:
    (folder / "simulated.yaml").write_text("run: {engine: simulated}\n")
    with pytest.raises(UserError, match=r"parse: ValueError: parse returned '\w+' with a number"):
        show("--configfile", "simulated.yaml", parse="1 << 70")

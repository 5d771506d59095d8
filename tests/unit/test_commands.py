"""``video-pipeline``: its list of commands, and the help of each."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import suppress

import pytest
from helpers import PROJECT, SCRIPTS
from video_pipeline.commands import main as commands
from video_pipeline.errors import UserError

PAGES = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")]
SHOWN = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(
            r"(?:^|`|^    )video-pipeline ([a-z]+ (?!\.)[^`\n#]*)",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        if "[" not in command and not command.startswith("prune")
    }
)
"""The commands that pages show."""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs ``video-pipeline``; returns what it printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["video-pipeline", *arguments])
        with suppress(SystemExit):
            commands.main()
        return capsys.readouterr().out

    return run


def test_it_lists_its_commands_with_a_line_each(call) -> None:
    lines = re.findall(r"^  ([a-z]+) +[a-z].+$", call(), re.MULTILINE)
    modules = {path.stem for path in (SCRIPTS / "video_pipeline" / "commands").glob("*.py")}
    assert set(lines) == modules - {"__init__", "main", "options", "showing"}
    assert call("--help") == call()
    assert max(map(len, call().splitlines())) <= 100


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_each_has_a_help_with_an_example(call, name: str) -> None:
    text = call(name, "--help")
    assert text.startswith(f"usage: video-pipeline {name} ")
    assert re.search(rf"\nexample:\n\nvideo-pipeline {name} \S", text)


class Parsed(Exception):
    """The arguments are right."""


@pytest.mark.parametrize("command", SHOWN)
def test_the_commands_of_the_pages_are_such(call, monkeypatch, command: str) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, arguments=None):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        call(*shlex.split(command))


def test_the_pages_show_most_commands() -> None:
    assert {command.split()[0] for command in SHOWN} >= set(commands.COMMANDS) - {"report"}


def test_an_option_of_snakemake_is_none_of_a_command(monkeypatch, capsys) -> None:
    """``--config`` is no short name of ``--configfile``."""
    arguments = ["plan", "--configfile", "my.yaml", "--config", "input=../videos"]
    monkeypatch.setattr(sys, "argv", ["video-pipeline", *arguments])
    with pytest.raises(SystemExit):
        commands.main()
    assert "unrecognized arguments: --config input=../videos" in capsys.readouterr().err


def test_preview_says_where_the_input_of_a_run_is_named(call, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("run: {engine: simulated}\n")
    with pytest.raises(
        UserError, match=r"^data\.input_jsonl: /.*/samples\.jsonl does not exist"
    ) as e:
        call("preview", "--configfile", "my.yaml", "--no-engine")
    assert "set data.input_jsonl, or give OUTPUT.config.yaml of a run" in str(e.value)


def test_a_wrong_name_gets_the_nearest(call) -> None:
    with pytest.raises(UserError, match="no command is called 'wach'; did you mean 'watch'"):
        call("wach")


def test_preview_finds_a_wrong_video_before_it_asks_for_the_model(
    call, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for name in ("videos", "clip.mp4"):
        with pytest.raises(UserError, match=f"{name} is no plugin; .* --video {name}"):
            call("preview", name, "--no-engine")
    with pytest.raises(UserError, match=r"--video: /.*/clip\.mp4 does not exist"):
        call("preview", "--video", "clip.mp4", "--no-engine")


PRINTS = """\
from rich.console import Console
from video_pipeline.common import program


def main():
    for _ in range(999):
        FUNCTION("\u4e2d" * 99)


program.run(main)
"""


@pytest.mark.parametrize(
    "function", ["print", "Console(highlight=False, soft_wrap=True).print"], ids=("plain", "rich")
)
@pytest.mark.parametrize(
    ("encoding", "command"), [("utf-8", "head -c 9"), ("latin-1", "head -c 9; cat > printed")]
)
def test_it_ends_quietly_if_nobody_reads_on_or_the_terminal_lacks_a_letter(
    tmp_path, encoding: str, command: str, function: str
) -> None:
    (tmp_path / "prints.py").write_text(PRINTS.replace("FUNCTION", function))
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} prints.py | ({command})",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.stderr == b""
    assert done.stdout == ("\u4e2d" * 9).encode(encoding, "backslashreplace")[:9]


@pytest.mark.parametrize("command", ["watch --once", "retry", "journal stats"])
def test_it_needs_neither_docstrings_nor_an_output(tmp_path, command: str) -> None:
    """With PYTHONOPTIMIZE=2 Python has no docstrings, after ``>&-`` no standard output."""
    (tmp_path / "my.yaml").write_text("run: {engine: simulated}\n")
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m video_pipeline {command} --configfile my.yaml >&-",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONOPTIMIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("error: results/output.")


@pytest.mark.parametrize("command", ["samples", "scenes"])
def test_an_input_that_only_a_shell_can_read(tmp_path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "video_pipeline", command, "~/videos", "-o", "samples.jsonl"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "HOME": "/home/me"},
        capture_output=True,
        text=True,
    )
    expected = "got '~/videos', expected /home/me/videos, because only a shell replaces ~"
    assert done.stderr == f"error: the input: {expected}\n"


def test_the_console_script_is_the_module() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["video-pipeline"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))

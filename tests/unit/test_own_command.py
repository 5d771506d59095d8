"""The command that messages name, as a shell of the user's finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SCRIPTS
from video_pipeline.common.own_command import own_command


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """The ``bin`` of a virtual environment that runs this process, not activated, and without
    video-pipeline."""
    folder = tmp_path / "my venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


def install(folder: Path) -> Path:
    script = folder / "video-pipeline"
    script.touch(mode=0o755)
    return script


def test_an_activated_environment_needs_the_name_alone(environment, monkeypatch):
    script = install(environment)
    assert own_command(SCRIPTS) == [str(script)]
    monkeypatch.setenv("PATH", f"{environment}:{os.environ['PATH']}")
    assert own_command(SCRIPTS) == ["video-pipeline"]


def test_the_name_is_not_that_of_another_installation(environment, tmp_path, monkeypatch):
    script = install(environment)
    other = tmp_path / "other"
    other.mkdir()
    install(other)
    monkeypatch.setenv("PATH", f"{other}:{os.environ['PATH']}")
    assert own_command(SCRIPTS) == [str(script)]


def test_without_an_installation_it_is_the_module(environment):
    python = Path(sys.prefix, "bin", "python")
    (environment / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (environment / "python").chmod(0o755)
    said = subprocess.run(
        [*own_command(SCRIPTS), "--help"], cwd="/", capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("usage: video-pipeline COMMAND")

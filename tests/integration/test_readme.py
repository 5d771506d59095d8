"""The README is true: its commands are run, its Python works, its links exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

RUN_ELSEWHERE = {
    "git clone https://github.com/OWNER/video-pipeline && cd video-pipeline": "a copy is made here",
    "pip install -r envs/gpu.txt && pip install -e .": "test_install.py",
    "make demo": "test_vllm.py",
    "make test": "what runs this test",
    "snakemake --workflow-profile profiles/mine --configfile my.yaml": "test_slurm.py",
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("bash")).splitlines()
    return [line for line in lines if line not in RUN_ELSEWHERE]


def clone(folder: Path) -> None:
    """Copy the repository into ``folder``, with the console script that pip would install."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        script = folder / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f"#!{sys.executable}\nfrom {module} import {function}\n"
            f"if __name__ == '__main__':\n    {function}()\n"
        )
        script.chmod(0o755)


def run_in(folder: Path, command: str) -> str:
    """Run ``command`` as a user does in ``folder``; returns what it printed."""
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(folder / "workflow/scripts"),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    finished = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_the_quickstart_makes_captions(tmp_path):
    """With a tiny model under the name of the README's, and settings for a CPU as the defaults."""
    clone(tmp_path)
    quickstart = [line for line in "".join(blocks("bash")[:1]).splitlines() if line]
    assert len(quickstart) <= 3
    command = quickstart[-1]
    name = re.search(r"model=(\S+)", command)[1]
    write_tiny_model(tmp_path / name)
    for clip in ("a", "b"):
        write_clip(tmp_path / f"videos/{clip}.mp4", width=64, height=64, fps=4, seconds=3)
    defaults = yaml.safe_load((tmp_path / "config/config.yaml").read_text())
    for section, keys in yaml.safe_load((ROOT / "config/demo.yaml").read_text()).items():
        defaults[section] |= {key: keys[key] for key in keys if key != "model"}
    defaults["report"]["samples"] = 0  # no video is read again
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(defaults))
    run_in(tmp_path, command)
    lines = (tmp_path / "results/output.describe.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["input"] for record in records] == [{"path": "a.mp4"}, {"path": "b.mp4"}]
    assert all(record["__model"] == name and record["description"] for record in records)
    assert (tmp_path / "results/output.describe.report.html").exists()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository with the README's samples and my.yaml, but a simulated engine."""
    folder = tmp_path_factory.mktemp("checkout")
    clone(folder)
    samples = next(block for block in blocks("json") if '"path"' in block)
    (folder / "samples.jsonl").write_text(samples)
    write_clip(folder / "videos/cat.mp4", width=64, height=64, fps=4, seconds=3)
    config = yaml.safe_load(blocks("yaml")[0])
    config["run"]["engine"] = "simulated"
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_commands_run_as_they_stand(checkout):
    # a command more in the README needs an expectation here
    _, first, preview, ask, look, retry, second, partial, one_shard, by_hand, copy, plan = (
        commands()
    )
    output = checkout / "results/output.describe.jsonl"

    def run(command: str) -> str:
        return run_in(checkout, command)

    run(first)
    cat, long = [json.loads(line) for line in output.read_text().splitlines()]
    assert (cat["__status"], cat["input"]["title"]) == ("ok", "a cat")
    assert long["__error"]["stage"] == "read"  # the second video is not there yet
    assert "cat.mp4" in run(f"{preview.partition('#')[0]} --configfile my.yaml")
    assert re.search(r"\nunreadable +1\b", run(ask))
    assert re.search(r"failed +│ +1 │", run(look))

    write_clip(checkout / "videos/long.mp4", width=64, height=64, fps=2, seconds=100)
    assert "1 failed sample(s) are open again" in run(retry)
    run(partial)
    lines = (checkout / "results/output.describe.partial.jsonl").read_text().splitlines()
    assert [json.loads(line)["__key"] for line in lines] == [cat["__key"]]
    run(second)
    statuses = [json.loads(line)["__status"] for line in output.read_text().splitlines()]
    assert statuses == ["ok", "ok"]
    page = checkout / "results/output.describe.report.html"
    page.unlink()
    assert run("video-pipeline report --configfile my.yaml") == f"{page}\n"
    assert page.exists()

    for one in (one_shard, by_hand):
        rank_file = checkout / "results/output.describe.rank3.jsonl"
        rank_file.unlink(missing_ok=True)
        run(one)
        assert rank_file.exists()

    run(copy)
    # the profile's gpu=8 is the number of shards so far: rank 3 is an input, and nothing is left
    assert "Nothing to be done" in run(plan)


def test_python_examples_register():
    code = "\n".join(blocks("python")) + (
        "\nfrom video_pipeline.tasks.registry import get_task"
        "\nfrom video_pipeline.data.registry import get_dataset"
        "\nassert get_task('my_task') is MyTask and get_dataset('my_dataset') is MyDataset"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_every_configuration_key_named_in_it_exists():
    from video_pipeline.config import Config

    named = re.findall(r"`(data|vision|run)\.(\w+)`", README)
    assert named
    for section, key in named:
        assert key in Config.model_fields[section].annotation.model_fields, f"{section}.{key}"

"""The workflow as a module of other workflows, each run from its own folder to the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ABSENT, PLUGIN, PROJECT, STAND_INS, keys, read_jsonl, samples

SNAKEFILE = PROJECT / "workflow" / "Snakefile"

IMPORTER = """
configfile: "importer.yaml"

rule all:
    input: "words.txt"

rule collect:
    output: "captions/samples.jsonl"
    shell: "cp given.jsonl {{output}}"

module captions:
    snakefile: {snakefile!r}
    config: config["captions"]
    prefix: "captions"

use rule * from captions as captions_*

use rule infer from captions as captions_infer with:
    threads: 1

module tags:
    snakefile: {snakefile!r}
    config: config["tags"]

use rule * from tags as tags_*

rule words:
    input: rules.captions_consolidate.output.jsonl, "results/tags.jsonl", "results/tags.report.html"
    output: "words.txt"
    shell: "cat {{input[0]}} {{input[1]}} | wc -l > {{output}}"

onstart:
    print("the importer starts")

onsuccess:
    print("the importer is done")
"""

# What `snakedeploy deploy-workflow` 0.17.1 writes.
DEPLOYED = """
from snakemake.utils import min_version


min_version("6.10.0")


configfile: "config/config.yaml"


# declare https://github.com/them/video-pipeline as a module
module video_pipeline:
    snakefile:
        github("them/video-pipeline", path="workflow/Snakefile", tag="v1")
    config:
        config


# use all rules from https://github.com/them/video-pipeline
use rule * from video_pipeline
"""


def config(**data: object) -> dict[str, dict[str, object]]:
    return {
        "data": {"id_field": "id", "num_shards": 1, "num_workers": 1, **data},
        "run": {"task": "ask", "plugins": ["plugin.py"], "engine": "simulated"},
        "report": {"samples": 0},
    }


def snakemake(folder: Path, *arguments: str, succeeds: bool = True, **env: str) -> str:
    # No library on the path: a module brings its own.
    own = {**os.environ, "PYTHONPATH": f"{ABSENT}{os.pathsep}{STAND_INS}"}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=folder,
        env={**own, "SLURM_CONF": "/dev/null", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is succeeds, done.stdout
    return done.stdout


@pytest.fixture
def importer(tmp_path):
    """A workflow that makes an input, captions and tags its samples, and counts the answers."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    write_jsonl(tmp_path / "given.jsonl", samples(3))
    write_jsonl(tmp_path / "samples.jsonl", samples(4))
    write(tmp_path, config(), config(output_jsonl="results/tags.jsonl"))
    (tmp_path / "Snakefile").write_text(IMPORTER.format(snakefile=str(SNAKEFILE)))
    return tmp_path


def write_jsonl(path: Path, objects: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in objects))


def write(folder: Path, captions: object, tags: object) -> None:
    (folder / "importer.yaml").write_text(yaml.safe_dump({"captions": captions, "tags": tags}))


BEHIND_A_CHECKPOINT = """
configfile: "importer.yaml"

rule all:
    input: "words.txt"

checkpoint fetch:
    input: "given.jsonl"
    output: "samples.jsonl"
    shell: "cp {{input}} {{output}}"

module captions:
    snakefile: {snakefile!r}
    config: config["captions"]

use rule * from captions as captions_*

def captions(wildcards):
    checkpoints.fetch.get()
    return rules.captions_consolidate.output.jsonl

rule words:
    input: captions
    output: "words.txt"
    shell: "cat {{input[0]}} | wc -l > {{output}}"
"""


def test_a_module_behind_a_checkpoint_runs_with_the_settings_of_this_run(importer):
    """Snakemake adds its jobs after the run has begun."""
    (importer / "Snakefile").write_text(BEHIND_A_CHECKPOINT.format(snakefile=str(SNAKEFILE)))
    (importer / "samples.jsonl").unlink()
    for prompt, count in (("Why?", 3), ("How?", 4)):
        write_jsonl(importer / "given.jsonl", samples(count))
        write(importer, {**config(), "task_params": {"prompt": prompt}}, None)
        said = snakemake(importer, "--quiet")
        assert (importer / "words.txt").read_text().split() == [str(count)]
        beside = yaml.safe_load((importer / "results/output.describe.config.yaml").read_text())
        assert beside["task_params"]["prompt"] == prompt
        records = read_jsonl(importer / "results/output.describe.jsonl")
        assert [record["__key"] for record in records] == keys(count)
        assert re.search(rf"answered\s+│\s+{count} │", said)


def test_two_modules_with_rules_before_and_after_them(importer):
    published = config()
    published["run"]["publish"] = ["there"]
    write(importer, published, config(output_jsonl="results/tags.jsonl"))
    said = snakemake(importer, "--quiet", "--", "all", "captions_publish")
    assert (importer / "words.txt").read_text().split() == ["7"]
    captions = importer / "captions/results/output.describe.jsonl"
    assert [record["__key"] for record in read_jsonl(captions)] == keys(3)
    # the handlers of the importer and of both modules
    assert said.index("the importer starts") < said.index("watch captions/results/")
    assert "watch results/tags.jsonl" in said
    assert len(re.findall(r"answered\s+│\s+[34] │", said)) == 2
    assert "the importer is done" in said
    # what stands beside the output has the prefix, too, as have the logs
    data = yaml.safe_load(captions.with_suffix(".config.yaml").read_text())["data"]
    assert data["input_jsonl"] == "captions/samples.jsonl"
    assert (importer / "captions/logs/output.describe/infer.rank0.log").exists()
    assert (importer / "logs/tags/infer.rank0.log").exists()
    copied = importer / "captions/there/output.describe.jsonl"
    assert copied.read_bytes() == captions.read_bytes()
    # Snakemake's benchmarks lie beside the logs
    for path in ("captions/logs/output.describe/infer.rank0.tsv", "logs/tags/consolidate.tsv"):
        assert (importer / path).read_text().startswith("s\th:m:s\tmax_rss")
    assert not (importer / "results/output.describe.jsonl").exists()
    assert "Nothing to be done" in snakemake(importer, "-n")
    # a changed setting reaches the module that it belongs to, and no other
    tags = {**config(output_jsonl="results/tags.jsonl"), "sampling": {"max_tokens": 100}}
    write(importer, published, tags)
    said = snakemake(importer, "-n")
    assert "tags_infer" in said
    assert "captions_infer" not in said
    assert "results/tags.jsonl: up to 4 of 4 samples are pending: changed setting" in said


@pytest.fixture
def repository(tmp_path):
    """The workflow, committed and tagged, where a clone of it is looked for."""
    folder = tmp_path / "github/them/video-pipeline"
    for name in ("workflow", "config"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    git = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-C", str(folder))
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "all"), ("tag", "v1")):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.mark.parametrize(
    ("captions", "tags", "reason"),
    [
        (
            {"output_jsonl": "out.jsonl"},
            {"output_jsonl": "captions/out.jsonl"},
            "two modules write captions/out.jsonl",
        ),
        (
            {"output_jsonl": "/tmp/x/out.jsonl"},
            {"output_jsonl": "/tmp/y/out.jsonl"},
            None,  # the logs of one have a prefix
        ),
        ({"colour": 1}, {}, "data.colour"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_job(importer, captions, tags, reason):
    write(importer, config(**captions), config(**tags))
    said = snakemake(importer, "-n", "tags_all", succeeds=reason is None)
    assert reason is None or reason in said
    assert "Traceback" not in said


def test_two_modules_do_not_share_their_logs(importer):
    text = (importer / "Snakefile").read_text()
    (importer / "Snakefile").write_text(text.replace('    prefix: "captions"\n', ""))
    write(importer, config(output_jsonl="a/out.jsonl"), config(output_jsonl="b/out.jsonl"))
    said = snakemake(importer, "-n", "tags_all", succeeds=False)
    assert "would share the logs in logs/out: give one of the outputs another name" in said


def test_handlers_are_not_left_out(importer):
    said = snakemake(importer, "--no-hooks", "tags_all", succeeds=False)
    assert "--no-hooks: leave it out" in said
    assert not (importer / "results").exists()


def test_one_process_holds_one_copy_of_the_library(importer):
    shutil.copytree(PROJECT / "workflow", importer / "copy/workflow")
    text, own = (importer / "Snakefile").read_text(), str(SNAKEFILE)
    other = text.replace(own, str(importer / "copy/workflow/Snakefile"), 1)
    (importer / "Snakefile").write_text(other)
    said = snakemake(importer, "-n", succeeds=False)
    assert "imports two copies of video-pipeline" in said


def test_a_snakefile_without_its_library_is_refused(importer, repository):
    address = f"git+file://{repository}/workflow/Snakefile@v1"
    text = (importer / "Snakefile").read_text()
    text = text.replace(str(SNAKEFILE), address)
    (importer / "Snakefile").write_text(text)
    said = snakemake(importer, "-n", succeeds=False)
    assert "can be imported from a folder of this machine, or with github(...)" in said


def test_a_deployed_workflow_runs_after_one_edit(tmp_path, repository):
    """As snakedeploy writes it, with the repository on this machine in GitHub's place."""
    settings = tmp_path / "gitconfig"
    base = f"file://{tmp_path}/github/"
    settings.write_text(
        f'[url "{base}"]\n  insteadOf = https://github.com/\n  insteadOf = https://@github.com/\n'
        "[safe]\n  directory = *\n"
    )
    env = {"GIT_CONFIG_GLOBAL": str(settings), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = tmp_path / "run"
    shutil.copytree(PROJECT / "config", run / "config")
    (run / "workflow").mkdir()
    (run / "workflow/Snakefile").write_text(DEPLOYED)
    (run / "plugin.py").write_text(PLUGIN)
    write_jsonl(run / "samples.jsonl", samples(3))
    edited = yaml.safe_load((run / "config/config.yaml").read_text())
    for section, keys_ in config().items():
        edited[section] |= keys_
    (run / "config/config.yaml").write_text(yaml.safe_dump(edited))
    snakemake(run, **env)
    assert len(read_jsonl(run / "results/output.describe.jsonl")) == 3
    source = next((tmp_path / "cache").rglob("video-pipeline/*/workflow/scripts"))
    log = (run / "logs/output.describe/infer.rank0.log").read_text()
    assert f"{source}/infer.py" in log

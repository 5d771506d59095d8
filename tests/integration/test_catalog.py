"""What the catalogue of Snakemake workflows asks of a repository, after its own script
(snakemake/snakemake-workflow-catalog, scripts/generate-catalog.py), and what a release needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from helpers import PROJECT, read_jsonl
from video_pipeline.config.generate import json_schema


def test_the_catalogue_takes_it_for_a_standardized_workflow():
    # The search: `snakemake workflow in:readme`.
    assert {"snakemake", "workflow"} <= set((PROJECT / "README.md").read_text().lower().split())
    # With a folder `workflow`, the Snakefile and the rules must be in it.
    assert (PROJECT / "workflow/Snakefile").exists()
    assert list((PROJECT / "workflow/rules").glob("*.smk"))
    settings = yaml.safe_load((PROJECT / ".snakemake-workflow-catalog.yml").read_text())
    assert (PROJECT / "config/README.md").exists()
    usage = settings["usage"]
    assert isinstance(usage["mandatory-flags"]["desc"], str)
    assert usage["mandatory-flags"]["flags"] == ["--resources gpu=1"]
    assert usage["software-stack-deployment"]["conda"] is True
    assert usage["report"] is True


def test_its_schema_is_that_of_the_configuration():
    schema = yaml.safe_load((PROJECT / "workflow/schemas/config.schema.yaml").read_text())
    assert schema == json.loads(json_schema())


def test_the_small_run_goes_to_its_end(tmp_path):
    """As in .github/workflows/ci.yml."""
    shutil.copytree(PROJECT / ".test", tmp_path / ".test")
    snakemake = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "workflow/Snakefile")),
        *("--directory", ".test", "--configfile", ".test/config/config.yaml"),
    ]
    subprocess.run([*snakemake, "--cores", "2"], cwd=tmp_path, check=True)
    results = tmp_path / ".test/results"
    records = read_jsonl(results / "output.describe.jsonl")
    assert [record["__key"] for record in records] == ["a", "b", "c", "d"]
    assert {record["__status"] for record in records} == {"ok"}
    rows = (results / "output.describe.report.tsv").read_text().splitlines()
    assert rows[:3] == ["of\tfigure\tvalue", "run\tsamples\t4", "run\tanswered\t4"]
    subprocess.run([*snakemake, "--report", "report.zip"], cwd=tmp_path, check=True)
    assert (tmp_path / ".test/report.zip").stat().st_size > 10_000


@pytest.fixture
def release(tmp_path):
    """A copy of what a release reads, and how its notes are made."""
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", ".github/release_notes.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)

    def notes(tag: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ".github/release_notes.py", tag]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return tmp_path, notes


def test_a_release_has_the_notes_of_its_version(release):
    folder, notes = release
    version = re.search(r'^version = "(.*)"$', (folder / "pyproject.toml").read_text(), re.M)[1]
    changelog = folder / "CHANGELOG.md"
    head, _, _ = changelog.read_text().partition("## ")
    changelog.write_text(f"{head}## {version} (unreleased)\n\n* New.\n\n## 0.0.9\n\n* Old.\n")
    assert "is marked as unreleased" in notes(f"v{version}").stderr
    changelog.write_text(changelog.read_text().replace(" (unreleased)", ""))
    assert notes(f"v{version}").stdout == "* New.\n"
    assert f"pyproject.toml has version {version}" in notes("v9.9.9").stderr

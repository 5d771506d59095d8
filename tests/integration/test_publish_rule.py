"""``run.publish`` in the workflow: one rule at the end."""

from __future__ import annotations

import json
import os
import subprocess

from helpers import rules_run, samples


def test_the_output_is_copied_at_the_end_and_whenever_it_changes(run):
    run.write_samples(samples(3))
    run.configure(run={"publish": ["there"], "formats": ["jsonl", "parquet"]})
    assert rules_run(run.snakemake())["publish"] == 1
    there = run.folder / "there"

    def names() -> list[str]:
        return sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())

    assert names() == [
        *("out.dataset/README.md", "out.dataset/data/train-00000-of-00001.parquet"),
        *("out.errors.jsonl", "out.jsonl", "out.report.html", "out.sha256", "out.summary.json"),
    ]
    subprocess.run(["sha256sum", "--check", "--quiet", "out.sha256"], cwd=there, check=True)
    receipt = json.loads((run.folder / "results/out.published.json").read_text())
    assert [entry["place"] for entry in receipt["published"]] == ["there"]
    assert "Nothing to be done" in run.snakemake("-n")

    run.write_samples(samples(4))
    assert rules_run(run.snakemake())["publish"] == 1
    assert (there / "out.jsonl").read_bytes() == run.output.read_bytes()
    assert len(run.records()) == 4

    # A place that refuses fails the run, and nothing else is done again for it.
    (run.folder / "blocked").touch()
    run.configure(run={"publish": ["there", "blocked/x"]})
    said = run.snakemake(succeeds=False)
    last = said.rstrip().rpartition("\n")[2]
    assert last.startswith(f"error: run.publish: {run.folder}/blocked/x: ")
    assert said.count("error: run.publish") == 1
    os.remove(run.folder / "blocked")
    assert rules_run(run.snakemake()) == {"publish": 1}
    assert (run.folder / "blocked/x/out.sha256").exists()

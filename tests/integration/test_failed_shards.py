"""Shards that fail: what failed, only that again, and one by hand."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from helpers import keys, rules_run, samples


@pytest.fixture
def failed(run):
    """Three shards, of which 1 and 2 have failed; once ``fixed`` is there, they would not."""
    run.edit_plugin(
        '        return {"answer"',
        """\
        if sample.get("do") == "break" and not (HERE / "fixed").exists():
            return {"input": "a name that is reserved"}
        return {"answer\"""",
    )
    run.configure(data={"num_shards": 3})
    run.write_samples(
        {**sample, "do": "break" if sample["id"] in (1, 2) else None} for sample in samples(6)
    )
    run.out = run.snakemake(succeeds=False)
    return run


def planned(run) -> set[str]:
    """The jobs that would run."""
    out = run.snakemake("-n")
    ranks = re.findall(r"\brank (\d): ", out)
    return {*(f"rank{rank}" for rank in ranks), *rules_run(out).keys() & {"split", "consolidate"}}


def test_only_failed_shards_run_again(failed):
    run = failed
    assert "Not finished: rank 1, rank 2 (of 3)" in run.out
    assert "are reserved" in run.log("infer.rank1")
    # the last words on the terminal: each error once, with the log of the attempt
    last = run.out[run.out.index("by hand, from") :]
    errors = [line for line in last.splitlines() if line.startswith("error: ")]
    assert [line.count("are reserved") for line in errors] == [1, 1]
    # Another attempt would not help, so there was one.
    assert f"(log: {run.folder}/logs/out/infer.rank1.attempt1.log)" in errors[0]
    assert run.out.count("Error in rule infer") == 2
    assert planned(run) == {"rank1", "rank2", "consolidate"}

    (run.folder / "fixed").touch()
    run.snakemake("results/out.rank2.jsonl")
    assert planned(run) == {"rank1", "consolidate"}

    by_hand = run.out[run.out.index("by hand, from") :].splitlines()[1]
    assert "--rank 1" in by_hand
    subprocess.run(shlex.split(by_hand), cwd=run.folder, check=True)
    assert planned(run) == {"consolidate"}

    run.snakemake()
    assert [record["__key"] for record in run.records()] == keys(6)
    assert run.answers() == dict.fromkeys(keys(6), 1)

    # again, with the output of before still there
    (run.folder / "fixed").unlink()
    again = run.snakemake("--forcerun", "infer", succeeds=False)
    assert "Not finished: rank 1, rank 2 (of 3)" in again
    run.write_samples(
        {**sample, "do": "break" if sample["id"] == 6 else None} for sample in samples(9)
    )
    named = r"Not finished: rank \d \(of 3\)"
    first, second = (re.search(named, run.snakemake(succeeds=False)) for _ in range(2))
    assert first[0] == second[0]

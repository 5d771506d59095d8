"""What a whole run says on the terminal."""

from __future__ import annotations

from helpers import keys, samples


def test_the_error_of_a_job_comes_last_and_once(run):
    run.write_samples(samples(2))
    with open(run.folder / "samples.jsonl", "a") as stream:
        stream.write("{broken\n")
    said = run.snakemake("-n")
    assert said.splitlines()[-1] == (
        "results/out.jsonl: no sample is known yet, because samples.jsonl was not split into "
        "1 chunks. It has 3 lines. Split looks up what is answered already"
    )
    said = run.snakemake(succeeds=False)
    assert said.count("\nerror: ") == 1
    before, last = said.split("\nerror: ")
    assert "line 3: not JSON" in last
    assert "At least one job did not complete successfully" in before
    assert "Traceback" not in said


def test_a_quiet_run_still_says_where_its_results_are(run):
    run.write_samples(samples(2))
    said = run.snakemake("--quiet", "all")
    assert "watch results/out.jsonl from another terminal: " in said
    assert said.splitlines()[-2:] == [
        "output  results/out.jsonl",
        "report  results/out.report.html",
    ]
    assert [record["__key"] for record in run.records()] == keys(2)


def test_the_next_run_still_speaks_of_what_failed(run):
    run.write_samples([*samples(2), {"id": "bad", "path": "bad.mp4", "do": "raise"}])
    run.configure(run={"max_error_rate": 1.0})
    said = run.snakemake()
    assert "infers 3 samples" in said
    assert "results/out.jsonl: 2 answered, 1 failed, of 3 samples" in said
    assert "failed  bad.mp4: read: " in said
    said = run.snakemake()
    assert "Nothing to be done" in said
    (line,) = (line for line in said.splitlines() if "of its samples failed earlier" in line)
    assert line.startswith("results/out.jsonl: 1 of its samples")
    run.module("retry")
    said = run.snakemake("-n")
    assert "of its samples failed earlier" not in said
    assert "infers what is pending" in said  # and not 3 samples

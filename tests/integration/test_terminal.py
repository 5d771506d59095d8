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
    assert said.splitlines()[-3:] == [
        "output  results/out.jsonl",
        "report  results/out.report.html",
        "errors  results/out.errors.jsonl",
    ]
    assert [record["__key"] for record in run.records()] == keys(2)

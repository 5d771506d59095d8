"""What a whole run says on the terminal."""

from __future__ import annotations

import re

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
    assert "Error in rule split:\n    jobid: " in before
    assert "log: logs/out/split.log" in before
    for noise in ("Traceback", "CalledProcessError", "message: None", "sed -u", "Job stats"):
        assert noise not in said


def test_a_run_says_only_what_is_about_its_samples(run):
    run.write_samples(samples(2))
    assert "Job stats" in run.snakemake("-n")
    said = run.snakemake()
    for noise in ("Select jobs", "Execute 1", "Provided cores", "Job stats", "steps (", "Finished"):
        assert noise not in said
    assert "infers 2 samples" in said
    assert "balanced by" not in said  # There is only one rank.
    (complete,) = (run.folder / ".snakemake/log").glob("*.log")
    for line in ("Select jobs", "Provided cores", "Job stats", "5 of 5 steps (100%) done"):
        assert line in complete.read_text()


def test_a_run_that_shows_its_commands_leaves_nothing_out(run):
    run.write_samples([{"id": "no path"}])
    said = run.snakemake("--printshellcmds", succeeds=False)
    for line in ("Select jobs", "Job stats", "CalledProcessError", "    shell:\n"):
        assert line in said


def test_a_mistake_is_told_without_the_places_in_our_files(run):
    run.configure(run={"no_such_key": 1})
    said = run.snakemake(succeeds=False)
    assert "\nerror: " in said
    assert said.splitlines()[-1].startswith("  run.no_such_key: unknown key")
    assert "WorkflowError" not in said
    assert ".smk" not in said


def test_a_run_with_nothing_to_do_says_where_its_results_are(run):
    run.write_samples(samples(2))
    run.snakemake()
    files = ["output  results/out.jsonl", "report  results/out.report.html"]
    assert run.snakemake().splitlines()[-2:] == files
    run.write_samples(samples(3))
    dry = run.snakemake("-n")
    assert files[0] not in dry
    assert "Job stats" in dry


def test_a_part_of_a_run_shows_no_results_of_an_earlier_run(run):
    run.write_samples(samples(2))
    for _ in range(2):  # The second time there is nothing to do.
        said = run.snakemake("--until", "infer")
        assert not re.search(r"answered|^output |^report ", said, re.MULTILINE)
    assert re.search(r"answered\s+│\s+2 │", run.snakemake())
    part = "--until", "infer", "--config", "max_tokens=7"
    assert not re.search(r"answered|^output ", run.snakemake(*part), re.MULTILINE)


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

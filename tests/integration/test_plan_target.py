"""``snakemake plan``: before a run, beside one, and of several stages."""

from __future__ import annotations

import json

import pytest
from helpers import Run, read_jsonl, samples, wait_until


def report(run: Run, name: str = "out") -> dict:
    return json.loads((run.folder / "results" / f"{name}.plan.json").read_text())


@pytest.mark.as_users  # it would count tokens
def test_a_plan_beside_a_live_run(run):
    run.write_samples(samples(30))
    run.configure(run={"simulated": {"seconds_per_output_token": 600.0}})
    main = run.start_snakemake()
    try:
        wait_until(run.reads, "a sample is read")
        resolved = run.folder / "results" / "out.config.yaml"
        before = resolved.read_bytes()
        run.configure(plan={"samples": 10})
        printed = run.snakemake("plan")
        assert main.poll() is None
        assert resolved.read_bytes() == before  # the run's own
    finally:
        main.kill()
        main.wait()
    assert "10 of them, drawn at random" in printed
    assert "tokens of a prompt" in printed
    assert "GPU-hours" in run.log("plan")  # and it is in the log
    assert report(run)["samples"]["looked_at"] == 10
    assert len(read_jsonl(run.folder / "results" / "out.plan.jsonl")) == 10


@pytest.mark.as_users  # it would count tokens
def test_a_plan_changes_nothing_about_a_run(run):
    run.write_samples(samples(3))
    run.snakemake()
    tokens = [record["__usage"]["prompt_tokens"] for record in run.records()]
    run.configure(plan={"price_per_gpu_hour": 2.5})
    run.snakemake("plan")
    found = read_jsonl(run.folder / "results" / "out.plan.jsonl")
    assert [line["prompt_tokens"] for line in found] == tokens
    assert report(run)["expected"]["cost"] > 0  # by what the run has measured
    assert "Nothing to be done" in run.snakemake()


def test_of_stages_those_whose_input_is_there(run):
    run.write_samples(samples(2))
    run.settings["stages"] = [
        {"name": "ask"},
        {
            "name": "prose",
            "run": {"task": "rewrite"},
            "task_params": {"prompt": "Rewrite {{ previous.answer }}"},
        },
    ]
    run.configure()
    printed = run.snakemake("plan")  # nothing was split
    assert not list(run.folder.glob("results/.journal/*"))
    assert report(run, "out.ask")["samples"]["distinct"] == 2
    assert "results/out.jsonl: left out, a stage before it has to write its input" in printed
    assert not (run.folder / "results" / "out.plan.json").exists()


def test_a_missing_input_is_an_error_for_people(run):
    printed = run.snakemake("plan", succeeds=False)
    assert f"data.input_jsonl: {run.folder}/samples.jsonl does not exist" in printed
    assert "Traceback" not in printed

"""``run.formats`` in the workflow: one rule more, and nothing else."""

from __future__ import annotations

import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import keys, rules_run, samples
from video_pipeline.config import load_config
from video_pipeline.errors import UserError


def test_parquet_is_one_job_more_for_a_finished_run(run):
    entries = samples(6, title="é")
    entries[2]["do"] = "raise"
    run.write_samples(entries)
    run.snakemake()
    before = run.reads()
    run.configure(run={"formats": ["jsonl", "parquet"]})
    assert rules_run(run.snakemake()) == {"export": 1}
    assert run.reads() == before
    assert "Nothing to be done" in run.snakemake("-n")

    folder = run.folder / "results" / "out.dataset"
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["README.md", "data/train-00000-of-00001.parquet"]
    table = pq.read_table(folder / "data")
    assert table["key"].to_pylist() == keys(6)
    assert table["status"].to_pylist() == [record["__status"] for record in run.records()]
    third = table.to_pylist()[2]
    assert (third["id"], third["path"], third["do"]) == (2, "2.mp4", "raise")
    assert third["error_stage"] == "read"
    assert pd.read_parquet(folder / "data")["answer"].notna().sum() == 5
    card = (folder / "README.md").read_text()
    assert "| failed in stage `read` | 1 |" in card
    assert "user:\nWhat happens?\n" in card

    run.configure(run={"parquet_columns": "nested"})
    assert rules_run(run.snakemake()) == {"export": 1}
    assert pq.read_table(folder / "data")["input"].to_pylist()[2] == {**entries[0], **entries[2]}


def test_stages_are_exported_each(run):
    run.write_samples(samples(2))
    run.configure(run={"formats": ["jsonl", "parquet"]})
    run.settings["stages"] = [
        {"name": "ask"},
        {
            "name": "prose",
            "run": {"task": "rewrite", "formats": ["jsonl"]},
            "vllm": {"max_model_len": 4096},
            "task_params": {"prompt": "{{ previous.answer }}"},
        },
    ]
    run.configure()
    rules = rules_run(run.snakemake("-n"))
    assert "export_ask" in rules
    assert "export_prose" not in rules


def test_jsonl_cannot_be_left_out():
    with pytest.raises(UserError, match=r"run\.formats: \['parquet'\] lacks jsonl"):
        load_config({"run": {"formats": ["parquet"]}})

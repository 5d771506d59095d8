"""What `snakemake -n` says about samples, against what split and infer then do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from helpers import Splitter, samples
from video_pipeline.infer.infer import infer
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding
from video_pipeline.workflow.forecast import forecast


def said(splitting: Splitter) -> str:
    config = splitting.run.config
    return forecast(config, Layout.of(config, 2))


@pytest.fixture
def split_run(splitting: Splitter) -> Splitter:
    """Four samples on two ranks, of which the first has finished its two."""
    splitting(samples(4))
    Sharding(2).write(splitting.layout.sharding)
    infer(splitting.run.config, splitting.layout, 0, threads=2)
    return splitting


def test_what_is_left_of_the_last_split(split_run: Splitter) -> None:
    assert said(split_run) == "2 of 4 samples are pending: new or not finished"
    split_run()
    assert len(split_run.pending) == 2
    for rank in (0, 1):
        infer(split_run.run.config, split_run.layout, rank, threads=2)
    assert said(split_run) == "0 of 4 samples are pending"


def test_a_changed_setting_is_named_with_its_values(split_run: Splitter) -> None:
    split_run.run.configure(sampling={"max_tokens": 13})
    assert said(split_run) == (
        "up to 4 of 4 samples are pending: changed setting: sampling.max_tokens (512 -> 13)"
    )
    split_run()
    assert len(split_run.pending) == 4


def test_a_changed_prompt_is_named(split_run: Splitter) -> None:
    Path("prompt.txt").write_text("Why?")
    split_run.run.configure(task_params={"prompt_file": "prompt.txt"})
    split_run()
    Path("prompt.txt").write_text("Why not?")
    split_run.run.edit_plugin("What happens?", "Who is it?")
    assert said(split_run) == (
        "up to 4 of 4 samples are pending: changed prompt or plugins: plugin.py, prompt.txt"
    )


def test_of_a_changed_input_it_counts_the_lines(split_run: Splitter) -> None:
    split_run.run.write_samples([*samples(6), *samples(1)])
    assert said(split_run) == (
        "2 of 4 samples are pending: new or not finished; and samples.jsonl has changed: 7 lines, "
        "4 lines at the last split. Split will say how many samples are new"
    )


@pytest.mark.parametrize("version", [None, 1])
def test_chunks_of_an_earlier_version_need_no_command(
    split_run: Splitter, version: int | None
) -> None:
    manifest = split_run.layout.manifest
    values = {**json.loads(manifest.read_text()), "version": version}
    if version is None:  # as the first ones
        del values["version"]
    manifest.write_text(json.dumps(values))
    assert said(split_run) == (
        "an earlier version split it. Split will say how many samples are inferred, and why"
    )


def test_it_says_what_it_cannot_know(splitting: Splitter) -> None:
    splitting.run.write_samples(samples(3))
    assert said(splitting) == (
        "no sample is known yet, because samples.jsonl was not split into 2 chunks. "
        "It has 3 lines. Split looks up what is answered already"
    )
    Path("samples.jsonl.gz").write_bytes(gzip.compress(Path("samples.jsonl").read_bytes()))
    splitting.run.configure(data={"input_jsonl": "samples.jsonl.gz"})
    assert said(splitting) == (
        "no sample is known yet, because samples.jsonl.gz was not split into 2 chunks. "
        "Split looks up what is answered already"
    )
    Path("samples.jsonl.gz").unlink()
    assert said(splitting) == "the samples are not known before samples.jsonl.gz is written"

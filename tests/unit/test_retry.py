"""Retry: failed samples are opened again, those and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SCRIPTS, keys, samples
from video_pipeline.commands import retry as retry_module
from video_pipeline.commands.retry import STAGES, retry
from video_pipeline.commands.watch import look
from video_pipeline.common.locks import is_locked, try_lock
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.journal.format import attempt_prefix
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.sharding import Sharding


@pytest.fixture
def failed(splitting):
    """Eight samples in two chunks: 0 to 3 are done, the others failed, each at another stage."""
    splitting(samples(8), 2).finish(*keys(4))
    for rank, chunk in enumerate(splitting.chunks):
        prefix = attempt_prefix(splitting.manifest.split_id, rank)
        with JournalWriter(Path(splitting.manifest.journal), prefix) as journal:
            for entry in chunk:
                if int(entry.key) >= 4:
                    stage = ["read", "timeout", "crash", "generate"][int(entry.key) - 4]
                    error = {"stage": stage, "type": "X", "message": "x"}
                    journal.error(*entry.questions[0], error)
    Sharding(2).write(splitting.layout.sharding)
    return splitting


def pending(splitting) -> list[str]:
    """What a new split finds to be done."""
    return splitting(num_shards=2).pending


def test_all_failures_are_opened(failed):
    assert pending(failed) == []
    assert retry(failed.run.config) == 4
    assert pending(failed) == ["4", "5", "6", "7"]
    assert retry(failed.run.config) == 0


@pytest.mark.parametrize(("stage", "key"), [("read", "4"), ("crash", "6")])
def test_failures_of_one_stage_are_opened(failed, stage, key):
    assert retry(failed.run.config, (stage,)) == 1
    assert pending(failed) == [key]


def test_an_answer_that_would_be_cut_off_again_stays(splitting):
    """Only a longer second try may end differently."""
    (entry,) = splitting(samples(1), 1).chunks[0]
    prefix = attempt_prefix(splitting.manifest.split_id, 0)
    with JournalWriter(Path(splitting.manifest.journal), prefix) as journal:
        error = {"stage": "length", "type": "Truncated", "message": "x"}
        journal.error(*entry.questions[0], error)
    Sharding(1).write(splitting.layout.sharding)
    assert retry(splitting.run.config) == 0
    splitting.run.configure(run={"retry_truncated": 2048})
    assert retry(splitting.run.config) == 1


def test_the_output_stays_and_is_to_be_written_anew(failed):
    failed.run.output.write_text("finished")
    layout = failed.layout
    for rank in range(2):
        layout.rank_file(rank).write_text("")
    assert layout.is_finished
    assert retry(failed.run.config, ("length",)) == 0
    assert layout.is_finished
    assert look(failed.run.config).is_over
    opened = [rank for rank, chunk in enumerate(failed.keys) if "4" in chunk]
    assert retry(failed.run.config, ("read",)) == 1
    assert failed.run.output.read_text() == "finished"
    assert not layout.is_finished
    assert not look(failed.run.config).is_over
    assert layout.unfinished() == opened


def test_what_is_opened_is_marked_before_it_is_opened(failed, monkeypatch):
    """A retry that is killed leaves nothing that passes for finished."""
    failed.run.output.write_text("finished")
    for rank in range(2):
        failed.layout.rank_file(rank).write_text("")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JournalWriter, "reopen", kill)
    with pytest.raises(KeyboardInterrupt):
        retry(failed.run.config)
    assert not failed.layout.is_finished
    assert failed.layout.unfinished() != []


def test_a_retry_that_failed_again_can_be_retried(failed):
    retry(failed.run.config)
    failed(num_shards=2).finish("4", "5", failed=("6", "7"))
    assert retry(failed.run.config) == 2
    assert pending(failed) == ["6", "7"]


def test_after_another_number_of_shards(failed):
    """The failures were recorded under an earlier plan."""
    failed(num_shards=3)
    Sharding(3).write(failed.layout.sharding)
    assert retry(failed.run.config) == 4
    assert failed(num_shards=3).pending == ["4", "5", "6", "7"]


def test_before_the_first_run(splitting):
    splitting.run.write_samples(samples(1))
    with pytest.raises(UserError, match="nothing has run yet"):
        retry(splitting.run.config)


def test_after_a_run_that_ended_in_split(failed):
    """Snakemake removes what a failed job was to write."""
    failed.layout.manifest.unlink()
    with pytest.raises(UserError, match=r"has not divided its input .*split\.log says why"):
        retry(failed.run.config)


def test_without_resume_there_is_nothing_to_open(failed):
    failed.run.configure(data={"resume": False})
    with pytest.raises(UserError, match=r"data\.resume is false: every invocation"):
        retry(failed.run.config)


def test_a_call_without_resume_that_did_not_split_changes_nothing(failed):
    """Say, of the target `plan`."""
    Sharding(2, "deadbeef0123").write(failed.layout.sharding)
    assert retry(failed.run.config) == 4


def test_no_run_continues_what_was_opened_after_a_run_without_resume(failed):
    failed(num_shards=2, run_id="deadbeef0123").finish(failed=("4",))
    for run_id in ("deadbeef0123", ""):
        Sharding(2, run_id).write(failed.layout.sharding)
        with pytest.raises(UserError, match=r"the last run had data\.resume: false.* then retry"):
            retry(failed.run.config)


def test_while_a_run_is_on(failed):
    with (
        try_lock(failed.layout.lock(1)),
        pytest.raises(UserError, match="still being written by"),
    ):
        retry(failed.run.config)
    assert pending(failed) == []


def test_between_the_jobs_of_a_run(failed):
    """No job is at work, but a Snakemake is: its next ones wait in a queue."""
    with (
        try_lock(failed.layout.run_lock),
        pytest.raises(UserError, match=r"another snakemake, retry or prune .*process"),
    ):
        retry(failed.run.config)
    assert pending(failed) == []


def test_no_snakemake_begins_meanwhile(failed, monkeypatch):
    held = []
    real = retry_module.find_errors
    monkeypatch.setattr(
        retry_module,
        "find_errors",
        lambda *given: held.append(is_locked(failed.layout.run_lock)) or real(*given),
    )
    retry(failed.run.config)
    assert held == [True, True]
    assert not is_locked(failed.layout.run_lock)


def test_the_command_line(failed):
    retry_command = [sys.executable, "-m", "video_pipeline.retry", "--configfile", "my.yaml"]

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*retry_command, *arguments],
            cwd=failed.run.folder,
            env={"PYTHONPATH": str(SCRIPTS)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "1 failed sample(s) are open again" in call("--stage", "timeout").stdout
    assert "no failed samples" in call("--stage", "timeout").stdout
    elsewhere = call("--directory", "nowhere")
    assert elsewhere.returncode == 1
    assert "nowhere does not exist" in elsewhere.stderr
    assert "Traceback" not in elsewhere.stderr
    unknown = call("--stage", "raed")
    assert unknown.returncode == 2
    assert all(stage in unknown.stderr for stage in STAGES)
    assert pending(failed) == ["5"]


@pytest.mark.parametrize("found_finished", [False, True])
def test_a_sample_that_is_opened_is_not_published(failed, found_finished):
    """Its rank file cannot be written from the journal any more, whatever split has found."""
    if found_finished:
        assert pending(failed) == []
    retry(failed.run.config, ("read",))
    failed.run.configure(run={"max_error_rate": 1.0})
    infer(failed.run.config, failed.layout, 0, 1)
    infer(failed.run.config, failed.layout, 1, 1)
    assert failed.run.reads() == {"4": 1}

"""What can be had before a run is over, and after it: the partial output, the list of failed
samples, and the journal's own command line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from helpers import keys, read_jsonl, samples, wait_until
from video_pipeline.commands.journal import journals, of_other_settings, prune
from video_pipeline.common.locks import try_lock
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.run.sharding import Sharding


def journal_command(run, *arguments: str) -> str:
    command = [sys.executable, "-m", "video_pipeline.journal", *arguments]
    return subprocess.run(
        [*command, "--configfile", "my.yaml"],
        cwd=run.folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.two_ranks
def test_a_partial_output_beside_a_live_run_and_after_a_failure(run):
    run.write_samples(samples(500))
    slow = {"seconds_per_output_token": 0.5, "output_tokens": 1, "concurrency": 1}
    run.configure(run={"simulated": slow})
    main = run.start_snakemake()
    partial = run.folder / "results" / "out.partial.jsonl"
    try:
        wait_until(lambda: len(run.answers()) >= 3, "some samples are done")
        run.snakemake("partial")
        assert main.poll() is None
        live = read_jsonl(partial)
        assert 3 <= len(live) < 500
        assert [record["answer"] for record in live] == [record["output_text"] for record in live]
        order = [int(record["__key"]) for record in live]
        assert order == sorted(order)
    finally:
        main.kill()
        main.wait()
    run.snakemake("partial")  # asked again, it is made again
    assert len(read_jsonl(partial)) >= len(live)
    assert not run.output.exists()
    assert set(run.answers().values()) == {1}


def test_a_partial_output_before_anything_ran(run):
    run.write_samples(samples(1))
    out = run.snakemake("partial", succeeds=False)
    assert "Traceback" not in out


def test_failed_samples_are_an_input(splitting):
    run = splitting.run
    bad = [{**sample, "do": "raise" if sample["id"] in (1, 4) else None} for sample in samples(6)]
    run.write_samples(bad)
    splitting.run_all()
    failed = run.folder / "results" / "out.errors.jsonl"
    assert read_jsonl(failed) == [record for record in run.records() if "__error" in record]
    assert [record["input"] for record in read_jsonl(failed)] == [bad[1], bad[4]]
    run.edit_plugin('    if do == "raise":', '    if do == "no more":')
    run.configure(data={"input_jsonl": str(failed), "output_jsonl": "again/out.jsonl"})
    splitting.run_all()
    again = read_jsonl(run.folder / "again" / "out.jsonl")
    assert [(record["__key"], record["__status"]) for record in again] == [("1", "ok"), ("4", "ok")]
    assert [record["input"] for record in again] == [bad[1], bad[4]]
    assert (run.folder / "again" / "out.errors.jsonl").read_bytes() == b""


def test_a_retry_keeps_the_output_until_it_is_replaced(run):
    """A run that fails after it leaves the output of before, and says what is not finished."""
    run.write_samples({**one, "do": "storage" if one["id"] == 1 else None} for one in samples(3))
    run.snakemake()
    before = run.output.read_bytes()
    assert [record["__status"] for record in run.records()] == ["ok", "error", "ok"]
    assert "1 failed sample(s) are open again" in run.module("retry")
    run.edit_plugin('        return {"answer"', '        return {"input"')
    assert "Not finished: rank 0" in run.snakemake(succeeds=False)
    assert run.output.read_bytes() == before
    run.edit_plugin('        return {"input"', '        return {"answer"')
    (run.folder / "storage").touch()
    assert "1 failed sample(s) are open again" in run.module("retry")
    out = run.snakemake("-n")
    assert "failed samples were opened again: written anew" in out
    assert run.output.read_bytes() == before
    run.snakemake()
    assert [record["__status"] for record in run.records()] == ["ok"] * 3
    assert run.answers() == dict.fromkeys(keys(3), 1)
    assert "Nothing to be done" in run.snakemake()


def test_journals_of_other_settings_can_go(splitting):
    run = splitting.run
    splitting(samples(3), 1)
    infer(run.config, splitting.layout, 0, 1)
    run.configure(sampling={"max_tokens": 3})
    splitting(samples(3), 1).finish("0", failed=("1",))
    old, current = journals(run.config, splitting.layout)
    assert (old.is_current, old.answers, old.errors) == (False, 3, 0)
    assert (current.is_current, current.answers, current.errors) == (True, 1, 1)
    assert old.num_bytes > current.num_bytes > 0
    assert "can go" in journal_command(run, "stats")
    assert journal_command(run) == journal_command(run, "stats")
    shown = journal_command(run, "prune")
    assert old.folder.name in shown
    assert "add --yes" in shown
    assert current.folder.name not in shown
    with try_lock(splitting.layout.lock(0)), pytest.raises(UserError, match="still being written"):
        prune(run.config, splitting.layout)
    with try_lock(splitting.layout.run_lock), pytest.raises(UserError, match="another snakemake"):
        prune(run.config, splitting.layout)
    assert old.folder.exists()
    assert "are gone" in journal_command(run, "prune", "--yes")
    assert run.journals() == [current.folder.absolute()]
    splitting(samples(3), 1)
    assert splitting.pending == keys(3)[2:]


def test_a_long_name_hides_nothing_of_a_journal(splitting):
    name = f"captions.[v2].{'x' * 120}"
    splitting.run.configure(data={"output_jsonl": f"results/{name}.jsonl"})
    splitting(samples(3), 1).finish("0", "1")
    shown = journal_command(splitting.run, "stats")
    row = re.sub(r"\s+", "", shown.partition("in use")[0].partition("last written")[2])
    assert row.startswith("captions.[v2].x")
    assert shown.count("x") == 120
    assert re.search(r" 2 +0 +0\.0 +\d{4}-\d\d-\d\d \d\d:\d\d +in use\b", shown)


def test_no_journal_goes_where_none_is_current(splitting):
    """Say, a setting was edited since the last run: all that was inferred is in the others."""
    run = splitting.run
    splitting(samples(3), 1).finish(*keys(3))
    assert of_other_settings(run.config, splitting.layout) == []
    before = run.journals()
    run.configure(sampling={"max_tokens": 3})
    with pytest.raises(
        UserError, match=r"none of the 1 journal\(s\) there belongs to the settings"
    ):
        prune(run.config, splitting.layout)
    assert "so none is removed" in run.module("journal", "prune", "--yes", succeeds=False)
    assert run.journals() == before


@pytest.fixture
def from_nothing(splitting):
    """A journal of other settings, one with all samples, and that of a last run without resume."""
    run = splitting.run
    run.configure(sampling={"max_tokens": 3})
    splitting(samples(3), 1).finish("0")
    run.configure(sampling={"max_tokens": 512})
    splitting(samples(3), 1).finish(*keys(3))
    Sharding(1, "deadbeef0123").write(splitting.layout.sharding)
    splitting(samples(3), 1, "deadbeef0123").finish("1")
    return splitting


def test_after_a_run_without_resume_its_journal_and_the_resumable_one_stay(from_nothing):
    run, layout = from_nothing.run, from_nothing.layout
    assert [journal.answers for journal in of_other_settings(run.config, layout)] == [1]
    shown = [line.split() for line in journal_command(run, "stats").splitlines()[1:]]
    assert [(words[2], *words[7:]) for words in shown] == [
        ("1", "can", "go"),
        ("3", "in", "use"),
        ("1", "in", "use"),
    ]
    prune(run.config, layout)
    assert sorted(path.name.partition("-")[2] for path in run.journals()) == ["", "deadbeef0123"]
    assert from_nothing(num_shards=1).pending == []


def test_without_resume_only_the_last_run_is_in_use(from_nothing):
    from_nothing.run.configure(data={"resume": False})
    others = of_other_settings(from_nothing.run.config, from_nothing.layout)
    assert [journal.answers for journal in others] == [1, 3]


def test_the_journal_of_a_run_without_resume_alone_does_not_belong_to_the_settings(splitting):
    Sharding(1, "deadbeef0123").write(splitting(samples(1), 1).layout.sharding)
    splitting(samples(1), 1, "deadbeef0123").finish("0")
    for folder in splitting.run.journals():
        if "-" not in folder.name:
            shutil.rmtree(folder)
    with pytest.raises(UserError, match="so none is removed"):
        prune(splitting.run.config, splitting.layout)


def test_an_output_without_a_journal_has_none_to_remove(splitting):
    splitting(samples(1), 1)
    assert of_other_settings(splitting.run.config, splitting.layout) == []

"""Resume: a finished sample is never inferred again, whatever happens. Counted by the journal (the
answers of the engine) and by the plugin (what the dataset read)."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest
from helpers import PROJECT, USAGE, Run, keys, read_jsonl, rules_run, samples, wait_until
from video_pipeline.commands.retry import retry
from video_pipeline.errors import EnvironmentFault
from video_pipeline.infer.infer import Shard, infer
from video_pipeline.journal.format import attempt_prefix
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.output.consolidation import consolidate, consolidate_partial
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding

pytestmark = pytest.mark.two_ranks


@pytest.fixture
def workflow(tmp_path) -> Path:
    """A copy of the workflow that a test may edit; returns its Snakefile."""
    folder = tmp_path / "workflow copy"
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "Snakefile", folder)
    return folder / "Snakefile"


def assert_output(run: Run, expected: list[str]) -> None:
    """The output has these samples in this order, all answered."""
    assert [record["__key"] for record in run.records()] == expected
    assert {record["__status"] for record in run.records()} == {"ok"}


def assert_once(run: Run, expected: list[str]) -> None:
    """Each of these samples, and no other, was inferred and read exactly once so far."""
    assert run.answers() == dict.fromkeys(expected, 1)
    assert run.reads() == dict.fromkeys(expected, 1)


def rank_files(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "results").glob("out.rank*.jsonl"))


def test_nothing_is_inferred_twice(run, workflow):
    """Everything that Snakemake takes as a reason to run jobs again, one after the other."""

    def go(expected: list[str], *arguments: str) -> None:
        run.snakemake(*arguments, snakefile=workflow)
        assert_output(run, expected)
        assert_once(run, sorted(expected))

    run.write_samples(samples(6))
    go(keys(6))
    first = run.output.read_bytes()
    assert rank_files(run) == []

    run.output.unlink()
    go(keys(6))

    for script in ("split.py", "infer.py", "consolidate.py", "video_pipeline/infer/infer.py"):
        with open(workflow.parent / "workflow" / "scripts" / script, "a") as stream:
            stream.write("# edited\n")
    run.edit_plugin("import os\n", "import os  # edited\n")
    run.output.unlink()
    go(keys(6))

    run.configure(data={"num_shards": 1})
    go(keys(6))

    run.configure(data={"num_shards": 2}, run={"keep_rank_files": True})
    go(keys(6))
    assert {"out.rank0.jsonl", "out.rank1.jsonl"} <= set(rank_files(run))

    (run.folder / "results" / "out.rank1.jsonl").unlink()
    run.output.unlink()
    go(keys(6))
    assert run.output.read_bytes() == first

    run.configure(run={"keep_rank_files": False})
    longer = [*reversed(samples(6)), samples(7)[6], samples(7)[2]]
    run.write_samples(longer)
    go(["5", "4", "3", "2", "1", "0", "6"])
    assert rank_files(run) == []
    assert run.summary()["samples"]["duplicates"] == 1


def test_only_file_times(splitting):
    """`--rerun-triggers mtime`, with every change in turn."""
    run, times = splitting.run, ("--rerun-triggers", "mtime")
    run.configure(run={"keep_rank_files": True})
    splitting(samples(4), 2).finish(*keys(4))
    run.snakemake(*times)
    run.write_samples(reversed(samples(4)))
    run.snakemake(*times)
    assert_output(run, list(reversed(keys(4))))
    for num_shards in (1, 2):
        run.output.unlink()
        run.configure(data={"num_shards": num_shards})
        run.snakemake(*times)
        assert_output(run, list(reversed(keys(4))))
    assert run.reads() == {}


def test_another_number_of_shards_in_between(splitting):
    """Split for 2 GPUs, inferred on 1 while the other was not free, finished on 2."""
    run = splitting.run
    run.write_samples(samples(4))
    run.snakemake("--until", "split")
    splitting(num_shards=1).finish(*keys(4))
    run.configure(data={"num_shards": 1})
    run.snakemake()
    run.configure(data={"num_shards": 2})
    run.snakemake()
    assert_output(run, keys(4))
    assert run.reads() == {}


def test_what_came_into_the_journal_since_the_split_is_found(splitting):
    """Say, a file copied from another machine."""
    splitting(samples(6), 2).finish("0")
    with JournalWriter(Path(splitting.manifest.journal), attempt_prefix("elsewhere", 0)) as journal:
        for entry in (entry for chunk in splitting.chunks for entry in chunk if entry.key != "0"):
            journal.answer(*entry.questions[0], "text", USAGE)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert_output(splitting.run, keys(6))
    assert splitting.run.reads() == {}


def test_a_run_whose_folder_has_moved_finds_its_journal(splitting):
    """Its paths are absolute, or it is continued from another working directory."""
    run = splitting.run
    run.configure(data={"output_jsonl": str(run.folder / "before" / "out.jsonl")})
    splitting(samples(4), 2).finish("0", "1", "2")
    (run.folder / "before").rename(run.folder / "results")
    run.configure(data={"output_jsonl": str(run.output)})
    layout = Layout.of(run.config, 2)
    for rank in range(2):
        infer(run.config, layout, rank, 1)
    consolidate(run.config, layout)
    assert_output(run, keys(4))
    assert run.reads() == {"3": 1}
    assert not (run.folder / "before").exists()


def test_an_earlier_number_of_shards_leaves_nothing(run):
    """Two rank files are kept, then the input is in one chunk, and in two again."""

    def go(num_shards: int, keep: bool) -> None:
        run.configure(data={"num_shards": num_shards}, run={"keep_rank_files": keep})
        run.snakemake()
        assert_output(run, keys(6))
        assert rank_files(run) == [f"out.rank{rank}.jsonl" for rank in range(num_shards) if keep]
        chunks = run.folder / "results/.chunks/out"
        assert [path.name for path in chunks.glob("of-*")] == [f"of-{num_shards}"]

    run.write_samples(samples(6))
    for num_shards, keep in ((2, True), (1, False), (2, True), (1, True), (2, False)):
        go(num_shards, keep)
    assert_once(run, keys(6))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def insert_line(path: Path, key: str) -> None:
    edit(path, '{"__key":"0"', '{"note":"mine"}\n{"__key":"0"')


def edit_key(path: Path, key: str) -> None:
    edit(path, f'"__key":"{key}"', '"__key":"x"')


def break_record(path: Path, key: str) -> None:
    edit(path, f'"output_text":"answer {key}"', f'"output_text":"answer {key}')


def remove_record(path: Path, key: str) -> None:
    kept = [line for line in path.read_text().splitlines() if f'"__key":"{key}"' not in line]
    path.write_text("".join(f"{line}\n" for line in kept))


def truncate(path: Path, key: str) -> None:
    """From this record on."""
    text = path.read_text()
    path.write_text(text[: text.index(f'{{"__key":"{key}"')])


def replace_file(path: Path, key: str) -> None:
    """By one in which this record is another sample's."""
    other = path.read_text().replace(f'"__key":"{key}"', '"__key":"another"')
    path.unlink()
    path.write_text(other)


def remove_file(path: Path, key: str) -> None:
    path.unlink()


CHANGES = [
    (insert_line, []),
    (edit_key, ["3"]),
    (break_record, ["3"]),
    (remove_record, ["3"]),
    (truncate, ["3", "4", "5"]),
    (replace_file, ["3"]),
    (remove_file, keys(6)),
]


@pytest.mark.parametrize(("change", "lost"), CHANGES, ids=[each.__name__ for each, _ in CHANGES])
def test_a_journal_that_changed_after_the_split(splitting, caplog, change, lost):
    """What is lost is inferred again, once, and only that; the others keep their own answers."""
    run, key = splitting.run, "3"
    splitting(samples(6), 1)
    with JournalWriter(Path(splitting.manifest.journal), attempt_prefix("first", 0)) as journal:
        for entry in splitting.chunks[0]:
            journal.answer(*entry.questions[0], f"answer {entry.key}", USAGE)
    assert splitting(num_shards=2).pending == []
    change(journal.path, key)
    consolidate_partial(run.config, splitting.layout)
    kept = [one for one in keys(6) if one not in lost]
    partial = read_jsonl(splitting.layout.partial)
    assert [(r["__key"], r["answer"]) for r in partial] == [(k, f"answer {k}") for k in kept]
    Sharding(2).write(splitting.layout.sharding)
    assert retry(run.config) == 0
    for rank in range(2):
        infer(run.config, splitting.layout, rank, 1)
    consolidate(run.config, splitting.layout)
    assert_output(run, keys(6))
    answers = {record["__key"]: record["answer"] for record in run.records()}
    assert {one: answers[one] for one in kept} == {one: f"answer {one}" for one in kept}
    assert run.reads() == dict.fromkeys(lost, 1)
    assert journal.path.name in caplog.text
    # a new split finds all of it, whatever lies in the journal
    splitting(num_shards=3)
    for rank in range(3):
        infer(run.config, splitting.layout, rank, 1)
    consolidate(run.config, splitting.layout)
    assert {record["__key"]: record["answer"] for record in run.records()} == answers
    assert run.reads() == dict.fromkeys(lost, 1)


def test_a_job_removes_what_a_killed_one_of_its_rank_has_left(splitting):
    splitting(samples(2), 2).finish("0", "1")
    results, chunks = splitting.run.folder / "results", splitting.layout.chunks
    names = ("out.rank{}.jsonl", "out.rank{}2.jsonl", "rank{}.statistics.json")
    for rank in (0, 1):
        for folder, name in zip((results, results, chunks), names, strict=True):
            (folder / f".{name.format(rank)}.0123abcd.tmp").write_text("half")
    infer(splitting.run.config, splitting.layout, 0, 1)
    left = sorted(path.name for path in (*results.glob(".*.tmp"), *chunks.glob(".*.tmp")))
    assert left == [
        ".out.rank02.jsonl.0123abcd.tmp",
        ".out.rank1.jsonl.0123abcd.tmp",
        ".out.rank12.jsonl.0123abcd.tmp",
        ".rank1.statistics.json.0123abcd.tmp",
    ]


def test_a_journal_that_changes_while_the_job_writes_its_rank_file(splitting, monkeypatch):
    """The job fails without a traceback, and the next attempt infers what is lost."""
    run = splitting.run
    splitting(samples(4), 1).finish(*keys(3))
    splitting(num_shards=1)
    (folder,) = run.journals()
    earlier = sorted(folder.glob("attempt.*"))
    write_rank_file = Shard.write_rank_file

    def disturbed(shard: Shard) -> None:
        for path in earlier:
            path.unlink(missing_ok=True)
        write_rank_file(shard)

    monkeypatch.setattr(Shard, "write_rank_file", disturbed)
    with pytest.raises(
        EnvironmentFault, match=r"sample 0 has no record.*Run the same command again"
    ):
        infer(run.config, splitting.layout, 0, 1)
    assert run.reads() == {"3": 1}
    infer(run.config, splitting.layout, 0, 1)
    assert run.reads() == dict.fromkeys(keys(4), 1)


def test_changes_of_what_is_asked(splitting):
    """Prompt, settings and parse: just what is asked anew is inferred, the old journal stays."""
    run = splitting.run
    splitting(samples(4), 1).finish(*keys(4))
    splitting.run_all()
    (first,) = run.journals()
    assert run.reads() == {}

    # the prompt of some samples
    run.edit_plugin('f"What happens? ', "f\"What happens? {'Why?' * (sample['id'] >= 2)}")
    splitting.run_all()
    assert run.reads() == Counter(keys(4)[2:])

    # parse
    run.edit_plugin('{"answer": generated_text.strip()}', '{"words": generated_text.split()}')
    splitting.run_all()
    assert [len(record["words"]) for record in run.records()] == [1, 1, 16, 16]
    assert "answer" not in run.records()[0]
    assert run.reads() == Counter(keys(4)[2:])

    # settings of the engine
    run.configure(sampling={"max_tokens": 5})
    splitting.run_all()
    assert [len(record["words"]) for record in run.records()] == [5] * 4
    assert run.reads() == Counter(keys(4) + keys(4)[2:])
    assert len(run.journals()) == 2
    assert first in run.journals()

    # and back: the old journal is there
    run.configure(sampling={"max_tokens": 512})
    splitting.run_all()
    assert [len(record["words"]) for record in run.records()] == [1, 1, 16, 16]
    assert run.reads() == Counter(keys(4) + keys(4)[2:])


def test_a_run_with_an_output_continues_where_it_was_stopped(run):
    """It does not split again: that would remove the rank files, and wait for jobs of the run."""
    run.write_samples(samples(4))
    run.snakemake()
    run.write_samples(samples(6))
    run.snakemake("--until", "infer")
    assert rules_run(run.snakemake("-n")) == {"consolidate": 1, "report": 1}
    assert rules_run(run.snakemake()) == {"consolidate": 1, "report": 1}
    assert_output(run, keys(6))


def test_without_resume_every_invocation_infers(run):
    run.configure(data={"num_shards": 1, "resume": False})
    run.write_samples(samples(1))
    run.snakemake()
    assert_once(run, ["0"])
    run.snakemake()
    assert run.answers() == {"0": 2}
    assert len(run.journals()) == 2
    # a retry within the invocation goes on: the plan and the manifest name its journal
    plan = json.loads((run.folder / "results/.chunks/out/plan.json").read_text())
    run.script("infer.py", "--num-shards", "1", "--rank", "0")
    assert run.answers() == {"0": 2}
    assert sum(plan["run_id"] in journal.name for journal in run.journals()) == 1


SLOW = {"seconds_per_output_token": 0.02, "output_tokens": 16}


@pytest.fixture
def slow(splitting):
    """30 samples in one chunk, and an engine that answers one after the other. The last sample
    waits for the file `go`."""
    splitting.run.configure(
        data={"num_shards": 1},
        run={"simulated": {**SLOW, "concurrency": 1}, "max_in_flight": 2},
    )
    *first, last = samples(30)
    splitting([*first, {**last, "do": "wait"}], 1)
    return splitting


def go(run) -> None:
    """Let the last sample go on."""
    (run.folder / "go").touch()


def test_a_killed_job_loses_nothing_and_leaves_nothing(slow):
    run = slow.run
    job = run.start("infer.py", "--num-shards", "1", "--rank", "0")
    wait_until(lambda: sum(run.answers().values()) >= 3, "three samples are done")
    children = psutil.Process(job.pid).children(recursive=True)
    folders = {f for f in Path("/dev/shm").glob("video-pipeline-*")}
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished = run.answers()
    assert 3 <= len(finished) < 30
    assert not slow.layout.rank_file(0).exists()
    assert len(children) >= 2
    wait_until(lambda: not any(map(psutil.Process.is_running, children)), "no process is left")
    # of all jobs on this machine, just this one's folder is gone
    wait_until(lambda: folders - set(Path("/dev/shm").glob("video-pipeline-*")), "its memory")
    go(run)
    run.configure(run={"simulated": {}})
    infer(run.config, slow.layout, 0, 1)
    consolidate(run.config, slow.layout)
    assert_output(run, keys(30))
    assert run.answers() == dict.fromkeys(keys(30), 1)
    assert {key: run.reads()[key] for key in finished} == dict.fromkeys(finished, 1)


def test_two_jobs_of_the_same_rank(slow):
    """A cluster has started a job twice: the second waits, then writes its rank file."""
    run = slow.run
    first = run.start("infer.py", "--num-shards", "1", "--rank", "0")
    wait_until(run.answers, "the first is at work")
    second = run.start("infer.py", "--num-shards", "1", "--rank", "0")
    log = run.folder / "background.log"
    wait_until(lambda: f"process {first.pid}" in log.read_text(), "the second waits for it")
    go(run)
    assert (first.wait(), second.wait()) == (0, 0)
    consolidate(run.config, slow.layout)
    assert_output(run, keys(30))
    assert_once(run, keys(30))


def test_a_second_job_takes_over_when_the_first_dies(slow):
    run = slow.run
    first = run.start("infer.py", "--num-shards", "1", "--rank", "0")
    wait_until(run.answers, "the first is at work")
    second = run.start("infer.py", "--num-shards", "1", "--rank", "0")
    log = run.folder / "background.log"
    wait_until(lambda: f"process {first.pid}" in log.read_text(), "the second waits for it")
    first.kill()
    go(run)
    assert second.wait() == 0
    assert first.wait() == -signal.SIGKILL
    consolidate(run.config, slow.layout)
    assert_output(run, keys(30))
    assert run.answers() == dict.fromkeys(keys(30), 1)


def test_what_a_changed_setting_costs_is_said_before_it_is_spent(run):
    """By a dry run, and by the run itself before it replaces the finished output."""
    run.configure(data={"num_shards": 1})
    run.write_samples(samples(3))
    run.snakemake()
    assert "split again" not in run.snakemake("-n")
    before = run.output.read_bytes()
    run.configure(task_params={"prompt": "Why?"}, sampling={"max_tokens": 7})
    stays = "will be inferred, at most 3; 3 answers stay under the old settings"
    said = run.snakemake("-n")
    assert "changed: sampling.max_tokens (512 -> 7), task_params.prompt" in said
    assert stays in said
    assert run.output.read_bytes() == before
    assert stays in run.snakemake()
    log = run.log("split")
    assert "sampling.max_tokens (512 -> 7)" in log
    assert "3 of 3 samples will be inferred; 3 answers stay under the old settings" in log

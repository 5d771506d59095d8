"""The workflow from outside: what Snakemake plans, says and leaves behind."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, Run, keys, read_jsonl, rules_run, samples
from video_pipeline.config import load_config
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run import throughput

pytestmark = pytest.mark.two_ranks

DONE = "Nothing to be done"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Six samples on two ranks, finished, and a copy of the folder."""
    run = Run(tmp_path_factory.mktemp("finished") / "my user's run")
    run.configure(data={"num_shards": 2})
    run.write_samples(samples(6))
    run.is_users = True
    run.out = run.snakemake("--printshellcmds")
    run.is_users = False
    return run, shutil.copytree(run.folder, run.folder.with_name("copy"), symlinks=True)


@pytest.fixture
def finished(first_run):
    """The finished run, in the state in which it ended."""
    run, copy = first_run
    shutil.rmtree(run.folder)
    shutil.copytree(copy, run.folder, symlinks=True)
    run.settings = yaml.safe_load((run.folder / "my.yaml").read_text())
    return run


def test_a_run_from_beginning_to_end(finished):
    run = finished
    # the output: every sample, in order, with the fields of the contract
    records = run.records()
    assert [record["__key"] for record in records] == keys(6)
    assert [record["input"] for record in records] == samples(6)
    assert list(records[0]) == [
        *("__key", "__status", "__task", "__model", "__usage", "input", "output_text", "answer"),
    ]
    assert {record["__model"] for record in records} == {"simulated"}
    assert len({record["output_text"] for record in records}) == 6
    # what else is beside it
    results = run.folder / "results"
    assert sorted(path.name for path in results.iterdir() if not path.name.startswith(".")) == [
        *("out.config.yaml", "out.errors.jsonl", "out.jsonl", "out.report.html"),
        *("out.report.tsv", "out.summary.json"),
    ]
    assert load_config(results / "out.config.yaml") == run.config
    assert {job["rank"] for job in run.summary()["jobs"]} == {0, 1}
    assert sum(job["inferred"] for job in run.summary()["jobs"]) == 6
    # what is seen of it meanwhile, and at the end
    assert "6 samples (6 lines), " in run.out
    assert re.search(r"answered\s+│\s+6 │", run.out)
    assert re.search(r"wall time\s+│\s+\d+ s │", run.out)
    for rank in (0, 1):
        assert f"rank {rank}: infers 3 samples" in run.out
    for name in ("split", "infer.rank0", "infer.rank1", "consolidate", "report"):
        assert "Traceback" not in run.log(name)

    # nothing is left to do, for whoever asks
    for arguments in ([], ["-n"], ["--rerun-triggers", "mtime"]):
        assert DONE in run.snakemake(*arguments)
    moved = run.folder / "moved.yaml"
    moved.write_text(yaml.safe_dump(run.settings))
    assert DONE in run.snakemake("--configfile", str(moved))
    assert run.answers() == dict.fromkeys(keys(6), 1)

    # a job by hand, with the command line that Snakemake printed
    commands = [line for line in run.out.splitlines() if "infer.py" in line and "--rank 1" in line]
    command = commands[0].removeprefix("Shell command: ")
    subprocess.run(command, shell=True, cwd=run.folder, check=True, executable="/bin/bash")
    (rank_file,) = results.glob("out.rank*.jsonl")
    assert rank_file.name == "out.rank1.jsonl"
    assert read_jsonl(rank_file) == records[1::2]
    assert run.answers() == dict.fromkeys(keys(6), 1)

    # a report needs no --resources and changes nothing
    run.snakemake("--report", "report.html")
    assert (run.folder / "report.html").stat().st_size > 1000

    # another gallery makes the page anew, and nothing else
    run.configure(report={"seed": 7})
    assert rules_run(run.snakemake("-n")) == {"report": 1}


def test_other_samples_are_never_passed_over(finished):
    """Neither older ones, nor where Snakemake looks at times alone, or has forgotten its past."""
    run = finished
    (run.folder / "other.jsonl").write_text('{"id": 7, "path": "x.mp4"}\n')
    os.utime(run.folder / "other.jsonl", (1, 1))
    run.configure(data={"input_jsonl": "other.jsonl"})
    shutil.rmtree(run.folder / ".snakemake")
    run.snakemake("--rerun-triggers", "mtime")
    assert [record["__key"] for record in run.records()] == ["7"]
    assert DONE in run.snakemake("-n", "--rerun-triggers", "mtime")
    # another file of the same name
    (run.folder / "other.jsonl").write_text('{"id": 8, "path": "x.mp4"}\n')
    os.utime(run.folder / "other.jsonl", (1, 1))
    run.snakemake("--rerun-triggers", "mtime")
    assert [record["__key"] for record in run.records()] == ["8"]
    # another plugin, as old
    run.edit_plugin("generated_text.strip()", '"changed"')
    os.utime(run.folder / "plugin.py", (1, 1))
    run.snakemake("--rerun-triggers", "mtime")
    assert [record["answer"] for record in run.records()] == ["changed"]
    assert run.answers()["8"] == 1
    # without chunks, the summary knows
    shutil.rmtree(run.folder / "results" / ".chunks")
    run.configure(data={"input_jsonl": "samples.jsonl"})
    os.utime(run.folder / "samples.jsonl", (1, 1))
    run.snakemake("--rerun-triggers", "mtime")
    assert [record["__key"] for record in run.records()] == keys(6)
    assert set(run.answers().values()) == {1}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of all files in ``folder``, without Snakemake's own."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and ".snakemake" not in path.parts and path.name != "reads.txt"
    }


def test_who_only_looks_writes_nothing(finished):
    """Before a run, and after it, also with another number of shards that was used before."""
    run = finished
    run.configure(data={"num_shards": 3}, run={"keep_rank_files": True})
    run.snakemake()
    before = snapshot(run.folder / "results")
    run.configure(data={"num_shards": 1})  # a number that no run had
    for arguments in (["-n"], ["--lint"]):
        run.snakemake(*arguments)
        assert snapshot(run.folder / "results") == before, arguments
    looks = ["-n", "--lint", "--dag", "--list-rules", "--summary", "--unlock"]
    for shards, looks_now in ((3, looks), (2, ["-n"])):  # those of the last run, and others
        run.configure(data={"num_shards": shards})
        before = snapshot(run.folder)
        for look in looks_now:
            run.snakemake(look)
            assert snapshot(run.folder) == before, look
        run.snakemake("--report", "r.html")
        made = snapshot(run.folder)
        del made["r.html"]
        assert made == before
        (run.folder / "r.html").unlink()
        run.is_users = True  # it counts tokens
        run.snakemake("plan")
        run.is_users = False
        after = snapshot(run.folder)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert all(re.search(r"[./]plan\b", name) for name in changed), changed


def test_looking_before_a_run_writes_nothing(run):
    before = snapshot(run.folder)
    run.snakemake("--list-rules")  # which needs no input either
    assert "Congratulations" in run.snakemake("--lint")
    run.snakemake("-n", succeeds=False)
    assert snapshot(run.folder) == before


def test_any_name_is_taken_literally(run):
    """Of the working directory, input, output, plugin and prompt: for a run, and all that looks."""
    name = "{rank} a{b,\\d+}'q\" $HOME *?[x] %s #é{{y}} <results>&;"
    run = Run(run.folder / f"run {name}")
    run.edit_plugin('    name = "ask"', '    name = "ask"\n    in_messages = ("prompt_file",)')
    for file in ("plugin.py", "my.yaml"):
        assert (run.folder / file).exists()
    (run.folder / "plugin.py").rename(run.folder / f"my{name}.py")
    (run.folder / f"ask{name}.txt").write_text("Why?")
    run.write_samples(samples(3))
    (run.folder / "samples.jsonl").rename(run.folder / f"s{name}.jsonl")
    output = f"res {name}/out{name}.jsonl"
    run.configure(
        data={"input_jsonl": f"s{name}.jsonl", "output_jsonl": output, "num_shards": 2},
        run={"plugins": [f"my{name}.py"], "formats": ["jsonl", "parquet"]},
        task_params={"prompt_file": f"ask{name}.txt"},
    )
    run.snakemake("-n")
    run.snakemake()
    records = read_jsonl(run.folder / output)
    assert [record["__key"] for record in records] == keys(3)
    results = run.folder / f"res {name}"
    assert (results / f"out{name}.dataset" / "README.md").exists()
    assert not list(results.glob("*.rank*"))
    before = snapshot(results)
    for arguments in ([], [output]):
        assert DONE in run.snakemake(*arguments)
    run.snakemake("--report", "report.html")
    run.snakemake("partial")
    run.snakemake("plan")
    after = snapshot(results)
    assert {file: after[file] for file in before} == before
    (run.folder / f"s{name}.jsonl").write_text('{"id": 7, "path": "x.mp4"}\n')
    run.snakemake()
    assert [record["__key"] for record in read_jsonl(run.folder / output)] == ["7"]


def test_the_workflow_may_lie_anywhere(run):
    place = run.folder / "in {place} it's"
    place.mkdir()
    for part in ("Snakefile", "workflow", "config", "envs", "profiles"):
        copy = shutil.copytree if (PROJECT / part).is_dir() else shutil.copy
        copy(PROJECT / part, place / part)
    run.configure(data={"num_shards": 1})
    run.write_samples(samples(2))
    run.snakemake(snakefile=place / "Snakefile")
    assert [record["__key"] for record in run.records()] == keys(2)
    assert DONE in run.snakemake("-n", snakefile=place / "Snakefile")


def test_the_number_of_shards_follows_the_gpus_and_is_kept(run):
    """The main process decides; later calls and children without --resources plan the same."""
    run.configure(data={"num_shards": "auto"})
    run.write_samples(samples(6))
    chunks = run.folder / "results" / ".chunks" / "out"
    out = run.snakemake("--resources", "gpu=3", "--until", "split")
    assert len(list((chunks / "of-3").glob("rank*.jsonl"))) == 3
    assert json.loads((chunks / "plan.json").read_text())["num_shards"] == 3
    # the same call without --resources goes on with three
    out = run.snakemake("-n")
    jobs = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) == 2}
    assert jobs["infer"] == "3"
    assert "split" not in jobs
    # another number of GPUs is another plan; a dry run does not write it down
    out = run.snakemake("-n", "--resources", "gpu=2")
    assert "was not split into 2 chunks" in out
    assert json.loads((chunks / "plan.json").read_text())["num_shards"] == 3


def test_cores_follow_the_jobs_that_run_at_once(run):
    run.configure(data={"num_shards": 6}, vllm={"tensor_parallel_size": 2})
    run.write_samples(samples(6))
    details = run.without_messages()
    out = run.snakemake("-n", "--cores", "8", "--resources", "gpu=4", snakefile=details)
    assert out.count("threads: 4\n") == 6
    out = run.snakemake(
        "-n", "--resources", "gpu=4", "--set-resources", "infer:gpu=8", succeeds=False
    )
    assert "infer:gpu=8: one inference job needs 2 GPU(s)" in out
    assert "Traceback" not in out


def test_a_job_that_starts_snakemake_again_sees_the_same_plan(run):
    """As the executors of clusters do: a child without the command line's resources. It must not
    start a journal of its own either."""
    run.configure(data={"num_shards": "auto", "resume": False})
    run.write_samples(samples(2))
    run.snakemake("--resources", "gpu=2", "--until", "split")
    path = run.folder / "results" / ".chunks" / "out" / "plan.json"
    plan = path.read_text()
    run.snakemake(
        *("--mode", "subprocess", "--target-jobs", "infer:rank=1", "--allowed-rules", "infer"),
        *("--force", "--nolock", "--target-files-omit-workdir-adjustment"),
    )
    (record,) = read_jsonl(run.folder / "results" / "out.rank1.jsonl")
    assert record["__key"] == "1"
    assert path.read_text() == plan
    (journal,) = run.journals()
    assert json.loads(plan)["run_id"] in journal.name


def test_compressed_input_and_settings_on_the_command_line(run):
    """`.gz` in, one rank, and Snakemake's own --config, which delivers texts."""
    text = "".join(json.dumps(sample) + "\n" for sample in samples(3))
    (run.folder / "in.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    run.snakemake(
        *("--config", "data={input_jsonl: in.jsonl.gz, num_shards: 1}", "sampling={max_tokens: 3}")
    )
    records = run.records()
    assert [record["__key"] for record in records] == keys(3)
    assert [record["__usage"]["completion_tokens"] for record in records] == [3] * 3
    resolved = load_config(run.folder / "results" / "out.config.yaml")
    assert (resolved.data.num_shards, resolved.data.id_field) == (1, "id")


@pytest.mark.parametrize(
    ("count", "read_seconds", "answer_seconds", "bound"),
    [
        (40, 0.1, 0.0, "decode-bound: give it more cores"),
        # Reading is done long before the engine, also on a busy machine, and yet not the limit.
        (16, 0.02, 0.25, "engine-bound"),
    ],
)
def test_the_summary_says_what_bounds_the_run(
    splitting, monkeypatch, count, read_seconds, answer_seconds, bound
):
    run = splitting.run
    run.edit_plugin("    misbehave(", f"    time.sleep({read_seconds})\n        misbehave(")
    simulated = {"seconds_per_output_token": answer_seconds, "output_tokens": 1, "concurrency": 1}
    run.configure(run={"simulated": simulated})
    splitting(samples(count), 1)
    infer(run.config, splitting.layout, 0, 1)
    consolidate(run.config, splitting.layout)
    assert run.summary()["throughput"]["bound"] == "too short to tell"
    monkeypatch.setattr(throughput, "CLEAR_SECONDS", 0.0)
    consolidate(run.config, splitting.layout)
    assert run.summary()["throughput"]["bound"] == bound


# together 7 s of CPU and half a gigabyte; Snakemake itself brings numpy, pandas and pyarrow
HEAVY = {"torch", "torchvision", "torchcodec", "vllm", "transformers", "qwen_vl_utils", "av"}


def test_parsing_imports_nothing_heavy(run, monkeypatch):
    """Every call of Snakemake parses the workflow, and so does every job of a cluster."""
    run.write_samples(samples(2))
    run.configure(data={"num_shards": "auto"})
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # Python says what it imports
    out = run.snakemake("-n", "--resources", "gpu=2")
    imported = set(re.findall(r"^import time: .* ([\w.]+)$", out, re.MULTILINE))
    assert {"snakemake", "video_pipeline.run.stages"} <= imported
    assert HEAVY & {name.partition(".")[0] for name in imported} == set()
    # the default profile lies beside the Snakefile, so no option names it
    assert str(PROJECT / "profiles" / "default") in out
    assert "splits samples.jsonl into 2 chunk(s)" in out  # and no shell command
    assert "split.py" not in out


def test_an_output_that_is_not_what_was_written_is_written_again(finished):
    """Also where its time says nothing; no sample is inferred again."""
    run = finished
    before = run.output.read_bytes()
    run.write_samples(samples(8))
    run.snakemake()
    right = run.output.read_bytes()
    summary = run.output.with_name("out.summary.json")
    for path, damaged in ((run.output, right[:-9]), (run.output, before), (summary, b"{")):
        status = path.stat()
        path.write_bytes(damaged)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert "not what was written there: written again" in run.snakemake()
        assert run.output.read_bytes() == right
        assert run.summary()["samples"]["ok"] == 8
    assert set(run.answers().values()) == {1}

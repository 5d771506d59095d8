"""Errors: a bad sample costs only itself, and whatever stops a run says what to do.

Where no Snakemake is needed, the jobs run in this process (their decode processes are real).
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess

import pytest
from helpers import keys, samples
from rich.console import Console
from video_pipeline.commands.retry import retry
from video_pipeline.commands.watch import lines, look
from video_pipeline.common.locks import try_lock
from video_pipeline.errors import EnvironmentFault, TaskError, UserError
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.report.page import collect, render
from video_pipeline.report.summary import summary_table
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding


@pytest.fixture
def one_shard(splitting):
    """Splits into a single chunk and infers it."""

    def run(entries=None, **sections):
        splitting.run.configure(**sections)
        splitting(entries, 1)
        infer_again()
        return splitting

    def infer_again():
        infer(splitting.run.config, splitting.layout, 0, 1)
        consolidate(splitting.run.config, splitting.layout)

    run.again = infer_again
    run.splitting = splitting
    run.user = splitting.run
    return run


def doing(*behaviours: str | None) -> list[dict]:
    return [{**samples(len(behaviours))[i], "do": do} for i, do in enumerate(behaviours)]


def stages(records: list[dict]) -> list[str]:
    """``ok`` or the stage of the error, for each record."""
    return [record.get("__error", {"stage": record["__status"]})["stage"] for record in records]


# --- one bad sample ----------------------------------------------------------------------------


def test_bad_samples_cost_only_themselves(one_shard):
    one_shard(
        doing(None, "raise", "die", "exit", "surrogate", "hang", None),
        data={"sample_timeout_s": 15},  # Enough for the others on a busy machine.
    )
    records = one_shard.user.records()
    assert [record["__key"] for record in records] == keys(7)
    assert stages(records) == ["ok", "read", "crash", "read", "read", "timeout", "ok"]
    assert records[1]["__error"] == {
        "stage": "read",
        "type": "ValueError",
        "message": "no such clip",
    }
    assert "no such clip: caf" in records[4]["__error"]["message"]
    assert one_shard.user.summary()["samples"]["errors_by_stage"] == {
        "read": 3,
        "crash": 1,
        "timeout": 1,
    }
    # errors are final: nothing is read again
    reads = one_shard.user.reads()
    one_shard()
    assert one_shard.user.reads() == reads
    # until they are opened again, here those of one stage
    Sharding(1).write(one_shard.splitting.layout.sharding)
    assert retry(one_shard.user.config, ("crash",)) == 1
    one_shard.again()
    assert one_shard.user.reads() - reads == {"2": 2}  # it is tried twice each time
    assert stages(one_shard.user.records())[2] == "crash"


def test_parse_errors_keep_the_answer_and_the_others(one_shard):
    one_shard.user.edit_plugin(
        'return {"answer": generated_text.strip()}',
        'return {"answer": 12 // int(sample["__key"])}',
    )
    one_shard(samples(4))
    records = one_shard.user.records()
    assert stages(records) == ["parse", "ok", "ok", "ok"]
    assert [record.get("answer") for record in records] == [None, 12, 6, 4]
    assert records[0]["__error"]["type"] == "ZeroDivisionError"
    assert "plugin.py, line" in records[0]["__error"]["message"]
    assert records[0]["output_text"]
    assert records[0]["__usage"]["completion_tokens"] == 16


ODD_VALUES = {"set": "{1}", "surrogate": "'\\ud800'", "long number": "1 << 70", "bytes": "b''"}


@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
def test_parse_results_that_json_cannot_carry(splitting, value):
    """Only that sample fails."""
    splitting.run.edit_plugin(
        '"answer": generated_text.strip()', f'"answer": {value} if sample["id"] == 1 else 1'
    )
    splitting(samples(3), 1).finish(*keys(3))
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert stages(splitting.run.records()) == ["ok", "parse", "ok"]


# --- many bad samples --------------------------------------------------------------------------


def test_too_many_errors_stop_the_shard_until_the_storage_is_back(one_shard):
    entries = [*samples(40), *({**sample, "do": "storage"} for sample in samples(90)[40:])]
    with pytest.raises(UserError) as caught:
        one_shard(entries)
    message = str(caught.value)
    for said in ("rank 0", "20 of the", "(of 90)", "20 failures to read are tried again"):
        assert said in message
    assert not one_shard.splitting.layout.rank_file(0).exists()
    first = one_shard.user.answers()
    assert set(first) <= set(keys(40))
    with pytest.raises(UserError, match=r"run\.max_error_rate"):
        one_shard.again()
    one_shard.user.configure(run={"max_error_rate": 1.0})  # Which reads them again, too.
    (one_shard.user.folder / "storage").touch()
    one_shard.again()
    assert stages(one_shard.user.records()) == ["ok"] * 90
    assert one_shard.user.answers() == dict.fromkeys(keys(90), 1)


def test_a_slow_engine_makes_no_failures_out_of_few(one_shard):
    """1 of 20 files is bad. They fail at once, while the others wait for their answers."""
    entries = [
        {**sample, "do": "raise"} if number % 20 == 0 else sample
        for number, sample in enumerate(samples(500))
    ]
    slow = {"seconds_per_output_token": 0.25, "output_tokens": 16}
    one_shard(entries, run={"simulated": slow})
    assert stages(one_shard.user.records()).count("read") == 25


def test_a_higher_limit_accepts_what_failed(splitting):
    failed = tuple(keys(30))
    splitting(samples(40), 1).finish(*keys(40)[30:], failed=failed)
    with pytest.raises(UserError, match=r"30 of the 40 .*30 failures stay"):
        infer(splitting.run.config, splitting.layout, 0, 1)
    splitting.run.configure(run={"max_error_rate": 0.75})
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert stages(splitting.run.records()) == ["read"] * 30 + ["ok"] * 10
    assert splitting.run.reads() == {}


def test_a_parse_that_always_fails_gives_no_output_and_shows_why(splitting):
    splitting.run.edit_plugin("generated_text.strip()", "generated_text.strep()")
    splitting(samples(25), 1).finish(*keys(25))
    infer(splitting.run.config, splitting.layout, 0, 1)
    with pytest.raises(UserError) as caught:
        consolidate(splitting.run.config, splitting.layout)
    assert "none of the 25 samples" in str(caught.value)
    assert "was answered (parse: 25)" in str(caught.value)
    assert "'str' object has no attribute 'strep'" in str(caught.value)
    assert "retry" not in str(caught.value)


def test_answers_that_parse_fails_on_stop_no_run_and_nobody_can_overlook_them(
    one_shard, caplog, monkeypatch
):
    """A quarter of them, far over the limit of the error rate, and an error that counts."""
    monkeypatch.setattr("video_pipeline.infer.streaming.PARSED_AT_ONCE", 10**6)
    run, layout = one_shard.user, Layout.of(one_shard.user.config, 1)
    run.edit_plugin(
        "generated_text.strip()",
        '(HERE / "better").exists() or 1 // (int(sample["id"]) % 4)',
    )
    Sharding(1).write(layout.sharding)
    one_shard([*samples(100), {"id": 101, "path": "bad.mp4", "do": "raise"}])
    assert stages(run.records()) == ["parse", "ok", "ok", "ok"] * 25 + ["read"]
    assert run.summary()["samples"]["errors_by_stage"] == {"parse": 25, "read": 1}
    words = "parse failed on 25 answers: fix it and run again; nothing is inferred twice"
    logged = [record.getMessage() for record in caplog.records]
    assert any(
        line.startswith(f"rank 0: {words}; the last: ZeroDivisionError: ") for line in logged
    )
    assert f"{layout.output}: {words}" in logged
    assert words in render(collect(run.config, layout, 1)).replace("Parse failed", "parse failed")
    console = Console(file=io.StringIO(), width=160, color_system="standard", force_terminal=True)
    console.print(summary_table(layout.summary))
    assert "\x1b[33m  parse: fix it, the answers are there" in console.file.getvalue()
    assert look(run.config).total.unparsed == 25
    layout.output.unlink()
    layout.rank_file(0).unlink()
    view = look(run.config)  # from what the job said of itself while it ran
    assert f"  {words}" in lines("", view)
    # a better parse, and nothing is inferred again
    (run.folder / "better").touch()
    one_shard.again()
    assert stages(run.records()) == ["ok"] * 100 + ["read"]
    assert set(run.answers().values()) == {1}


@pytest.fixture
def little_memory(tmp_path, monkeypatch):
    """Shared memory of 1 MB, as a container gives too little of it."""
    folder = tmp_path / "shm"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    monkeypatch.setattr("video_pipeline.common.processes._SHARED_MEMORY", folder)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.as_users
def test_too_little_shared_memory(one_shard, little_memory):
    """Each sample needs 1.2 MB."""
    one_shard.user.edit_plugin("import os\n", "import os\nimport torch\n")
    one_shard.user.edit_plugin('"prompt": "x" * 40', '"prompt": "", "x": torch.zeros(300_000)')
    with pytest.raises(EnvironmentFault, match=r"no room .* in shared memory, .* enlarge it"):
        one_shard(samples(4))
    # the neighbour that took it may be gone: another attempt is made
    assert not Layout.of(one_shard.user.config, 1).failure(0).exists()
    assert list(little_memory.iterdir()) == []


# --- the user's code ---------------------------------------------------------------------------


def test_a_reserved_name_is_found_with_the_first_answer(one_shard):
    one_shard.user.edit_plugin('"answer": generated_text', '"input": generated_text')
    with pytest.raises(TaskError, match=r"'ask': parse returned 'input'.*reserved"):
        one_shard(samples(60), run={"max_in_flight": 1})
    # what was answered is in the journal all the same, and the rest was not begun
    assert 1 <= sum(one_shard.user.answers().values()) < 60


def test_messages_that_changed_since_split(one_shard):
    splitting = one_shard.splitting
    splitting(samples(3), 1)
    one_shard.user.edit_plugin("What happens?", "Who is there?")
    (one_shard.user.folder / "new.py").write_text((one_shard.user.folder / "plugin.py").read_text())
    out = one_shard.user.script("infer.py", *("--num-shards", "1", "--rank", "0"), succeeds=False)
    assert "Traceback" not in out
    assert "plugin.py has changed since the input was split" in out
    assert one_shard.user.answers() == {}


def test_settings_that_changed_since_split(splitting):
    splitting(samples(3), 1)
    splitting.run.configure(sampling={"max_tokens": 7})
    with pytest.raises(UserError, match="--forcerun split"):
        infer(splitting.run.config, splitting.layout, 0, 1)
    assert splitting.run.answers() == {}


def test_model_files_that_changed_since_split(splitting):
    model = splitting.run.folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    splitting.run.configure(run={"engine": "vllm"}, vllm={"model": "model"})
    splitting(samples(3), 1)
    (model / "model.safetensors").write_text("other weights")
    with pytest.raises(UserError, match="files of the model have changed"):
        infer(splitting.run.config, splitting.layout, 0, 1)


# --- the files of a run ------------------------------------------------------------------------


def test_a_journal_that_was_removed_is_inferred_again(one_shard):
    """Somebody starts over by removing it, while the chunks still point into it."""
    splitting = one_shard(samples(3))
    splitting(samples(3), 1)
    assert splitting.pending == []
    shutil.rmtree(splitting.run.folder / "results" / ".journal")
    one_shard.again()
    assert splitting.run.reads() == dict.fromkeys(keys(3), 2)


def test_by_hand_of_a_rank_that_is_none(run):
    run.write_samples(samples(1))
    out = run.script("infer.py", "--num-shards", "2", "--rank", "2", succeeds=False)
    assert "error: --rank 2: the ranks are 0 to 1" in out


def test_by_hand_before_the_input_was_split(run):
    run.write_samples(samples(1))
    out = run.script("infer.py", "--num-shards", "2", "--rank", "0", succeeds=False)
    assert "Traceback" not in out
    assert "manifest.json" in out


def test_a_job_of_another_plan_does_not_join_a_live_one(splitting):
    """Snakemake was killed, its jobs live on, and the next run has another number of shards
    whose chunks are there already."""
    splitting(samples(4), 2).finish(*keys(4))
    splitting(samples(4), 3)
    live = splitting.layout.lock(0)
    splitting(samples(4), 2)
    with try_lock(live), pytest.raises(UserError, match=r"of-3, rank0"):
        infer(splitting.run.config, splitting.layout, 0, 1)


# --- through Snakemake -------------------------------------------------------------------------


def test_an_unknown_key_is_explained_before_anything_runs(run):
    run.write_samples(samples(1))
    run.configure(vision={"max_frame": 3}, data={"num_shards": "two"})
    out = run.snakemake(succeeds=False)
    assert "vision.max_frame: unknown key; did you mean 'vision.max_frames'?" in out
    assert "data.num_shards: got 'two', expected 'auto' or a whole number" in out
    assert "Traceback" not in out
    assert not (run.folder / "results").exists()


def test_a_section_that_is_there_twice_stops_before_anything_runs(run):
    """Snakemake alone would take the second of two pasted examples, and run without the first."""
    run.write_samples(samples(1))
    path = run.folder / "my.yaml"
    path.write_text(f"{path.read_text()}\nrun: {{formats: [jsonl, parquet]}}\n")
    out = run.snakemake(succeeds=False)
    assert f"cannot read the configuration {path}: the key 'run' is there twice" in out
    assert "Traceback" not in out
    assert not (run.folder / "results").exists()


def test_too_few_gpus_are_explained_before_anything_runs(run):
    run.write_samples(samples(1))
    run.configure(vllm={"tensor_parallel_size": 4})
    out = run.snakemake("--resources", "gpu=2", succeeds=False)
    assert "one inference job needs 4 GPUs" in out
    assert "Traceback" not in out


def test_bad_input_stops_before_anything_is_inferred(run):
    run.write_samples(samples(3))
    with open(run.folder / "samples.jsonl", "a") as stream:
        stream.write('{"id": 3}\nnonsense\n{"id": 0, "path": "other.mp4"}\n')
    out = run.snakemake(succeeds=False)
    for said in ("line 4: no video", "line 5: not JSON", "line 6: id '0'", "3 bad line(s)"):
        assert said in out, "Snakemake shows the log"
        assert said in run.log("split")
    assert "logs/out" in out
    assert "Fix the cause and run again" in out
    assert "Traceback" not in out
    assert run.reads() == {}
    assert not list((run.folder / "results").rglob("rank*.jsonl"))
    # mended, the same command goes on
    run.write_samples(samples(2))
    run.snakemake("--until", "split")
    assert "2 samples" in run.log("split")


def test_a_wrong_name_of_vllm_is_found_before_anything_starts(run):
    run.write_samples(samples(1))
    run.configure(vllm={"max_num_seq": 4})
    expected = "vllm.max_num_seq: vLLM 0.32.0 has no such setting; did you mean vllm.max_num_seqs?"
    assert expected in run.snakemake("-n", succeeds=False)
    assert expected in run.snakemake("plan", succeeds=False)
    assert expected in run.script("split.py", "--num-shards", "1", succeeds=False)
    assert expected in run.module("preview", "--no-engine", succeeds=False)
    assert not (run.folder / "results").exists()


def test_an_unknown_task_and_a_broken_plugin_are_explained(run):
    run.write_samples(samples(1))
    run.configure(run={"task": "aks"})
    out = run.snakemake(succeeds=False)
    assert "no task is called 'aks'; did you mean 'ask'? registered: ask, describe" in out
    run.configure(run={"task": "ask"})
    run.edit_plugin("import os\n", "import os\nimport not_installed\n")
    out = run.snakemake(succeeds=False)
    assert "plugin plugin.py failed on import: ModuleNotFoundError" in out
    assert "plugin.py, line 5" in out
    assert "Traceback" not in out
    (run.folder / "plugin.py").unlink()
    assert "plugin.py" in run.snakemake(succeeds=False)


def test_a_run_whose_files_are_missing_does_not_begin(run):
    """Nor does it say that nothing is to be done, where the output is there already."""
    (run.folder / "ask.txt").write_text("Why?")
    run.edit_plugin('    name = "ask"', '    name = "ask"\n    in_messages = ("prompt_file",)')
    run.configure(task_params={"prompt_file": "ask.txt"})
    run.write_samples(samples(2))
    run.snakemake()
    before = run.output.read_bytes()
    gone = {
        "data.input_jsonl": ({"data": {"input_jsonl": "sample.jsonl"}}, "samples.jsonl"),
        "run.plugins": ({"run": {"plugins": ["plugni.py"]}}, "plugin.py"),
        "task_params.prompt_file": ({"task_params": {"prompt_file": "aks.txt"}}, "ask.txt"),
    }
    for place, (section, near) in gone.items():
        restore = {name: dict(run.settings[name]) for name in section}
        run.configure(**section)
        for arguments in ([], ["-n"]):
            check_missing(run, run.snakemake(*arguments, succeeds=False), place, near)
        run.configure(**restore)
    run.configure(data={"input_jsonl": "sample.jsonl"})
    for target in ("plan", "partial"):
        check_missing(run, run.snakemake(target, succeeds=False), "data.input_jsonl", "samples")
    by_hand = run.script("infer.py", "--num-shards", "1", "--rank", "0", succeeds=False)
    check_missing(run, by_hand, "data.input_jsonl", "samples.jsonl")
    out = run.snakemake("--configfile", "mine.yaml", succeeds=False)
    assert "mine.yaml" in out
    assert run.output.read_bytes() == before
    assert sum(run.answers().values()) == 2
    # who only looks at what is there needs no input
    run.configure(data={"input_jsonl": "samples.jsonl"})
    (run.folder / "samples.jsonl").unlink()
    assert "no failed samples" in run.module("retry")
    run.module("journal", "stats")


def check_missing(run, out: str, place: str, near: str) -> None:
    assert f"{place}: {run.folder}/" in out
    assert f"does not exist; did you mean {run.folder}/{near}" in out
    assert "Traceback" not in out
    assert "Nothing to be done" not in out


def test_a_run_without_an_answer_fails(run):
    """Fewer failures than stop a shard. Once the cause is fixed, the run goes on as always."""
    run.configure(run={"max_error_rate": 1.0})
    run.write_samples(doing("raise", "raise", "surrogate"))
    out = run.snakemake(succeeds=False)
    assert f"none of the 3 samples in {run.folder}/samples.jsonl was answered (read: 3)" in out
    assert "sample 0: read: ValueError: no such clip" in out
    assert "Traceback" not in out
    assert not run.output.exists()
    run.edit_plugin('    if do == "raise":', '    if do == "no more":')
    assert "3 failed sample(s) are open again" in run.module("retry")
    run.snakemake()
    assert stages(run.records()) == ["ok", "ok", "read"]


def test_the_output_of_the_run_before_survives_a_run_without_an_answer(run):
    """Snakemake removes the output before its job, and again when the job fails."""
    run.write_samples(samples(3))
    run.snakemake()
    names = ("jsonl", "summary.json", "errors.jsonl")
    files = [run.output.with_name(f"out.{name}") for name in names]
    before = [path.read_bytes() for path in files]
    text = run.records()[0]["output_text"]
    right = "return {"
    for bug in ("return 1 / 0, {", "return 0 / 0, {"):
        run.edit_plugin(right, bug)
        right = bug
        out = run.snakemake(succeeds=False)
        assert "none of the 3 samples" in out
        assert "`partial` writes all of them to results/out.partial.jsonl" in out
        assert f"The model's text: {text!r}" in out
        assert "results/out.jsonl is still that of the run before" in out
        assert [path.read_bytes() for path in files] == before
        assert "the rule consolidate failed: none of the 3" in run.module("watch", "--once")
    # Whatever Snakemake looks at, that output does not pass for the new one.
    assert "from an earlier run: written again" in run.snakemake("-n", "--rerun-triggers", "params")
    run.edit_plugin(right, "return {")
    assert "is still that of the run before" not in run.snakemake()
    assert run.output.read_bytes() == before[0]
    assert set(run.answers().values()) == {1}
    assert "Nothing to be done" in run.snakemake()


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_run_that_cannot_begin_leaves_the_run_before_as_it_was(run, num_shards):
    """Its chunks and its configuration too, so that watch and retry still speak of that run."""
    run.configure(data={"num_shards": 1})
    run.write_samples(samples(3))
    run.snakemake()
    before = {path: path.read_bytes() for path in run.output.parent.glob("out.*")}
    run.configure(data={"num_shards": num_shards}, run={"task": "knd"})
    out = run.snakemake(succeeds=False)
    assert "'knd'" in out
    assert "results/out.jsonl is still that of the run before" in out
    assert {path: path.read_bytes() for path in before} == before
    assert re.search(r"answered\s+│\s+3 │", run.module("watch", "--once"))
    run.configure(data={"num_shards": 1}, run={"task": "ask"})
    run.snakemake()
    assert run.output.read_bytes() == before[run.output]
    assert run.answers() == dict.fromkeys(keys(3), 1)


def test_no_samples_are_no_failure(one_shard, caplog):
    """A list of failed samples where none has failed, for instance."""
    one_shard([])
    assert one_shard.user.records() == []
    assert "holds no samples" in caplog.text


@pytest.mark.two_ranks
def test_a_shard_over_the_limit_fails_alone_and_goes_on_later(run):
    """The storage of some videos is away; the other rank is not held up."""
    away = [{**sample, "do": "storage"} for sample in samples(120)[::2]]
    here = samples(120)[1::2]
    run.write_samples(sorted([*away, *here], key=lambda sample: sample["id"]))
    out = run.snakemake(succeeds=False)
    assert "rank 0: 20 of" in out
    assert "run.max_error_rate" in out
    assert "logs/out/infer.rank0.log" in out
    assert "Traceback" not in out
    assert not run.output.exists()
    assert {run.answers()[str(sample["id"])] for sample in here} == {1}
    (run.folder / "storage").touch()
    run.snakemake()
    assert stages(run.records()) == ["ok"] * 120
    assert run.answers() == dict.fromkeys(keys(120), 1)


def test_an_exception_of_ours_keeps_its_traceback(splitting):
    splitting(samples(1), 1)
    splitting.layout.lock(0).mkdir()
    out = splitting.run.script("infer.py", "--num-shards", "1", "--rank", "0", succeeds=False)
    assert "Traceback" in out
    assert "IsADirectoryError" in out

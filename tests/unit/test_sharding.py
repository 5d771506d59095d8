"""Split: each distinct sample in exactly one chunk, and nothing at all where the input is bad."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from helpers import EXPAND, Splitter, few_open_files, keys, read_jsonl, samples
from video_pipeline.common.locks import try_lock
from video_pipeline.config import load_config
from video_pipeline.errors import EnvironmentFault, TaskError, UserError
from video_pipeline.export.export import export
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate, consolidate_partial
from video_pipeline.report.page import write_report
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.origin import what_changed
from video_pipeline.run.stages import check_stages
from video_pipeline.split import split as split_module
from video_pipeline.split.scanning import scan


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 12])
def test_each_sample_is_in_one_chunk_and_the_order_is_kept(splitting, num_shards):
    entries = samples(10)
    random.Random(0).shuffle(entries)
    splitting(entries, num_shards)
    expected = [str(entry["id"]) for entry in entries]
    assert splitting.order == expected
    assert Counter(key for chunk in splitting.keys for key in chunk) == Counter(expected)
    assert all(len(chunk) in (10 // num_shards, -(-10 // num_shards)) for chunk in splitting.keys)
    raws = {str(entry["id"]): entry for entry in entries}
    assert all(entry.raw == raws[entry.key] for chunk in splitting.chunks for entry in chunk)


def test_the_manifest_counts(splitting):
    failed = {"__key": "x", "__status": "error", "input": {"id": 9, "path": "a"}}
    manifest = splitting([*samples(3), *samples(2), failed]).manifest
    assert (manifest.lines, manifest.samples) == (6, 3)
    assert (manifest.duplicates, manifest.left_out) == (2, 1)
    assert (manifest.pending, manifest.rank_samples, manifest.rank_pending) == (3, [2, 1], [2, 1])
    assert (manifest.num_shards, manifest.task) == (2, "ask")
    assert Manifest.read(splitting.layout) == manifest


def test_no_samples_at_all(splitting):
    splitting([], 2)
    assert splitting.keys == [[], []]
    assert splitting.order == []


def test_pending_and_finished_are_dealt_out_evenly(splitting):
    splitting(samples(12), 1).finish(*keys(12)[::2], failed=("1",))
    splitting(num_shards=3)
    assert splitting.manifest.pending == 5
    assert sorted(splitting.manifest.rank_pending) == [1, 2, 2]
    assert max(splitting.manifest.rank_samples) - min(splitting.manifest.rank_samples) <= 2
    assert splitting.pending == ["11", "3", "5", "7", "9"]
    assert splitting.order == keys(12)
    done = {entry.key: entry.done for chunk in splitting.chunks for entry in chunk if entry.done}
    assert done["1"][""].is_error
    assert not done["0"][""].is_error


def test_what_is_done_depends_on_the_request_not_on_the_rest(splitting):
    splitting(samples(4)).finish(*keys(4))
    entries = samples(4)
    entries[1]["hint"] = "look left"  # another prompt
    entries[2]["path"] = "moved.mp4"  # another video under the same id
    entries[3]["title"] = "not asked about"
    assert splitting(entries).pending == ["1", "2"]
    assert splitting(samples(4)).pending == []


def test_another_task_with_the_same_messages_finds_its_answers(splitting):
    splitting(samples(2)).finish("0", "1")
    splitting.run.edit_plugin('return {"answer": generated_text.strip()}', 'return {"n": 1}')
    assert splitting().pending == []


def test_settings_name_the_journal(splitting):
    first = splitting(samples(2)).manifest.journal
    splitting.finish("0", "1")
    splitting.run.configure(sampling={"max_tokens": 7})
    assert splitting().manifest.journal != first
    assert splitting.pending == ["0", "1"]
    splitting.run.configure(sampling={"max_tokens": 512})
    assert splitting().manifest.journal == first
    assert splitting.pending == []


def test_without_resume_the_journal_is_empty(splitting):
    splitting(samples(2), run_id="one").finish("0", "1")
    assert splitting(run_id="one").pending == []  # retries of the same invocation go on
    assert splitting(run_id="two").pending == ["0", "1"]
    assert splitting().pending == ["0", "1"]


def test_a_moved_dataset_is_still_done_and_other_videos_with_its_names_are_warned_of(
    splitting, caplog
):
    splitting(samples(2)).finish("0", "1")
    splitting()
    assert "relative paths" not in caplog.text
    splitting.run.configure(data={"video_root": "/elsewhere"})
    assert splitting(samples(3)).pending == ["2"]
    folder = splitting.run.folder
    words = f"relative paths start from /elsewhere now, and started from {folder} before: of 2 "
    assert words in caplog.text
    caplog.clear()
    splitting()
    assert "relative paths" not in caplog.text


# --- duplicates and ids ------------------------------------------------------------------------


def test_identical_samples_are_one(splitting):
    splitting([samples(1)[0], {"path": "0.mp4", "id": 0}])
    assert splitting.order == ["0"]
    assert splitting.manifest.duplicates == 1


def test_identical_samples_without_ids_are_one(splitting):
    splitting.run.configure(data={"id_field": None})
    splitting([{"path": "a"}, {"path": "b"}, {"path": "a"}])
    assert splitting.manifest.samples == 2
    assert splitting.manifest.duplicates == 1


@pytest.mark.parametrize(
    "second",
    [{"id": 0, "path": "b.mp4"}, {"id": "0", "path": "a.mp4"}, {"id": 0, "path": "a.mp4", "x": 1}],
)
def test_one_id_with_two_contents_stops_the_run(splitting, second):
    with pytest.raises(UserError) as caught:
        splitting([{"id": 0, "path": "a.mp4"}, {"id": 1, "path": "a.mp4"}, second])
    assert "line 3: id '0'" in str(caught.value)


def test_both_lines_of_one_id_are_named(splitting):
    with pytest.raises(UserError, match=r"line 1\b"):
        splitting([{"id": 0, "path": "a.mp4"}, {"id": 0, "path": "b.mp4"}])


@pytest.mark.parametrize("id_field", ["id", None])
def test_no_hash_decides_what_is_a_duplicate(splitting, monkeypatch, id_field):
    """All keys have the same hash."""
    monkeypatch.setattr("video_pipeline.split.scanning.crc32", lambda key: 7)
    splitting.run.configure(data={"id_field": id_field})
    entries = [*samples(9), *reversed(samples(5)), *samples(12)]
    splitting(entries)
    assert splitting.manifest.samples == 12
    assert splitting.manifest.duplicates == 14
    expected = [*samples(9), *samples(12)[9:]]
    raws = {e.key: e.raw for chunk in splitting.chunks for e in chunk}
    assert [raws[key] for key in splitting.order] == expected
    if id_field:
        with pytest.raises(
            UserError, match=r"2 bad line.*\n  line 15: id '3' .* line 4 with.*\n  li"
        ):
            splitting([*entries[:14], {"id": 3, "path": "x"}, {"id": 11, "path": "y"}, *entries])


def many(count: int) -> list[dict]:
    """Samples of more than 1 MB together."""
    return [{**sample, "caption": "x" * 3000} for sample in samples(count)]


def test_blocks_and_processes_change_nothing(splitting):
    entries = [*many(900), *many(30), *samples(1000)[950:]]
    splitting(entries, 3).finish(*keys(1000)[::7])
    first = splitting(num_shards=3).chunks
    assert len(splitting.order) == 950
    assert splitting.order == [*keys(900), *keys(1000)[950:]]
    assert splitting(num_shards=3, num_processes=2).chunks == first
    assert (splitting.manifest.duplicates, splitting.manifest.lines) == (30, 980)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_lines_are_counted_across_blocks(splitting, num_processes):
    lines = [json.dumps(sample) for sample in many(900)]
    lines[650] = "x"
    lines += ["", json.dumps({"id": 0, "path": "b"}), "y"]
    (splitting.run.folder / "samples.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        splitting(num_processes=num_processes)
    found = [line.split(":")[0] for line in str(caught.value).split("\n")[1:]]
    assert found == ["  line 651", "  line 902", "  line 903"]
    assert "id '0' stands on line 1 " in str(caught.value)


def test_an_error_of_a_task_crosses_processes(splitting):
    splitting.run.edit_plugin("sample.get('hint', '')", "sample['caption'][2999]")
    with pytest.raises(TaskError, match=r"IndexError.*plugin\.py, line"):
        splitting([*many(900), {"id": 1000, "path": "a", "caption": "short"}], num_processes=2)


def test_more_ranks_than_files_may_be_open(splitting):
    entries = samples(150)
    with few_open_files(40):
        splitting(entries, 120)
        assert splitting.order == keys(150)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    ["not json\n", '{"id": 99}\n', '{"id": 1, "path": "other.mp4"}\n', '{"path": "no id"}\n'],
)
@pytest.mark.parametrize("first", [True, False])
def test_on_bad_input_nothing_is_written(splitting, bad, first):
    """Also where an earlier split is there: it stays as it is."""
    good = "".join(json.dumps(sample) + "\n" for sample in samples(5))
    (splitting.run.folder / "samples.jsonl").write_text(bad + good if first else good + bad)
    with pytest.raises(UserError, match=r"1 bad line"):
        splitting()
    assert files_under(splitting.run.folder / "results") == []
    splitting(samples(3))
    before = {p: p.read_bytes() for p in splitting.layout.chunks.iterdir()}
    (splitting.run.folder / "samples.jsonl").write_text(good + bad)
    with pytest.raises(UserError, match=r"1 bad line"):
        splitting()
    assert {p: p.read_bytes() for p in splitting.layout.chunks.iterdir()} == before
    assert [p.name for p in splitting.layout.chunks.parent.iterdir()] == ["of-2"]


def test_a_sample_that_stands_for_several(splitting):
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    splitting(samples(3), 2)
    assert splitting.order == [
        f"{number}@{times}" for number in range(3) for times in ("0.0-1.0", "1.0-2.5")
    ]
    assert splitting.manifest.samples == 6
    (raw,) = (e.raw for chunk in splitting.chunks for e in chunk if e.key == "1@1.0-2.5")
    assert raw["clip"] == {"number": 1, "of": 2, "segment": {}}
    assert (raw["video_start"], raw["video_end"], raw["path"]) == (1.0, 2.5, "1.mp4")


def test_a_sample_that_cannot_be_cut_is_a_bad_line(splitting):
    """A ValueError is the dataset's word to the user; anything else is a bug, and its line is
    named."""
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    entries = samples(3)
    entries[1]["do"], entries[2]["do"] = "raise", "storage"
    with pytest.raises(UserError) as caught:
        splitting(entries)
    _, first, second = str(caught.value).splitlines()
    assert first == "  line 2: no such clip"
    assert second.startswith("  line 3: OSError: the storage is away (")
    assert "plugin.py, line" in second


def test_all_bad_lines_of_all_kinds_are_counted(splitting):
    lines = [json.dumps(sample) for sample in samples(2)]
    lines += ["x", '{"id": 7}', '{"id": 0, "path": "z.mp4"}', '{"path": "z.mp4"}'] * 10
    (splitting.run.folder / "samples.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        splitting()
    message = str(caught.value)
    assert "40 bad line(s)" in message
    assert message.count("\n  line ") == 20
    assert "20 more" in message


def test_a_split_that_was_killed_does_not_stand_in_the_way(splitting):
    """What it left is no obstacle, and is gone after the next."""
    layout = Layout.of(load_config(splitting.run.folder / "my.yaml"), 2)
    scratch = layout.chunks.with_name(f".{layout.chunks.name}.tmp")
    scratch.mkdir(parents=True)
    (scratch / "rank0.jsonl").write_text("half")
    assert splitting(samples(3)).order == keys(3)
    assert [p.name for p in splitting.layout.chunks.parent.iterdir()] == ["of-2"]


def test_what_earlier_splits_have_left_goes(splitting):
    """Chunks of another number of shards, rank files, scratch and temporary files; nothing else."""
    splitting(samples(3), 3)
    results = splitting.run.folder / "results"
    chunks = splitting.layout.chunks.parent
    mine = ("out.rank.jsonl", "out.rankings.jsonl", "out.rank0.jsonl.bak", "out2.rank0.jsonl")
    gone = ("out.rank0.jsonl", "out.rank12.jsonl", ".out.rank7.jsonl.0123abcd.tmp")
    for name in (*mine, *gone):
        (results / name).write_text("x")
    (chunks / ".of-5.tmp").mkdir()
    (chunks / "of-mine").mkdir()
    (chunks / ".split.progress.json.0123abcd.tmp").write_text("x")
    splitting(num_shards=2)
    assert splitting.order == keys(3)
    found = sorted(path.name for path in results.iterdir())
    assert found == sorted([".chunks", ".journal", *mine])
    assert sorted(path.name for path in chunks.iterdir()) == ["of-2", "of-mine"]


def test_on_bad_input_nothing_of_an_earlier_split_goes(splitting):
    splitting(samples(3), 3)
    (splitting.run.folder / "results" / "out.rank0.jsonl").write_text("x")
    before = files_under(splitting.run.folder / "results")
    (splitting.run.folder / "samples.jsonl").write_text("no JSON")
    with pytest.raises(UserError, match="1 bad line"):
        splitting(num_shards=2)
    assert files_under(splitting.run.folder / "results") == before


def test_a_writer_that_comes_during_a_split_keeps_its_chunks(splitting, monkeypatch):
    """A job of other chunks was started by hand, after split has looked for one."""
    splitting(samples(3), 3)
    layout = splitting.layout
    lock = layout.lock(1)
    held = []
    monkeypatch.setattr(
        "video_pipeline.split.split.sync_tree", lambda folder: held.append(try_lock(lock))
    )
    with pytest.raises(UserError, match="still being written by"):
        splitting(num_shards=2)
    assert Manifest.read(layout).num_shards == 3
    held[0].close()


def test_data_is_on_the_disk_before_the_manifest_that_vouches_for_it(splitting, synced):
    splitting(samples(3), 2)
    chunks = Path.cwd() / splitting.layout.chunks
    names = ("order.bin", "rank0.jsonl", "rank1.jsonl")
    manifest = synced.index(f"-> {splitting.layout.manifest}")
    for name in names:
        flushed = synced.index(str(Path.cwd() / splitting.layout.split_scratch / name))
        assert flushed < synced.index(f"-> {splitting.layout.chunks / name}")
    last = max(synced.index(f"-> {splitting.layout.chunks / name}") for name in names)
    assert str(chunks) in synced[last:manifest]
    assert synced[manifest + 1] == str(chunks)


# --- files that are not there -------------------------------------------------------------------


@pytest.fixture
def reading(splitting):
    """Splits for the built-in task, which reads files."""
    splitting.run.configure(run={"task": "describe", "plugins": []})
    return splitting


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("balance", ["size", "count", "duration"])
@pytest.mark.parametrize("count", [1, 7, 130])
def test_a_wrong_folder_stops_the_run(reading, balance, count):
    folder = reading.run.folder
    reading.run.configure(data={"balance": balance, "video_root": "viedos"})
    touch(folder, "videos/0.mp4", *(f"viedos/{number}.mp4" for number in range(100, count)))
    with pytest.raises(UserError) as caught:
        reading(samples(count, duration=3))
    missing = min(count, 100)
    for said in (
        f"{missing} of the {count} files",
        f"{folder}/viedos/0.mp4 (No such file or directory)",
        f"Relative paths are relative to {folder}/viedos (data.video_root: viedos)",
    ):
        assert said in str(caught.value)
    assert files_under(folder / "results") == []
    reading.run.configure(run={"max_error_rate": 1.0})
    assert reading().manifest.pending == count
    reading.run.configure(run={"max_error_rate": 0.5})
    with pytest.raises(UserError, match="of the"):
        reading()


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_of_split_that_dies_is_no_bug_of_ours(splitting, end):
    """The kernel kills one if memory is short, and a plugin may end its own."""
    splitting.run.edit_plugin(
        'return [{"role"', f'sample["id"] == 899 and {end}\n        return [{{"role"'
    )
    with pytest.raises(EnvironmentFault, match=r"a process of split died: .*too little memory"):
        splitting(many(900), num_processes=2)
    assert not splitting.layout.manifest.exists()


IN_A_CHILD = """
import multiprocessing

if multiprocessing.parent_process() is not None:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_that_looks_at_the_dataset_may_die(splitting, monkeypatch):
    monkeypatch.setattr(split_module, "LARGE_INPUT_BYTES", 0)
    plugin = splitting.run.folder / "plugin.py"
    splitting.run.write_plugin(plugin.read_text() + IN_A_CHILD)
    with pytest.raises(EnvironmentFault, match="a process of split died"):
        splitting(samples(2), num_processes=2)


def test_the_process_that_checks_a_stage_may_die(splitting):
    plugin = splitting.run.folder / "plugin.py"
    splitting.run.write_plugin(plugin.read_text() + IN_A_CHILD)
    with pytest.raises(EnvironmentFault, match=r"checks the stage that writes .*out\.jsonl died"):
        check_stages([splitting.run.config])


@pytest.mark.parametrize("num_processes", [1, 2])
def test_some_missing_files_cost_only_themselves(reading, caplog, num_processes):
    """The first one is there, or those that are not are few."""
    folder = reading.run.folder
    touch(folder, "0.mp4")
    entries = [{**sample, "caption": "x" * 3000} for sample in samples(200)]
    assert reading(entries, num_processes=num_processes).manifest.pending == 200
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "199 of the 200 files" in warning.getMessage()
    assert f"{folder}/1.mp4" in warning.getMessage()
    finished = keys(200)[:195]  # and five are pending, of which none is there
    reading.finish(*finished)
    assert reading().manifest.pending == 5


def test_no_file_is_missing(reading, caplog):
    touch(reading.run.folder, "0.mp4", "1.mp4")
    reading(samples(2))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    "path", ["clip", "clip/*.png", "**/[ab].png", ["clip/a.png", "clip/b.png"]]
)
def test_frames_of_folders_patterns_and_lists_are_looked_for(reading, path):
    reading.run.configure(run={"dataset": "frames"}, data={"video_root": "here"})
    touch(reading.run.folder, "here/clip/a.png", "here/clip/b.png")
    assert reading([{"id": 1, "path": path}]).manifest.pending == 1
    reading.run.configure(data={"video_root": "there"})
    with pytest.raises(UserError, match=r"1 of the 1 files .*there"):
        reading()


def test_brackets_in_the_name_of_a_video_are_no_pattern(reading):
    touch(reading.run.folder, "other.mp4")
    with pytest.raises(UserError, match=r"clip \[1\]\.mp4 \(No such file"):
        reading([{"id": 1, "path": "clip [1].mp4"}])


def test_addresses_are_not_looked_for(reading):
    entries = [{"id": n, "path": f"HTTPS://127.0.0.1:9/{n}.mp4"} for n in range(3)]
    assert reading(entries).manifest.pending == 3


def test_files_by_address_and_links_that_dangle(reading):
    folder = reading.run.folder
    (folder / "link.mp4").symlink_to("gone.mp4")
    entries = [{"id": 0, "path": f"file://{folder}/a%20b.mp4"}, {"id": 1, "path": "link.mp4"}]
    with pytest.raises(UserError, match=r"2 of the 2 .*/a b\.mp4 \(No such file"):
        reading(entries)
    touch(folder, "a b.mp4", "gone.mp4")
    assert reading().manifest.pending == 2


def test_a_folder_that_may_not_be_entered(reading):
    folder = reading.run.folder / "closed"
    touch(folder, "0.mp4")
    folder.chmod(0)
    try:
        if os.access(folder, os.X_OK):
            pytest.skip("root may enter every folder")
        with pytest.raises(UserError, match="Permission denied"):
            reading([{"id": 0, "path": "closed/0.mp4"}])
    finally:
        folder.chmod(0o755)


def test_a_dataset_of_the_users_own_may_take_a_path_for_anything(splitting):
    assert splitting([{"id": 1, "path": "videos.tar#clip7"}], 1).pending == ["1"]


# --- where the samples come from ----------------------------------------------------------------


@pytest.mark.parametrize("is_large", [False, True])
def test_chunks_are_known_by_the_content_of_their_input(splitting, is_large):
    """Not by its time: another one may be older."""
    splitting([{**sample, "notes": "x" * (is_large << 19)} for sample in samples(10)])
    config, layout = splitting.run.config, splitting.layout
    path = splitting.run.folder / "samples.jsonl"
    assert not what_changed(config, layout)
    old = path.stat()
    other = path.read_bytes().replace(b'"0.mp4"', b'"1.mp4"')
    assert len(other) == old.st_size
    path.write_bytes(other)
    os.utime(path, ns=(old.st_atime_ns, 1 if is_large else old.st_mtime_ns))
    assert what_changed(config, layout)
    splitting()
    assert not what_changed(config, layout)


@pytest.mark.parametrize("section", ["sampling", "run", "data", "task_params"])
def test_chunks_are_known_by_what_is_asked(splitting, section):
    splitting(samples(2), 1).finish("0", "1")
    changes = {
        "sampling": {"max_tokens": 3},
        "run": {"task": "describe"},
        "data": {"input_jsonl": "other.jsonl"},
        "task_params": {"prompt": "Why?"},
    }
    (splitting.run.folder / "other.jsonl").write_text('{"id": 7, "path": "x"}\n')
    splitting.run.configure(**{section: changes[section]})
    config, layout = splitting.run.config, splitting.layout
    assert what_changed(config, layout)
    for read in (infer_first, consolidate, consolidate_partial):
        with pytest.raises(UserError, match="--forcerun split"):
            read(config, layout)


def test_an_output_is_known_by_what_it_was_made_from(splitting):
    splitting(samples(2), 1)
    config, layout = splitting.run.config, splitting.layout
    infer(config, layout, 0, 1)
    consolidate(config, layout)
    (splitting.run.folder / "other.jsonl").write_text('{"id": 7, "path": "x"}\n')
    splitting.run.configure(data={"input_jsonl": "other.jsonl"})
    other = splitting.run.config
    for read in (lambda: write_report(other, layout, 1), lambda: export(other, layout)):
        with pytest.raises(UserError, match=r"samples\.jsonl, the configuration says other\.jsonl"):
            read()
    layout.manifest.unlink()
    assert what_changed(other, layout)
    write_report(config, layout, 1)
    export(config, layout)


def infer_first(config, layout):
    infer(config, layout, 0, 1)


def test_what_changes_no_answer_is_of_no_concern(splitting):
    splitting(samples(2), 1)
    splitting.run.configure(
        run={"max_error_rate": 1.0}, report={"seed": 3}, vllm={"gpu_memory_utilization": 0.3}
    )
    assert not what_changed(splitting.run.config, splitting.layout)


def test_an_input_that_changes_while_it_is_split(splitting, monkeypatch):
    def scan_slowly(*arguments):
        yield from scan(*arguments)
        splitting.run.write_samples(samples(3))

    monkeypatch.setattr("video_pipeline.split.split.scan", scan_slowly)
    with pytest.raises(UserError, match="changed while"):
        splitting(samples(2))
    assert files_under(splitting.run.folder / "results") == []


def test_an_input_that_changes_after_it_was_split_is_mentioned(splitting, caplog):
    splitting(samples(2), 1)
    splitting.run.write_samples(samples(3))
    infer(splitting.run.config, splitting.layout, 0, 1)
    assert "samples.jsonl has changed since it was split" in caplog.text
    assert len(read_jsonl(splitting.layout.rank_file(0))) == 2


@pytest.mark.parametrize("file", ["plugin.py", "prompt.txt"])
def test_code_that_changes_after_the_split_answers_nothing(splitting, file):
    """A decode process may load it hours later; its answers would pass for those of before."""
    run = splitting.run
    (run.folder / "prompt.txt").write_text("What happens?")
    run.configure(task_params={"prompt_file": "prompt.txt"})
    splitting(samples(2), 1)
    path = run.folder / file
    path.write_text(path.read_text() + "\n# edited\n")
    with pytest.raises(UserError, match=rf"{run.folder}/{file} has changed since the input was"):
        infer(run.config, splitting.layout, 0, 1)
    assert run.reads() == {}


def test_an_input_without_samples_is_mentioned(splitting, caplog):
    splitting([])
    assert "samples.jsonl holds no samples" in caplog.text


# --- the user's code ---------------------------------------------------------------------------


def test_a_task_that_draws_at_random_is_refused(splitting):
    splitting.run.edit_plugin("import os\n", "import os\nimport random\n")
    splitting.run.edit_plugin("sample.get('hint', '')", "random.random()")
    with pytest.raises(TaskError, match=r"'ask'.*differ each time.*random\.Random\(sample"):
        splitting(samples(2))
    splitting.run.edit_plugin("random.random()", "random.Random(sample['__key']).random()")
    forget(splitting)
    assert splitting().pending == ["0", "1"]


def forget(splitting: Splitter) -> None:
    """Let the changed plugin be imported again, as a new process would."""
    import sys

    from video_pipeline.tasks.registry import _TASKS

    del sys.modules["video_pipeline_plugin_plugin"]
    del _TASKS._classes["ask"]


READS = "class Plain(BaseDataset):\n    sample_fields = %s\n"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_fields_that_only_the_dataset_reads(splitting, num_processes):
    """An edited one makes the sample pending, and those without it stay done."""
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", READS % '("speed",)')
    entries = samples(4)
    entries[1]["speed"] = entries[2]["speed"] = 1
    splitting(entries, num_processes=num_processes).finish(*keys(4))
    assert splitting(num_processes=num_processes).pending == []
    entries[2]["speed"] = 2
    entries[3]["title"] = "of no concern"
    assert splitting(entries, num_processes=num_processes).pending == ["2"]
    infer(splitting.run.config, splitting.layout, 0, 1)
    infer(splitting.run.config, splitting.layout, 1, 1)
    assert splitting.run.reads() == {"2": 1}


def test_sample_fields_that_are_one_text(splitting):
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", READS % '("speed")')
    with pytest.raises(UserError, match=r'Plain: sample_fields must be a tuple .*\("fps",\)'):
        splitting(samples(1))


def test_a_task_cannot_change_the_input(splitting):
    """Sorting or shuffling in place, seeded from the key, is an easy slip."""
    splitting.run.edit_plugin(
        "return [{", "sample['tags'].sort()\n        sample['new'] = 1\n        return [{"
    )
    splitting([{"id": 0, "path": "a.mp4", "tags": ["b", "a"]}])
    assert splitting.chunks[0][0].raw == {"id": 0, "path": "a.mp4", "tags": ["b", "a"]}


def test_a_failing_build_messages_names_the_line_of_the_input(splitting):
    splitting.run.edit_plugin("sample.get('hint', '')", "sample['hint']")
    with pytest.raises(TaskError) as caught:
        splitting([{**samples(1)[0], "hint": "x"}, *samples(3)[1:]])
    message = str(caught.value)
    for said in ("'ask'", "KeyError: 'hint'", "plugin.py", "sample '1'", "line 2"):
        assert said in message


def test_an_unknown_task_lists_the_known(splitting):
    splitting.run.configure(run={"task": "aks"})
    with pytest.raises(UserError, match=r"no task is called 'aks'; did you mean 'ask'\?.*describe"):
        splitting(samples(1))


def test_an_unknown_dataset_lists_the_known(splitting):
    splitting.run.edit_plugin('dataset_name = "plain"', 'dataset_name = "plan"')
    with pytest.raises(UserError, match=r"no dataset is called 'plan'.*frames.*qwen_video"):
        splitting(samples(1))


def test_videos_that_cannot_fit_stop_the_run(splitting):
    splitting.run.configure(vllm={"max_model_len": 4096})
    with pytest.raises(UserError, match=r"visual tokens .*vllm\.max_model_len: 4096"):
        splitting(samples(1))
    assert files_under(splitting.run.folder / "results") == []


# --- two runs at once --------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", [2, 3])
def test_a_live_writer_stops_a_split(splitting, num_shards):
    splitting(samples(2), 3)
    before = splitting.layout.manifest.read_bytes()
    with try_lock(splitting.layout.lock(1)):
        with pytest.raises(UserError) as caught:
            splitting(samples(2), num_shards)
        for said in ("results/out.jsonl", f"process {os.getpid()}", "of-3", "rank1"):
            assert said in str(caught.value)
    assert (splitting.run.folder / "results/.chunks/out/of-3/manifest.json").read_bytes() == before
    assert splitting(samples(2), num_shards).pending == ["0", "1"]


def test_another_output_in_the_same_folder_is_no_live_writer(splitting):
    splitting(samples(2), 3)
    with try_lock(splitting.layout.lock(1)):
        splitting.run.configure(data={"output_jsonl": "results/other.jsonl"})
        assert splitting(samples(2)).pending == ["0", "1"]


def test_chunks_read_back(splitting):
    odd = [{"id": 'a"\n\\', "path": "ü \u2028.mp4", "nested": {"x": [1, None, 2.5, "\U0001f600"]}}]
    splitting(odd, 1)
    assert splitting.chunks[0][0].raw == odd[0]
    assert len(read_jsonl(splitting.layout.chunk(0))) == 1


def test_one_question_about_some_samples_and_several_about_others(splitting):
    question = """return [{"role": "user", "content": f"What happens? {sample.get('hint', '')}"}]"""
    splitting.run.edit_plugin(
        question,
        'one = [{"role": "user", "content": "What happens?"}]\n'
        '        return {"what": one, "why": one} if sample["id"] % 2 else one',
    )
    splitting(samples(6)).finish("0", "1", "5")
    path = splitting.run.folder / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b", ", b",\r"))  # which JSON takes for space
    splitting(num_shards=3)
    assert splitting.pending == ["2", "3", "4"]
    assert splitting.order == keys(6)
    parts = {e.key: sorted(e.done) for chunk in splitting.chunks for e in chunk if e.done}
    assert parts == {"0": [""], "1": ["what", "why"], "5": ["what", "why"]}

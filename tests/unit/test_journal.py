"""The journal: each record is there or not, never half, and the index finds the one that counts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import orjson
import pytest
from helpers import few_open_files, read_jsonl
from video_pipeline.errors import UserError
from video_pipeline.journal import format as journal_format
from video_pipeline.journal import index as journal_index
from video_pipeline.journal.format import (
    ATTEMPTS,
    REOPENS,
    attempt_prefix,
    count_records,
    record_id,
)
from video_pipeline.journal.index import NO_RECORD, location_at, read_index
from video_pipeline.journal.reader import JournalReader
from video_pipeline.journal.writer import JournalWriter

REQUEST = "0123456789abcdef" * 2
OTHER = "f" * 32
ATTEMPT = attempt_prefix("s", 0)
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "finish_reason": "stop"}
ERROR = {"stage": "read", "type": "ValueError", "message": "no"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


def write(folder, *records, prefix=ATTEMPT):
    """One attempt: (key, text or None for an error) pairs, asked with ``REQUEST``."""
    with JournalWriter(folder, prefix) as journal:
        for key, text in records:
            if text is None:
                journal.error(key, "", REQUEST, ERROR)
            else:
                journal.answer(key, "", REQUEST, text, USAGE)
    return journal.path


def final_record(folder, key, request=REQUEST, part="", attempts=ATTEMPTS):
    """The final record of a key, or None."""
    index = read_index(folder, attempts)
    with JournalReader(folder, index) as reader:
        finished = reader.find(key, part, request)
    place = index.find(key, part, request)
    if finished is None:
        assert place is None
        return None
    assert finished.location == place
    assert place.is_error == ("__error" in finished.record)
    return finished.record


def test_what_is_written_is_final_record(folder):
    write(folder, ("a", "one"), ("b", None))
    assert final_record(folder, "a") == {
        "__key": "a",
        "__part": "",
        "__request": REQUEST,
        "output_text": "one",
        "__usage": USAGE,
    }
    assert final_record(folder, "b")["__error"] == ERROR
    assert final_record(folder, "c") is None


def test_another_request_or_part_is_another_record(folder):
    with JournalWriter(folder, ATTEMPT) as journal:
        journal.answer("a", "window 1", REQUEST, "one", USAGE)
    assert final_record(folder, "a") is None
    assert final_record(folder, "a", OTHER, "window 1") is None
    assert final_record(folder, "a", REQUEST, "window 1")["output_text"] == "one"


KEYS = ["plain", 'quote " and \\', "new\nline", "ünï\U0001f600", '","__part":"', "a" * 5000, "\x00"]


@pytest.mark.parametrize("key", KEYS)
def test_any_key_and_text(folder, key):
    text = f'{{"__key":"{key}"}}\n}}\n'
    write(folder, (key, text))
    assert final_record(folder, key)["output_text"] == text
    assert len(read_jsonl(next(folder.iterdir()))) == 2


def test_a_record_is_one_line_and_one_write(folder, monkeypatch):
    writes = []
    real = os.write

    def counting(fd, data):
        writes.append(bytes(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", counting)
    with JournalWriter(folder, ATTEMPT) as journal:
        journal.answer("a", "", REQUEST, "two\nlines" * 100_000, USAGE)
        # there before anything is closed or flushed
        assert final_record(folder, "a")["output_text"].startswith("two")
    assert len(writes) == 2
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in writes)


@pytest.mark.parametrize("cut", [1, 2, 30, 90])
def test_a_torn_last_line_is_ignored(folder, cut):
    path = write(folder, ("a", "one"), ("b", "two"))
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert final_record(folder, "a")["output_text"] == "one"
    assert final_record(folder, "b") is None
    write(folder, ("b", "again"))
    assert final_record(folder, "b")["output_text"] == "again"


def test_a_file_torn_in_its_first_line_is_ignored(folder):
    whole = write(folder, ("a", "one"))
    data = whole.read_bytes()
    for size in range(len(data.partition(b"\n")[0]) + 2):
        whole.write_bytes(data[:size])
        assert final_record(folder, "a") is None


def test_a_line_that_ran_into_a_torn_one_is_no_record(folder):
    """The disk was full for a moment: half a record, and then the next one."""
    path = write(folder, ("a", "one"), ("b", "two"))
    first, a, b, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + a[:-10] + b + b"\n")
    assert final_record(folder, "a") is None


def test_zeros_of_a_power_loss_are_no_record(folder):
    path = write(folder, ("a", "one"), ("b", "two"), ("c", "three"))
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"\0" * len(lines[2])
    path.write_bytes(b"\n".join(lines))
    assert final_record(folder, "a")["output_text"] == "one"
    assert final_record(folder, "b") is None
    assert final_record(folder, "c")["output_text"] == "three"


def test_a_newer_version_is_refused(folder):
    path = write(folder, ("a", "one"))
    path.write_bytes(path.read_bytes().replace(b'"__journal":1', b'"__journal":2', 1))
    with pytest.raises(UserError, match=r"newer version .*version 2, this one reads up to 1"):
        read_index(folder)


def test_a_journal_says_who_wrote_it(folder):
    first = read_jsonl(write(folder))[0]
    assert first["__journal"] == 1
    assert first["pid"] == os.getpid()


@pytest.mark.parametrize("order", [("one", None), (None, "one")])
@pytest.mark.parametrize("same_file", [True, False])
def test_ok_beats_error(folder, order, same_file):
    if same_file:
        write(folder, *(("a", text) for text in order))
    else:
        for text in order:
            write(folder, ("a", text))
    assert final_record(folder, "a")["output_text"] == "one"


def test_the_first_answer_stays(folder):
    write(folder, ("a", "one"))
    write(folder, ("a", "two"))
    assert final_record(folder, "a")["output_text"] == "one"


def test_a_reopened_error_is_to_be_done(folder):
    path = write(folder, ("a", None), ("b", None))
    with JournalWriter(folder, REOPENS) as journal:
        journal.reopen("a", "", REQUEST, path.name)
    assert final_record(folder, "a") is None
    assert final_record(folder, "b")["__error"] == ERROR
    write(folder, ("a", None))  # it fails again: final again
    assert final_record(folder, "a")["__error"] == ERROR
    write(folder, ("a", "one"))
    assert final_record(folder, "a")["output_text"] == "one"


def test_reopening_takes_back_no_answer(folder):
    path = write(folder, ("a", None), ("a", "one"))
    with JournalWriter(folder, REOPENS) as journal:
        journal.reopen("a", "", REQUEST, path.name)
    assert final_record(folder, "a")["output_text"] == "one"


def test_a_damaged_line_takes_nothing_back(folder):
    path = write(folder, ("a", None), ("b", None))
    with JournalWriter(folder, REOPENS) as journal:
        journal.reopen("a", "", REQUEST, path.name)
        journal.reopen("b", "", REQUEST, path.name)
    text = journal.path.read_text()
    journal.path.write_text(text.replace('"__reopens"', '"__reapens"', 1))
    assert final_record(folder, "a")["__error"] == ERROR
    assert final_record(folder, "b") is None


def test_an_index_of_some_attempts(folder):
    write(folder, ("a", "one"), prefix=attempt_prefix("s", 1))
    write(folder, ("b", "two"), prefix=attempt_prefix("s", 10))
    failed = write(folder, ("c", None), prefix=attempt_prefix("s", 1))
    with JournalWriter(folder, REOPENS) as journal:
        journal.reopen("c", "", REQUEST, failed.name)
    assert final_record(folder, "a", attempts=attempt_prefix("s", 1))["output_text"] == "one"
    assert final_record(folder, "b", attempts=attempt_prefix("s", 1)) is None
    assert final_record(folder, "b")["output_text"] == "two"
    assert final_record(folder, "c", attempts=attempt_prefix("s", 1)) is None


def test_what_was_known_earlier(folder):
    """Split looked, and a later attempt knows better."""
    write(folder, ("ok", "one"), ("error", None), prefix=attempt_prefix("old", 0))
    before = read_index(folder)
    ok, error = (before.find(key, "", REQUEST) for key in ("ok", "error"))
    new = attempt_prefix("new", 0)

    def after(key, known):
        return read_index(folder, new).find(key, "", REQUEST, known)

    assert after("ok", ok) == ok
    assert after("error", error) == error
    with JournalWriter(folder, REOPENS) as journal:
        journal.reopen("error", "", REQUEST, error.file)
    assert after("error", error) is None
    write(folder, ("error", "two"), prefix=attempt_prefix("new", 0))
    location = after("error", error)
    assert (location.is_error, location.file != error.file) == (False, True)


def test_other_files_in_the_folder_do_not_matter(folder):
    other = write(folder, ("b", "two"))
    other.rename(folder / f"{other.name}~")
    write(folder, ("a", "one"))
    (folder / "notes.txt").write_text("x")
    (folder / "sub.jsonl").mkdir()
    assert final_record(folder, "a")["output_text"] == "one"
    assert final_record(folder, "b") is None


def test_no_folder_is_an_empty_index(tmp_path):
    assert read_index(tmp_path / "nothing").find("a", "", REQUEST) is None


def test_two_writers_of_one_name_write_two_files(folder):
    first, second = write(folder, ("a", "one")), write(folder, ("b", "two"))
    assert first != second
    assert final_record(folder, "a")
    assert final_record(folder, "b")


@pytest.mark.parametrize("writes", ["nothing", "a part"])
def test_a_write_that_fails_names_the_file(folder, monkeypatch, writes):
    def write(fd, data):
        if writes == "nothing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:-10])

    real = os.write
    with JournalWriter(folder, ATTEMPT) as writer:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left on device") as caught:
            writer.answer("a", "", REQUEST, "one", USAGE)
    assert caught.value.filename == str(writer.path)
    assert final_record(folder, "a") is None


def test_what_is_synced_survives_a_power_loss(folder, monkeypatch):
    """Closing syncs, too, and leaves no file open."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with JournalWriter(folder, ATTEMPT) as writer:
        synced.clear()  # the folder, for the name of the file
        writer.sync()
        assert synced == [str(writer.path)]
        assert is_open(writer.path)
    assert synced == [str(writer.path)] * 2
    assert not is_open(writer.path)


def test_a_reader_leaves_no_file_open(folder):
    path = write(folder, ("a", "one"))
    with JournalReader(folder, read_index(folder)) as reader:
        assert reader.find("a", "", REQUEST) is not None
        assert is_open(path)
    assert not is_open(path)


def is_open(path) -> bool:
    """Whether this process has the file open."""
    descriptors = Path("/proc/self/fd")
    return str(path) in {os.path.realpath(descriptors / fd) for fd in os.listdir(descriptors)}


def test_an_error_message_of_any_text(folder):
    """File names that are not UTF-8 come back from Python as half surrogates."""
    with JournalWriter(folder, ATTEMPT) as journal:
        journal.error("a", "", REQUEST, {**ERROR, "message": "caf\udce9.mp4 is gone"})
    assert "is gone" in final_record(folder, "a")["__error"]["message"]


# as version 1 writes them; journals of this form lie on people's disks
OLD_ATTEMPT = b"""\
{"__journal":1,"host":"h","pid":7,"job":"","time":1.5}
{"__key":"a","__part":"","__request":"%(r)b","output_text":"one","__usage":%(u)b}
{"__key":"b","__part":"","__request":"%(r)b","__error":{"stage":"read","type":"E","message":"no"}}
{"__key":"c","__part":"p","__request":"%(r)b","output_text":"x","__usage":%(u)b,"__reasoning":"Hm"}
{"__key":"d","__part":"","__request":"%(r)b","__engine_died":true}
{"__key":"e","__part":"","__request":"%(r)b","__error":{"stage":"read","type":"E","message":"no"}}
{"__key":"f","__part":"","__request":"%(r)b","__engine_died":true}
"""
OLD_REOPEN = b"""\
{"__journal":1,"host":"h","pid":7,"job":"","time":1.5}
{"__key":"e","__part":"","__request":"%(r)b","__reopens":"attempt.old.rank0.1-a.jsonl"}
{"__key":"f","__part":"","__request":"%(r)b","__reopens":"attempt.old.rank0.1-a.jsonl"}
"""


OLD_VALUES = {b"r": REQUEST.encode(), b"u": orjson.dumps(USAGE)}


def test_journals_on_disk_stay_readable(folder):
    folder.mkdir()
    attempt, reopen = folder / "attempt.old.rank0.1-a.jsonl", folder / "reopen.1-b.jsonl"
    attempt.write_bytes(OLD_ATTEMPT % OLD_VALUES)
    reopen.write_bytes(OLD_REOPEN % OLD_VALUES)
    assert final_record(folder, "a")["output_text"] == "one"
    assert final_record(folder, "b")["__error"]["message"] == "no"
    assert final_record(folder, "c", part="p")["__reasoning"] == "Hm"
    assert [final_record(folder, key) for key in "def"] == [None] * 3
    index = read_index(folder)
    assert index.files == [attempt.name, reopen.name]
    assert index.indexed == [attempt.name]
    assert len(index) == 3
    assert index.deaths("d", "", REQUEST) == [attempt.name]
    assert index.deaths("f", "", REQUEST) == index.deaths("a", "", REQUEST) == []
    kinds = {"output_text": 2, "__error": 2, "__engine_died": 2}
    assert count_records(attempt) == kinds
    assert count_records(reopen) == {"__reopens": 2}


def test_what_is_written_has_the_form_that_is_read(folder):
    with JournalWriter(folder, ATTEMPT) as attempt:
        attempt.answer("a", "", REQUEST, "one", USAGE)
        attempt.error("b", "", REQUEST, {"stage": "read", "type": "E", "message": "no"})
        attempt.answer("c", "p", REQUEST, "x", USAGE, "Hm")
        attempt.engine_died("d", "", REQUEST)
    with JournalWriter(folder, REOPENS) as reopen:
        reopen.reopen("e", "", REQUEST, "attempt.old.rank0.1-a.jsonl")
    for path, old, number in ((attempt.path, OLD_ATTEMPT, 4), (reopen.path, OLD_REOPEN, 1)):
        first, *records = path.read_bytes().splitlines()
        assert first.startswith(b'{"__journal":1,"host":')
        assert records == (old % OLD_VALUES).splitlines()[1 : number + 1]


def test_several_answers_are_one_record(folder):
    texts, tokens = ["one", "two\ud83d"], [{"token": "one", "logprob": -1.5, "top_logprobs": []}]
    with JournalWriter(folder, ATTEMPT) as journal:
        journal.answer("a", "", REQUEST, texts, USAGE, ["", "Hm"], [tokens, tokens])
    assert final_record(folder, "a") == {
        **{"__key": "a", "__part": "", "__request": REQUEST, "__usage": USAGE},
        **{"output_text": ["one", r"two\ud83d"], "__reasoning": ["", "Hm"]},
        "__logprobs": [tokens, tokens],
    }


def test_an_error_after_an_answer_keeps_what_was_said(folder):
    with JournalWriter(folder, ATTEMPT) as journal:
        answer = {"output_text": "half", "usage": USAGE, "reasoning": "Hm\ud83d"}
        journal.error("a", "", REQUEST, ERROR, **answer)
    assert final_record(folder, "a") == {
        **{"__key": "a", "__part": "", "__request": REQUEST, "__error": ERROR},
        **{"output_text": "half", "__usage": USAGE, "__reasoning": r"Hm\ud83d"},
    }


@pytest.mark.parametrize("batch", [1 << 14, 100, 1])
def test_many_are_found_as_one_is(folder, monkeypatch, batch):
    """Also if ids share most of their bytes and end with zeros, and records come again."""
    monkeypatch.setattr(journal_index, "_BATCH", batch)
    real = journal_format.head_id

    def similar(head):
        return bytes(7) + real(head)[:3] + bytes(6)

    for module in (journal_format, journal_index):
        monkeypatch.setattr(module, "head_id", similar)
    records = [(f"k{number % 700}", None if number % 3 else "text") for number in range(1500)]
    write(folder, *records[:800])
    write(folder, *records[800:])
    first: dict[str, tuple[bool, int]] = {}
    for number, (key, text) in enumerate(records):
        if key not in first or (first[key][0] and text is not None):
            first[key] = (text is None, number)
    index = read_index(folder)
    names = [f"k{number}" for number in range(800)]
    places = index.find_all(b"".join(record_id(name, "", REQUEST) for name in names))
    lines = {name: read_jsonl(folder / name) for name in index.indexed}
    offsets = {
        name: dict(zip(starts_of(folder / name), range(len(lines[name])), strict=True))
        for name in lines
    }
    for name, place in zip(names, places.tolist(), strict=True):
        location = index.find(name, "", REQUEST)
        if name not in first:
            assert (location, place) == (None, NO_RECORD)
            continue
        assert location_at(place, index.indexed) == location
        number = offsets[location.file][location.offset] - 1
        number += 800 * index.indexed.index(location.file)
        assert (location.is_error, number) == first[name]


def starts_of(path):
    """Offset of each line of a file."""
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    return [sum(sizes[:number]) for number in range(len(sizes))]


def test_more_journals_than_files_may_be_open(folder):
    for number in range(80):
        write(folder, (f"k{number}", str(number)))
    index = read_index(folder)
    with few_open_files(40), JournalReader(folder, index) as reader:
        texts = [
            reader.find(f"k{number}", "", REQUEST).record["output_text"]
            for number in [*range(80), *range(80)]
        ]
    assert texts == [*map(str, range(80)), *map(str, range(80))]


# --- a journal that has changed since somebody looked --------------------------------------------


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def insert(path):
    """A line before all others: every record has moved."""
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], b'{"note": "mine"}\n', *lines[1:]]))


def edit_key(path):
    path.write_bytes(path.read_bytes().replace(b'"__key":"b"', b'"__key":"z"'))


def edit_request(path):
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"0123", b"3210"), lines[3]]))


def edit_part(path):
    lines = lines_of(path)
    lines[2] = lines[2].replace(b'"__part":""', b'"__part":"x"')
    path.write_bytes(b"".join(lines))


def break_line(path):
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"two"', b'"two'), lines[3]]))


def lose_usage(path):
    path.write_bytes(path.read_bytes().replace(b'"two","__usage"', b'"two","_uusage"'))


def change_type(path):
    path.write_bytes(path.read_bytes().replace(b'"output_text":"two"', b'"output_text":["two"]'))


def remove_line(path):
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], lines[3]]))


def exchange(path):
    """Two records change places: another sample's answer lies where this one's was."""
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))


def truncate(path):
    path.write_bytes(b"".join(lines_of(path)[:2]))


def remove(path):
    path.unlink()


KEPT = {insert: "abc", exchange: "abc", truncate: "a", remove: ""}
CHANGES = [
    *(insert, edit_key, edit_request, edit_part, break_line, lose_usage, change_type),
    *(remove_line, exchange, truncate, remove),
]


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_record_is_compared_with_its_sample(folder, caplog, change, is_known):
    """``known``: where it lay when split looked."""
    path = write(folder, ("a", "one"), ("b", "two"), ("c", "three"))
    texts = {"a": "one", "b": "two", "c": "three"}
    index = read_index(folder)
    known = {key: index.find(key, "", REQUEST) if is_known else None for key in texts}
    later = read_index(folder, "attempt.later") if is_known else index
    change(path)
    with JournalReader(folder, later) as reader:
        for key in [*texts, *texts]:
            finished = reader.find(key, "", REQUEST, known[key])
            if key in KEPT.get(change, "ac"):
                assert finished.record["output_text"] == texts[key]
            else:
                assert finished is None
                assert f"{path}, byte {index.find(key, '', REQUEST).offset}" in caplog.text
                assert f"no record of sample {key} is there any more" in caplog.text
    assert len(caplog.records) <= 6


def test_a_file_of_another_attempt_under_the_same_name(folder, caplog):
    path = write(folder, ("a", "one"), ("b", "two"))
    index = read_index(folder)
    os.replace(write(folder, ("c", "three"), ("b", None)), path)
    with JournalReader(folder, index) as reader:
        assert reader.find("a", "", REQUEST) is None
        assert reader.find("b", "", REQUEST).record["__error"] == ERROR
    assert "sample a is there any more; it counts as missing" in caplog.text
    assert "sample b is there any more; another one is used" in caplog.text


def test_an_answer_after_a_broken_one_counts(folder):
    """What was inferred again is found, though the broken line comes first."""
    path = write(folder, ("a", "one"), ("b", "two"))
    index = read_index(folder)
    known = index.find("b", "", REQUEST)
    lose_usage(path)
    write(folder, ("b", "again"))
    for index_now in (read_index(folder), read_index(folder, "attempt.later")):
        with JournalReader(folder, index_now) as reader:
            assert reader.find("b", "", REQUEST, known).record["output_text"] == "again"


def test_an_error_that_became_an_answer_is_no_error(folder):
    """The kind is compared, too."""
    path = write(folder, ("a", None), ("b", "two"))
    index = read_index(folder)
    lines = lines_of(path)
    answer = lines[2].replace(b'"__key":"b"', b'"__key":"a"')
    path.write_bytes(lines[0] + answer + lines[2])
    with JournalReader(folder, index) as reader:
        finished = reader.find("a", "", REQUEST)
    assert not finished.location.is_error
    assert finished.record["output_text"] == "two"


def test_of_many_that_have_moved_the_first_are_named(folder, caplog):
    path = write(folder, *((f"k{number}", "text") for number in range(100)))
    index = read_index(folder)
    insert(path)
    with JournalReader(folder, index) as reader:
        for number in range(100):
            assert reader.find(f"k{number}", "", REQUEST).record["output_text"] == "text"
    assert len(caplog.records) == 21
    assert "and 80 more" in caplog.text


# --- what survives a power loss ------------------------------------------------------------------


def test_the_name_of_a_new_file_is_on_the_disk(folder, synced):
    """And those of the folders that were made for it."""
    with JournalWriter(folder / "deep", ATTEMPT) as journal:
        assert synced == [str(folder.parent), str(folder), str(folder / "deep")]
        journal.answer("a", "", REQUEST, "one", USAGE)
        journal.sync()
        assert synced[3:] == [str(journal.path)]

"""Input lines: what is read, what is refused, and how a sample gets its key and address."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import orjson
import pytest
import zstandard
from video_pipeline.config import load_config
from video_pipeline.errors import UserError
from video_pipeline.samples.input import (
    BadLines,
    InputReader,
    task_sample,
    video_address,
    video_uri,
)
from video_pipeline.samples.sources import read_blocks
from video_pipeline.samples.windows import windows

GOOD = b'{"path": "a.mp4"}'


@pytest.fixture
def reader(tmp_path):
    """Makes a reader of lines given as bytes."""

    def make(data: bytes, name: str = "samples.jsonl", **settings) -> InputReader:
        path = tmp_path / name
        path.write_bytes(data)
        data = load_config({"data": {"input_jsonl": str(path), **settings}}).data
        return InputReader(data, b"".join(read_blocks(path)))

    return make


def complaint(reader: InputReader) -> str:
    """What the user is told about bad input."""
    list(reader)
    with pytest.raises(UserError) as caught:
        reader.bad.raise_any(".")
    return str(caught.value)


# --- files -------------------------------------------------------------------------------------

LINES = b'{"path": "a.mp4"}\n{"path": "b.mp4"}\n'
HALVES = (LINES[:18], LINES[18:])
FORMS = {
    "plain.jsonl": LINES,
    "no_newline_at_end.jsonl": LINES.rstrip(),
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "blank_lines.jsonl": b"\n\n" + LINES.replace(b"\n", b"\n \t\n\r\n"),
    "one.jsonl.gz": gzip.compress(LINES),
    "many_members.jsonl.gz": b"".join(gzip.compress(half) for half in HALVES),
    "bom.jsonl.gz": gzip.compress(b"\xef\xbb\xbf" + LINES),
    "one.jsonl.zst": zstandard.compress(LINES),
    "many_frames.jsonl.zst": b"".join(zstandard.compress(half) for half in HALVES),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_files(reader, name):
    read = reader(FORMS[name], name)
    assert [sample.raw["path"] for sample in read] == ["a.mp4", "b.mp4"]
    read.bad.raise_any(Path())
    assert read.lines == 2


def test_an_empty_file_has_no_samples(reader):
    for data in (b"", b"\n\n"):
        read = reader(data)
        assert list(read) == []
        read.bad.raise_any(Path())


def test_line_numbers_count_blank_lines(reader):
    assert [s.line for s in reader(b"\n" + GOOD + b"\n\n" + GOOD + b"\n")] == [2, 4]


def many_lines() -> bytes:
    """Lines that do not shrink to nothing when compressed."""
    return b"".join(b'{"path": "%d.mp4"}\n' % (7**number) for number in range(400))


@pytest.mark.parametrize("name", ["large.jsonl", "large.jsonl.gz", "large.jsonl.zst"])
def test_a_file_of_many_blocks(reader, tmp_path, name):
    """Of noise, so that it stays large when compressed; two frames or members where it has such."""
    texts = [random.Random(number).randbytes(500).hex() for number in range(1000)]
    data = b"".join(b'{"path": "%b"}\n' % text.encode() for text in texts)
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    read = reader(pack(data[:700_001]) + pack(data[700_001:]), name)
    assert [sample.raw["path"] for sample in read] == texts
    blocks = list(read_blocks(tmp_path / name))
    assert len(blocks) > 2
    assert all(block.endswith(b"\n") for block in blocks)


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.jsonl.zst"])
def test_a_file_that_was_cut_off_is_an_error(reader, name):
    pack = gzip.compress if name.endswith("gz") else zstandard.compress
    data = pack(many_lines())
    for size in (len(data) // 2, len(data) - 1):
        with pytest.raises(UserError, match=name):
            list(reader(data[:size], name))


@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("name", ["rotten.jsonl.gz", "rotten.jsonl.zst"])
def test_a_file_with_flipped_bytes_is_an_error(reader, name, part):
    data = bytearray((gzip.compress if name.endswith("gz") else zstandard.compress)(many_lines()))
    first = 10 + int(part * (len(data) - 10))  # after the header of the file
    data[first : first + 20] = bytes(byte ^ 0xFF for byte in data[first : first + 20])
    with pytest.raises(UserError, match=name):
        list(reader(bytes(data), name))


@pytest.mark.parametrize("name", ["text.jsonl.gz", "text.jsonl.zst"])
def test_a_file_that_is_not_compressed_is_an_error(reader, name):
    with pytest.raises(UserError, match=name):
        list(reader(LINES, name))


PACKED = {
    "bzip2.jsonl.bz2": bz2.compress(LINES),
    "xz.csv.xz": lzma.compress(LINES),
    "zip.zip": b"PK\x03\x04" + LINES,
    "tar.tgz": gzip.compress(LINES),
    "no_suffix.jsonl": zstandard.compress(LINES),
    "twice.txt.gz": gzip.compress(gzip.compress(LINES)),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_file_that_is_packed_in_another_way_is_one_error(reader, name):
    with pytest.raises(UserError, match=f"{name}: it is packed: unpack it, or pack its text as"):
        reader(PACKED[name], name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        list(read_blocks(tmp_path / "nothing.jsonl"))


# --- lines -------------------------------------------------------------------------------------

BAD_LINES = {
    "not JSON": (b"{path: a}", "not JSON"),
    "half a line": (b'{"path": "a', "not JSON"),
    "two objects": (b'{"path": "a"}{"path": "b"}', "not JSON"),
    "not UTF-8": (b'{"path": "caf\xe9"}', "not JSON"),
    "not a number": (b'{"path": "a", "x": NaN}', "not JSON"),
    "half a surrogate pair": (b'{"path": "a", "x": "\\ud800"}', "not JSON"),
    "a list": (b'[{"path": "a.mp4"}]', "expected a JSON object, got list; `jq -c '.[]'` turns"),
    "a list of some lines": (b"[", "; `jq -c '.[]'` turns a list into lines"),
    "a text": (b'"a.mp4"', "expected a JSON object, got str"),
    "no path": (b'{"video": "a.mp4"}', "'path'"),
    "empty path": (b'{"path": ""}', "'path'"),
    "null path": (b'{"path": null}', "'path'"),
    "an empty list": (b'{"path": []}', "'path'"),
    "a list with a number": (b'{"path": ["a", 1]}', "'path'"),
    "another scheme": (b'{"path": "s4://bucket/a.mp4"}', "s4://bucket/a.mp4"),
    "another host": (b'{"path": "file://host/a.mp4"}', "file://host/a.mp4"),
    "too large": (b'{"path": "a", "n": 18446744073709551616}', "18446744073709551616"),
    "too small": (b'{"path": "a", "n": -9223372036854775809}', "-9223372036854775809"),
    "deeply nested number": (
        b'{"path": "a", "n": [{"x": 123456789012345678901234567890}]}',
        "1234",
    ),
    "a name twice": (b'{"path": "a", "n": 1, "n": 2}', "the name 'n' is there twice"),
    "a name twice, deep": (
        b'{"path": "a", "x": [{"b": {"c" :1, "c"\t: 2}}]}',
        "'c' is there twice",
    ),
    "a name twice, escaped": (b'{"path": "a", "p\\u0061th": "b"}', "'path' is there twice"),
    "a name twice and a text like one": (b'{"path": "a \\":", "n": 1, "n": 1}', "'n' is there"),
    "NUL bytes": (b'{"path": "a\0b"}', "not JSON"),
    "only NUL bytes": (b"\0\0\0", "not JSON"),
    "UTF-16": ('{"path": "a"}'.encode("utf-16-le").replace(b"\n", b""), "not JSON"),
    "a second byte-order mark": (b'\xef\xbb\xbf{"path": "a"}', "not JSON"),
    "10 MB that are not JSON": (b'{"path": "' + b"a" * 10_000_000, "not JSON"),
    "deeper than can be read": (
        b'{"path": "a", "n": 1234567890123456789, "x": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        "line 2",
    ),
    "a password": (b'{"path": "ftp://user:secret@host/a.mp4"}', "ftp://***@host/a.mp4"),
    "infinite": (b'{"path": "a", "n": 1e999}', "line 2"),
    "deeper than can be written": (
        b'{"path": "a", "x": ' + b"[" * 300 + b"]" * 300 + b"}",
        "line 2: nested too deeply",
    ),
    "objects deeper than can be written": (
        b'{"path": "a", "x": ' + b'{"x": ' * 300 + b"1" + b"}" * 300 + b"}",
        "line 2: nested too deeply",
    ),
    "segment as text": (b'{"path": "a", "video_start": "3"}', "video_start"),
    "segment as truth": (b'{"path": "a", "video_end": true}', "video_end"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(reader, case):
    line, said = BAD_LINES[case]
    read = reader(GOOD + b"\n" + line + b"\n" + b'{"path": "c.mp4"}\n')
    assert [sample.raw["path"] for sample in read] == ["a.mp4", "c.mp4"]
    assert read.bad.count == 1
    with pytest.raises(UserError) as caught:
        read.bad.raise_any(Path())
    assert "line 2: " in str(caught.value)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "secret" not in str(caught.value)


def test_a_line_with_an_id_is_not_deeper_than_its_record_can_be_written(reader):
    lines = [b'{"id": %d, "path": "a", "x": %b}' % (n, b"[" * n + b"]" * n) for n in (252, 253)]
    read = reader(b"\n".join(lines), id_field="id")
    record = {"input": next(iter(read)).raw}
    assert orjson.loads(orjson.dumps(record)) == record
    assert "line 2: nested too deeply" in complaint(read)


NASTY = "a\nline 3: b\x1b[31m\x00\u202e"


@pytest.mark.parametrize(
    "sample",
    [{"path": {NASTY: NASTY}}, {"path": f"s3://{NASTY}"}, {"path": "a", "video_end": NASTY}],
)
def test_what_a_bad_line_holds_is_shown_escaped(reader, sample):
    message = complaint(reader(json.dumps(sample).encode()))
    assert all(line.isprintable() for line in message.split("\n"))
    assert message.count("\n") == 1


def test_a_line_of_10_mb(reader):
    text = "colon\": 'ü' " * 800_000
    (sample,) = reader(json.dumps({"path": "a", "text": text, "list": list(range(1000))}).encode())
    assert sample.raw["text"] == text


@pytest.mark.parametrize(
    "line",
    [
        b'{"path": "a", "x": {"path": "b"}, "y": [{"path": "c"}, {"path": "d"}]}',
        b'{"path" : "a\\": \\"b", "":"", "n"\t:"http://x:1", "\\":" : 2, "{": ":", "[": {}}',
    ],
)
def test_names_that_are_not_there_twice(reader, line):
    (sample,) = reader(line)
    assert sample.raw == json.loads(line)


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 10**18, 0, 0.1, 1e300, -1.5])
def test_numbers_come_back_as_they_were(reader, number):
    (sample,) = reader(json.dumps({"path": "a", "n": number}).encode())
    assert sample.raw["n"] == number
    assert type(sample.raw["n"]) is type(number)


def test_long_runs_of_digits_in_text_are_no_numbers(reader):
    digits = "9" * 60
    (sample,) = reader(json.dumps({"path": f"{digits}.mp4", digits: digits}).encode())
    assert sample.raw[digits] == digits


def test_the_first_20_bad_lines_are_shown_and_all_are_counted(reader):
    message = complaint(reader(b"x\n" * 57))
    shown = [f"line {number}:" in message for number in range(1, 58)]
    assert shown == [True] * 20 + [False] * 37
    assert "57 bad" in message
    assert "37 more" in message


def test_bad_lines_of_two_blocks_are_shown_in_the_order_of_the_file():
    odd, even = BadLines(), BadLines()
    for number in range(1, 31):
        (odd if number % 2 else even).add(number, "x")
    even.merge(odd)
    with pytest.raises(UserError) as caught:
        even.raise_any(Path("in.jsonl"))
    first, *shown, more = str(caught.value).split("\n  ")
    assert first.startswith("in.jsonl: 30 bad line(s)")
    assert shown == [f"line {number}: x" for number in range(1, 21)]
    assert more == "... and 10 more"


def test_other_names_of_the_path(reader):
    (sample,) = reader(b'{"clip": "a.mp4"}\n', video_field="clip")
    assert sample.raw == {"clip": "a.mp4"}
    assert "'clip'" in complaint(reader(GOOD, video_field="clip"))


# --- keys --------------------------------------------------------------------------------------


def keys_of(reader: InputReader) -> list[str]:
    keys = [sample.key for sample in reader]
    reader.bad.raise_any(".")
    return keys


def test_without_an_id_the_content_is_the_key(reader):
    lines = (
        b'{"path": "a", "n": 1}\n'
        b'{ "n":1,  "path":"a" }\n'  # the same, written otherwise
        b'{"path": "a", "n": "1"}\n'
        b'{"path": "a", "n": 2}\n'
    )
    first, again, text, other = keys_of(reader(lines))
    assert first == again
    assert len({first, text, other}) == 3
    assert len(first) == 32


def test_an_id_is_the_key(reader):
    lines = b'{"path": "a", "id": 1}\n{"path": "b", "id": "x/\\u00fc \\"\\n"}\n{"path":"c","id":-7}'
    assert keys_of(reader(lines, id_field="id")) == ["1", 'x/ü "\n', "-7"]


def test_windows_of_a_video_share_its_id_and_have_keys_of_their_own(reader):
    cut = windows({"path": "a", "id": "v"}, [0.0, 1.5, 30.0])
    lines = "\n".join(map(json.dumps, cut)).encode()
    assert keys_of(reader(lines, id_field="id")) == ["v@0.0-1.5", "v@1.5-30.0"]


def test_a_window_has_one_key_however_its_times_are_written(reader):
    """A library that reads a list and writes it again turns 60 into 60.0, or back."""
    one, other = (
        windows({"path": "a", "id": "v"}, [60.0, 90.0]),
        {"video_start": 60, "video_end": 90},
    )
    lines = "\n".join(map(json.dumps, [*one, {**one[0], **other}])).encode()
    assert keys_of(reader(lines, id_field="id")) == ["v@60.0-90.0"] * 2


@pytest.mark.parametrize("value", ["null", "true", "1.0", '""', "[1]", "{}"])
def test_what_is_no_id(reader, value):
    line = b'{"path": "a", "id": %s}' % value.encode()
    assert "line 1: no id: field 'id'" in complaint(reader(line, id_field="id"))


def test_a_missing_id(reader):
    assert "line 1: no id: field 'id'" in complaint(reader(GOOD, id_field="id"))


# --- the output of an earlier run --------------------------------------------------------------


def test_an_output_is_an_input(reader):
    """Without its error records."""
    ok = {"__key": "k", "__status": "ok", "__task": "t", "input": {"path": "a", "id": 1}, "x": 2}
    error = {"__key": "e", "__status": "error", "__error": {}, "input": {"path": "b", "id": 2}}
    plain = {"path": "c", "id": 3}
    lines = "\n".join(map(json.dumps, [ok, error, plain, error]))
    read = reader(lines.encode(), id_field="id")
    first, failed, second, again = read
    read.bad.raise_any(Path())
    previous = {"__key": "k", "__status": "ok", "__task": "t", "x": 2}
    assert first.raw == {"path": "a", "id": 1, "previous": previous}
    assert first.key == "1"
    assert second.raw == plain
    assert (read.failed, read.left_out, read.lines) == (2, 2, 4)
    assert failed.key == again.key == "e"
    assert failed.left_out == {"by": "error", "message": ""}


def test_the_output_of_two_runs_keeps_both(reader):
    first = {"__key": "k", "__status": "ok", "input": {"path": "a"}, "caption": "one"}
    (sample,) = reader(json.dumps(first).encode())
    second = {"__key": "k", "__status": "ok", "input": sample.raw, "caption": "two"}
    (sample,) = reader(json.dumps(second).encode())
    assert sample.raw["previous"]["caption"] == "two"
    assert "one" in json.dumps(sample.raw)


def test_a_sample_with_a_field_called_input_is_a_sample(reader):
    line = {"path": "a", "input": {"path": "b"}, "__status": "ok"}
    (sample,) = reader(json.dumps(line).encode())
    assert sample.raw == line


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "uri"),
    [
        ("a.mp4", "/root/a.mp4"),
        ("b/../a.mp4", "/root/b/../a.mp4"),
        ("/abs/a.mp4", "/abs/a.mp4"),
        ("a%20b#c?d.mp4", "/root/a%20b#c?d.mp4"),
        ("C:/a.mp4", "/root/C:/a.mp4"),
        ("my clips://a.mp4", "/root/my clips://a.mp4"),
        ("file:///a.mp4", "/a.mp4"),
        ("file:///a%20b%23c%C3%BC.mp4", "/a b#cü.mp4"),
        ("file://localhost/a.mp4", "/a.mp4"),
        ("FILE:///a.mp4", "/a.mp4"),
        ("http://h/a%20b.mp4?x=1#t", "http://h/a%20b.mp4?x=1#t"),
        ("HTTPS://h/a.mp4", "HTTPS://h/a.mp4"),
    ],
)
def test_addresses(video, uri):
    assert video_uri(video, "/root") == uri


@pytest.mark.parametrize(
    "video", ["s4://b/a.mp4", "ftp://h/a", "file://host/a", "data://x", "http://[half/a.mp4"]
)
def test_addresses_that_are_refused(video):
    with pytest.raises(ValueError, match=r"only local paths, file:|Invalid IPv6 URL"):
        video_uri(video, "/root")


def test_an_address_under_the_root_of_all():
    assert video_uri("a.mp4", "/") == video_uri("/a.mp4", "/root") == "/a.mp4"


def test_a_list_of_pictures_has_a_list_of_addresses():
    assert video_address(["a.png", "/b.png"], "/root") == ["/root/a.png", "/b.png"]
    assert video_address("a.mp4", "/root") == "/root/a.mp4"
    assert video_address(None, "/root") is None


def test_what_a_task_sees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = {"path": "clips/a.mp4", "__key": "mine", "n": [1]}
    config = load_config({"data": {"input_jsonl": "lists/samples.jsonl"}})
    sample = task_sample("key", raw, config)
    assert sample == {
        "path": "clips/a.mp4",
        "n": [1],
        "__key": "key",
        "__video_uri": str(tmp_path / "lists/clips/a.mp4"),
    }
    config = load_config({"data": {"input_jsonl": "lists/samples.jsonl", "video_root": "v"}})
    assert task_sample("key", raw, config)["__video_uri"] == str(tmp_path / "v/clips/a.mp4")

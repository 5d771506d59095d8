"""Chunk lines, read without parsing the sample; and what consolidate need not parse."""

from __future__ import annotations

import json

import orjson
import pytest
from helpers import keys, samples
from video_pipeline.chunks import ChunkEntry, entry_line, finished_line, input_of, read_lines
from video_pipeline.consolidation import consolidate
from video_pipeline.errors import UserError
from video_pipeline.inference import infer
from video_pipeline.journal import Location

REQUEST = "0123456789abcdef" * 2
RAW = b'{"path": "a.mp4",\t"t": "],\\"", "n": [{"__key":"x"}], "u": "\\u00e9"}'
PLACE = Location("attempt.a.rank0.1-b.jsonl", 12345, True)
KEYS = [
    "a",
    "",
    "1.5",
    'a"',
    'a","b',
    "\\",
    '\\","',
    "],",
    '],"a","',
    '[null,"',
    "ü€",
    '",{"',
    "\n",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_line_with_one_question(key):
    name = orjson.dumps(key)
    pending = entry_line(name, REQUEST.encode(), RAW)
    finished = finished_line(pending, orjson.dumps(PLACE.file), PLACE.offset, PLACE.is_error)
    for line, done in ((pending, {}), (finished, {"": PLACE})):
        entry = ChunkEntry.from_line(line)
        assert entry == ChunkEntry(key, {"": REQUEST}, RAW, done)
        assert entry.to_line() == line
        assert entry.raw == orjson.loads(RAW)
        assert input_of(line, name) == RAW
        assert input_of(line, orjson.dumps(key + "x")) is None
        assert input_of(line, name[:-1]) is None


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("done", [{}, {"a": PLACE}, {"a": PLACE, "b": PLACE}])
def test_a_line_with_several_questions(key, done):
    line = ChunkEntry(key, {"a": REQUEST, "b": REQUEST}, RAW, done).to_line()
    entry = ChunkEntry.from_line(line)
    assert (entry.key, entry.requests, entry.done) == (key, {"a": REQUEST, "b": REQUEST}, done)
    assert entry.raw == orjson.loads(RAW)
    assert input_of(line, orjson.dumps(key)) is None


def test_lines_longer_than_a_piece(tmp_path):
    lines = [b"x" * size + b"\n" for size in (1, 70_000, 0, 1 << 18, 65_535, 65_536, 300_000)]
    path = tmp_path / "file"
    for last in (b"", b"torn"):
        path.write_bytes(b"".join(lines) + last)
        assert list(read_lines(path, 1 << 20)) == [*lines, *([last] if last else [])]


@pytest.fixture
def finished(splitting):
    """Ten answers in the journal, and their two rank files."""
    splitting(samples(10), 1).finish(*keys(10))
    splitting(num_shards=2)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    return splitting


def test_answers_are_consolidated_unparsed(finished, monkeypatch):
    monkeypatch.delattr(ChunkEntry, "from_line")
    consolidate(finished.run.config, finished.layout)
    assert [record["__key"] for record in finished.run.records()] == keys(10)
    assert finished.run.summary()["usage"] == {"prompt_tokens": 10, "completion_tokens": 20}


def halves(first: bytes, second: bytes, cut: bytes) -> bytes:
    """A write that was cut off, and another record after it."""
    return first[: first.index(cut) + len(cut)] + second


@pytest.mark.parametrize("cut", [b'"__status":"ok",', b'"input":', b'"output_text":"'])
def test_two_records_on_a_line_are_no_record(finished, cut):
    path = finished.layout.rank_file(1)
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([halves(first, second, cut), second, *rest]))
    with pytest.raises(UserError, match=r"out\.rank1\.jsonl, line 1: expected sample"):
        consolidate(finished.run.config, finished.layout)


def test_a_record_written_otherwise_counts(finished):
    """By a program that has put blanks into it."""
    path = finished.layout.rank_file(0)
    lines = [json.dumps(json.loads(line)) for line in path.read_bytes().splitlines()]
    path.write_text("".join(line + "\n" for line in lines))
    consolidate(finished.run.config, finished.layout)
    assert [record["__key"] for record in finished.run.records()] == keys(10)
    assert finished.run.summary()["usage"] == {"prompt_tokens": 10, "completion_tokens": 20}

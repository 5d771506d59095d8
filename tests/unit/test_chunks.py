"""Chunk lines, read without parsing the sample; and what consolidate need not parse."""

from __future__ import annotations

import orjson
import pytest
from video_pipeline.journal.index import Location
from video_pipeline.run.chunks import ChunkEntry, entry_line, finished_line, line_blocks, read_lines

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


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("done", [{}, {"a": PLACE}, {"a": PLACE, "b": PLACE}])
def test_a_line_with_several_questions(key, done):
    line = ChunkEntry(key, {"a": REQUEST, "b": REQUEST}, RAW, done).to_line()
    entry = ChunkEntry.from_line(line)
    assert (entry.key, entry.requests, entry.done) == (key, {"a": REQUEST, "b": REQUEST}, done)
    assert entry.raw == orjson.loads(RAW)


def test_lines_longer_than_a_piece(tmp_path):
    lines = [b"x" * size + b"\n" for size in (1, 70_000, 0, 1 << 18, 65_535, 65_536, 300_000)]
    path = tmp_path / "file"
    for last in (b"", b"torn"):
        path.write_bytes(b"".join(lines) + last)
        assert list(read_lines(path, 1 << 20)) == [*lines, *([last] if last else [])]


@pytest.mark.parametrize(
    ("num_files", "most"), [(1, 1 << 18), (256, 1 << 18), (512, 1 << 17), (1 << 20, 1 << 16)]
)
def test_blocks_are_bounded_however_many_files_are_read(tmp_path, num_files, most):
    """64 MiB for all files together, or 64 KiB each where they are very many."""
    lines = [b"x" * 1000 + b"\n"] * 2000
    path = tmp_path / "file"
    path.write_bytes(b"".join(lines))
    blocks = list(line_blocks(path, num_files))
    assert b"".join(blocks) == path.read_bytes()
    assert all(block.endswith(b"\n") for block in blocks)
    assert most - 1001 <= len(blocks[0]) == max(map(len, blocks)) <= most

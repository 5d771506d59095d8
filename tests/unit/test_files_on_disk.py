"""The files on disk are what docs/formats.md says: its examples are read and written again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
from helpers import PROJECT, keys, samples
from video_pipeline.common.files import Seal
from video_pipeline.config import load_config
from video_pipeline.infer.infer import infer
from video_pipeline.journal.format import REOPENS
from video_pipeline.journal.index import read_index
from video_pipeline.journal.reader import JournalReader
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.output.consolidation import consolidate
from video_pipeline.output.records import RecordBuilder
from video_pipeline.run.changes import FILE, JournalSettings
from video_pipeline.run.chunks import ChunkEntry
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.sharding import Sharding, read_sharding
from video_pipeline.run.statistics import JobStatistics, read_statistics
from video_pipeline.tasks.base import ONLY_PART
from video_pipeline.tasks.describe import Describe

PAGE = (PROJECT / "docs" / "formats.md").read_text(encoding="utf-8")
RECORDS, SUMMARY, ATTEMPT, REOPEN, SETTINGS, STATISTICS, PLAN, MANIFEST, CHUNK = (
    block.encode() for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
)
FILE_OF_ATTEMPT = "attempt.5b2f797a8ca8.rank0.1795787926915549848-2ee8295e.jsonl"


@pytest.fixture
def journal(tmp_path) -> Path:
    """The journal of the page, without what was taken back."""
    (tmp_path / FILE_OF_ATTEMPT).write_bytes(ATTEMPT)
    return tmp_path


def question(line: bytes) -> tuple[str, str, str]:
    record = orjson.loads(line)
    return record["__key"], record["__part"], record["__request"]


def test_the_journal_is_read(journal):
    _, cat, dog, cow = ATTEMPT.splitlines()
    index = read_index(journal)
    with JournalReader(journal, index) as reader:
        for line in (cat, dog):
            assert reader.find(*question(line)).record == orjson.loads(line)
    assert index.find(*question(cow)) is None
    assert index.deaths(*question(cow)) == [FILE_OF_ATTEMPT]
    (journal / f"{REOPENS}1-a.jsonl").write_bytes(REOPEN)
    assert read_index(journal).find(*question(dog)) is None


def test_the_journal_is_written(tmp_path):
    attempt, reopen = ATTEMPT.splitlines(), REOPEN.splitlines()
    records = [orjson.loads(line) for line in attempt]
    with JournalWriter(tmp_path, "attempt.s.rank0.") as writer:
        writer.answer(*question(attempt[1]), records[1]["output_text"], records[1]["__usage"])
        writer.error(*question(attempt[2]), records[2]["__error"])
        writer.engine_died(*question(attempt[3]), records[3]["__cause"])
    with JournalWriter(tmp_path, REOPENS) as reopener:
        reopener.reopen(*question(reopen[1]), FILE_OF_ATTEMPT)
    for path, lines in ((writer.path, attempt), (reopener.path, reopen)):
        first, *rest = path.read_bytes().splitlines()
        assert rest == lines[1:]
        assert orjson.loads(first).keys() == orjson.loads(lines[0]).keys()


def test_the_output_is_made_of_the_journal():
    builder = RecordBuilder(load_config({"vllm": {"model": "my/model"}}), Describe())
    for line, journaled in zip(
        RECORDS.splitlines(keepends=True), ATTEMPT.splitlines()[1:3], strict=True
    ):
        record = orjson.loads(line)
        entry = ChunkEntry(record["__key"], {ONLY_PART: ""}, orjson.dumps(record["input"]), {})
        assert builder.build(entry, {ONLY_PART: orjson.loads(journaled)}).line == line


def test_the_chunk(journal):
    cow, cat, pig = CHUNK.splitlines(keepends=True)
    entries = [ChunkEntry.from_line(line) for line in (cow, cat, pig)]
    assert [entry.to_line() for entry in entries] == [cow, cat, pig]
    assert [entry.key for entry in entries] == ["cow", "cat", "pig"]
    answer = read_index(journal).find(*entries[1].questions[0])
    assert [entry.done for entry in entries] == [{}, {"": answer}, {"what": answer}]


def test_the_plan(tmp_path):
    path = tmp_path / "plan.json"
    Sharding(2).write(path)
    assert path.read_bytes() == PLAN
    assert read_sharding(path) == Sharding(2)


def test_the_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = Layout(Path("results/output.describe.jsonl"), 2)
    layout.chunks.mkdir(parents=True)
    layout.manifest.write_bytes(MANIFEST)
    manifest = json.loads(json.dumps(asdict(Manifest.read(layout))))
    assert json.loads(MANIFEST).items() <= manifest.items()


def test_the_settings_of_a_journal(tmp_path):
    layout = Layout(tmp_path / "out.jsonl", 1)
    (layout.journal / "0f3c").mkdir(parents=True)
    path = layout.journal / "0f3c" / FILE
    path.write_bytes(SETTINGS)
    JournalSettings.last(layout).write()
    assert json.loads(path.read_text()) == json.loads(SETTINGS)


def test_the_statistics(journal):
    path = (journal / FILE_OF_ATTEMPT).with_suffix(".statistics.json")
    path.write_bytes(STATISTICS)
    (job,) = read_statistics(journal)
    example = json.loads(STATISTICS)
    assert example.items() <= job.items()
    assert example.keys() <= JobStatistics(0, 0).as_dict().keys()


def test_the_summary(splitting):
    splitting(samples(2), 1).finish(*keys(2))
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)

    def check(example, real):
        if isinstance(example, dict):
            for name in example.keys() - {"read"}:  # A stage that failed is a name, too.
                check(example[name], real[name])
        else:
            assert type(example) is type(real)

    example = json.loads(SUMMARY)
    check(example, splitting.run.summary())
    assert Seal(**example["output_file"]) == Seal().extended(RECORDS)

"""What an input may be beside a JSONL: folders, patterns, lists, tables."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from helpers import SCRIPTS
from video_pipeline.commands import samples
from video_pipeline.config import load_config
from video_pipeline.config.source import Source
from video_pipeline.errors import UserError
from video_pipeline.run.origin import check_files, origin_of
from video_pipeline.samples import blocks
from video_pipeline.samples.input import InputReader
from video_pipeline.samples.sources import read_blocks
from video_pipeline.testing.clips import write_clip


def lines(place: Path | str) -> list[dict]:
    """The samples that an input stands for."""
    return [orjson.loads(line) for line in b"".join(read_blocks(place)).split(b"\n") if line]


def numbered(place: Path | str) -> dict[int, dict]:
    """The same, by the numbers of their lines."""
    text = b"".join(read_blocks(place)).split(b"\n")
    return {number: orjson.loads(line) for number, line in enumerate(text, 1) if line}


@pytest.fixture
def folder(tmp_path):
    """A folder of files with the names of videos, and others."""
    names = ["b.MP4", "a.mp4", "cats/1.webm", "cats/2.mkv", "cats/.hidden.mp4", ".git/x.mp4"]
    for name in [*names, "cats/notes.txt", "ü ö.mov"]:
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "clips"


VIDEOS = ["a.mp4", "b.MP4", "cats/1.webm", "cats/2.mkv", "ü ö.mov"]


# --- folders and patterns -------------------------------------------------------------------------


def test_a_folder_stands_for_the_videos_in_it_and_below(folder):
    assert lines(folder) == [{"path": name} for name in VIDEOS]
    assert Source(str(folder)).root == str(folder)


def test_a_video_is_the_sample_that_it_is_in_its_folder(folder):
    assert lines(folder / "b.MP4") == [{"path": "b.MP4"}]
    assert Source(str(folder / "b.MP4")).root == str(folder)
    data = {"input_jsonl": str(folder / "b.MP4"), "video_root": "/elsewhere"}
    assert load_config({"data": data}).video_root == str(folder)
    assert Source("subtitles.mov.gz").kind == "jsonl"
    address = "https://host/clips/a.mp4?v=1"
    assert lines(address) == [{"path": address}]


def test_a_pattern_stands_for_each_file_that_it_matches(folder):
    assert lines(f"{folder}/**/*.m[pk]*") == [{"path": "a.mp4"}, {"path": "cats/2.mkv"}]
    assert lines(folder / "cats" / "*.txt") == [{"path": "notes.txt"}]
    assert Source(f"{folder}/**/*.m[pk]*").root == str(folder)


def test_a_link_that_leads_nowhere_is_not_lost(folder):
    """It becomes an error record, like that of a folder."""
    (folder / "cats" / "3.mkv").symlink_to("gone.mkv")
    found = [{"path": "cats/2.mkv"}, {"path": "cats/3.mkv"}]
    assert lines(f"{folder}/**/*.mkv") == found
    assert [line for line in lines(folder) if line["path"].endswith("mkv")] == found


def test_a_link_that_leads_back_gives_no_video_twice(folder):
    for name in ("back", "cats/up"):  # Two: 2**40 paths.
        (folder / name).symlink_to(folder)
    with pytest.raises(UserError, match=r"/(back|up).*: a link leads back, so"):
        lines(f"{folder}/**/*.mkv")
    assert lines(folder / "*" / "2.mkv") == [{"path": "cats/2.mkv"}]
    assert lines(folder) == [{"path": name} for name in VIDEOS]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    path = tmp_path / "list[1].txt"
    path.write_text("a.mp4\n")
    assert lines(path) == [{"path": "a.mp4"}]


def test_nothing_to_be_found_is_an_error(folder):
    (folder / "empty").mkdir()
    (folder / "empty" / "readme.md").touch()
    with pytest.raises(UserError, match=r"/empty: no videos .*it holds readme\.md"):
        lines(folder / "empty")
    with pytest.raises(UserError, match=r"\*\.avi: the pattern matches no file"):
        lines(folder / "*.avi")


def test_a_name_that_is_not_utf8_is_an_error(folder):
    Path(folder, b"\xff.mp4".decode(errors="surrogateescape")).touch()
    with pytest.raises(UserError, match="cannot be written as JSON"):
        lines(folder)


def test_paths_start_from_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for place in ("clips", "clips/*", str(folder), folder.as_uri()):
        assert load_config({"data": {"input_jsonl": place}}).video_root == str(folder)


def test_a_new_file_is_another_input(folder):
    config = load_config({"data": {"input_jsonl": str(folder)}})
    before = origin_of(config)
    assert origin_of(config) == before
    (folder / "cats" / "3.mp4").touch()
    assert origin_of(config) != before


def test_a_missing_folder_is_said_before_anything_starts(folder):
    check_files([load_config({"data": {"input_jsonl": str(folder)}})])
    config = load_config({"data": {"input_jsonl": str(folder.parent / "clisp" / "*.mp4")}})
    with pytest.raises(UserError, match=r"clisp does not exist; did you mean .*clips\?"):
        check_files([config])


# --- lists and tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_list_of_paths(tmp_path, suffix):
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(suffix, bytes)
    path = tmp_path / f"list.txt{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbfa b.mp4\r\n\n http://h/c.mp4\n\xc3\xbc.mp4"))
    assert numbered(path) == {
        1: {"path": "a b.mp4"},
        3: {"path": "http://h/c.mp4"},
        4: {"path": "ü.mp4"},
    }


ROWS = [
    {"path": "a.mp4", "id": "007", "note": 'says "hi",\nand goes\u2028on', "video_start": "1.5"},
    {"path": "b.mp4", "id": "8", "note": "", "video_start": ""},
]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.tsv.zst"])
def test_a_table_of_text(tmp_path, name):
    path, delimiter = tmp_path / name, "," if ".csv" in name else "\t"
    plain = tmp_path / "plain"
    with plain.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(plain.read_bytes()))
    # The second line of the note is line 3 of the file.
    assert numbered(path) == {3: {**ROWS[0], "video_start": 1.5}, 4: {"path": "b.mp4", "id": "8"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first row must name the columns"),
        ("a.mp4\nb.mp4\n", r"one of them must be 'path'.*it is \['a\.mp4'\]"),
        ("path,a,a\n", "two columns have the name 'a'"),
        ("path,a\nx.mp4,1,2\n", r"bad\.csv, line 2: 3 cells, but only 2"),
        ('path,a\nx.mp4,"1"2\n', r"bad\.csv, line 2: "),
        ('path,a\nx.mp4,"1\n', r"bad\.csv, line 2: unexpected end"),
        ("path\n\xff.mp4\n", r"bad\.csv, line 2: byte 0xff is not UTF-8"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        lines(path)


def test_a_cell_of_a_long_transcript(tmp_path):
    text = "what is said " * 50_000
    (tmp_path / "t.csv").write_text(f"path,said\na.mp4,{text}\n")
    assert lines(tmp_path / "t.csv") == [{"path": "a.mp4", "said": text}]


def test_a_number_that_is_none_is_a_bad_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,video_start\na.mp4,soon\n")
    data = load_config({}).data
    reader = InputReader(data, b"".join(read_blocks(path)))
    assert not list(reader)
    with pytest.raises(UserError, match="line 2: video_start: got 'soon', expected seconds"):
        reader.bad.raise_any(str(path))


def test_a_parquet_file(tmp_path):
    path = tmp_path / "t.parquet"
    frame = pandas.DataFrame(
        {
            "path": [f"{number}.mp4" for number in range(3000)],
            "n": range(3000),
            "at": pandas.Timestamp("2026-01-02T03:04:05"),
            "more": [{"tags": ["a"], "hash": b"\xff"}] * 3000,
            "thumbnail": [b"\xff"] * 3000,
        }
    )
    frame.to_parquet(path, row_group_size=100)
    rows = lines(path)
    assert [row["path"] for row in rows] == list(frame["path"])
    assert rows[7] == {"path": "7.mp4", "n": 7, "at": "2026-01-02T03:04:05"}


def test_a_parquet_file_without_paths(tmp_path):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"video": ["a.mp4"]}), path)
    with pytest.raises(UserError, match=r"no column 'path' .*it has video \(string\)"):
        lines(path)
    assert [json.loads(line) for line in read_blocks(path, "video")] == [{"video": "a.mp4"}]
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"cannot read .*t\.parquet"):
        lines(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pyarrow.array([2**62], pyarrow.timestamp("us")), "date value out of range"),
        (pyarrow.array([1], pyarrow.timestamp("us", "Mars/X")), "'Mars/X'"),
        (pyarrow.array([b"\xff"]).view(pyarrow.string()), "'utf-8' codec can"),
    ],
)
def test_values_that_cannot_be_read_are_an_error(tmp_path, values, message):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.mp4"], "x": values}), path)
    with pytest.raises(UserError, match=rf"cannot read .*t\.parquet: {message}"):
        lines(path)


def test_two_columns_of_one_name_are_an_error(tmp_path):
    """Of a row, Python would keep only the last one."""
    columns, names = [pyarrow.array(["a.mp4"]), *map(pyarrow.array, ([1], [2]))], ["path", "n", "n"]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: two columns have the name 'n'; rename one"):
        lines(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.jsonl.zst"])
def test_a_small_file_that_grows_without_an_end(tmp_path, monkeypatch, name):
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / name
    pack = gzip.compress if name.endswith("gz") else zstandard.compress
    path.write_bytes(pack(b"path\n" + bytes(1 << 24)))
    with pytest.raises(UserError, match="a line is longer than 1 MiB"):
        list(read_blocks(path))


# --- the whole ------------------------------------------------------------------------------------


def test_split_reads_a_folder(splitting, folder):
    splitting.run.configure(data={"input_jsonl": str(folder), "id_field": None})
    assert len(splitting().pending) == 5


def test_the_jsonl_that_a_folder_stands_for(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "a.mp4", seconds=2.0, width=64, height=48, fps=10)
    (folder / "b.mp4").write_text("no video")
    command = [sys.executable, "-m", "video_pipeline.samples", "clips", "-o", "samples.jsonl"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(
        [*command, "--probe"], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 2 headers could not be read" in done.stderr
    size = (folder / "a.mp4").stat().st_size
    expected = {"id": "a.mp4", "path": "clips/a.mp4", "size": size}
    first, second = lines(tmp_path / "samples.jsonl")
    assert first == {
        **expected,
        **{"duration": 2.0, "width": 64, "height": 48, "fps": 10.0, "codec": "h264"},
    }
    assert second == {"id": "b.mp4", "path": "clips/b.mp4", "size": 8}


def test_lists_of_images_are_found_from_another_folder(tmp_path):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    (inputs / "s.jsonl").write_text('{"path": ["a/1.png", "/b/2.png"], "title": "x"}\n')
    config = load_config({"data": {"input_jsonl": str(inputs / "s.jsonl")}})
    for folder, first in ((outputs, f"{inputs}/a/1.png"), (inputs, "a/1.png")):
        samples.write_samples(config, folder / "samples.jsonl", with_headers=False)
        assert lines(folder / "samples.jsonl") == [{"path": [first, "/b/2.png"], "title": "x"}]


def test_bad_lines_leave_no_jsonl(tmp_path):
    (tmp_path / "t.csv").write_text("path,video_start\na.mp4,soon\n")
    config = load_config({"data": {"input_jsonl": str(tmp_path / "t.csv")}})
    with pytest.raises(UserError, match="line 2: video_start"):
        samples.write_samples(config, tmp_path / "samples.jsonl", with_headers=False)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("failed_alone", [False, True])
def test_what_a_run_would_not_ask_about_is_no_line_of_the_jsonl(
    tmp_path, monkeypatch, failed_alone
):
    error = {"stage": "read", "type": "ValueError", "message": "no such clip"}
    records = [
        {"__key": "a", "__status": "error", "__error": error, "input": {"path": "a.mp4"}},
        {"__key": "b", "__status": "left_out", "__left_out": {"by": "error"}, "input": {"n": 1}},
        {"__key": "c", "__status": "ok", "input": {"path": "c.mp4"}},
    ]
    records = records[:1] if failed_alone else records
    text = "".join(json.dumps(record) + "\n" for record in records)
    output = Path(tmp_path / load_config({}).data.output_jsonl)
    output.parent.mkdir()
    output.write_text(text)
    monkeypatch.setattr(sys, "argv", ["samples", str(output), "-o", str(tmp_path / "s.jsonl")])
    monkeypatch.chdir(tmp_path)  # The output has the default name.
    samples.main()
    written = [Path(line["path"]).name for line in lines(tmp_path / "s.jsonl")]
    assert written == (["a.mp4"] if failed_alone else ["c.mp4"])

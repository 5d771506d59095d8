"""Files: whole or not there, each writer on its own, on the disk before anybody relies on them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest
from helpers import SCRIPTS
from video_pipeline.common.files import (
    EMPTY,
    Seal,
    make_folder,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_text,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- seals ---------------------------------------------------------------------------------------


def test_a_seal_fits_what_was_written_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    data = os.urandom(3 << 20)
    path.write_bytes(data)
    seal = EMPTY.extended(data[:1000]).extended(data[1000:])
    assert seal == Seal.of(path)
    assert seal.fits(path)
    for other in (b"", data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1]), data[::-1]):
        path.write_bytes(other)
        assert not seal.fits(path)
    path.unlink()
    assert not seal.fits(path)
    assert not EMPTY.fits(path)


# --- several writers -----------------------------------------------------------------------------


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """The last to end wins, and both were whole; also two threads of one process."""
    path = tmp_path / "file"
    with replacing(path) as stream:
        stream.write(b"one")
        thread = threading.Thread(target=write_text, args=(path, "two"))
        thread.start()
        thread.join()
        assert path.read_text() == "two"
        stream.write(b", more")
    assert path.read_text() == "one, more"
    assert names(tmp_path) == ["file"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(ZeroDivisionError), replacing(path) as stream:
        raise ZeroDivisionError(stream)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file"]


def test_who_may_read_a_file_is_as_usual(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "usual").write_text("")
    ours, usual = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "usual"))
    assert ours == usual


KILLED = """
import sys, time
from pathlib import Path
from video_pipeline.common.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    print("begun", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_has_left_goes_and_a_live_one_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", KILLED, str(path)]
    writers = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
        )
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"begun\n"
        (tmp_path / ".out.mine.tmp").write_text("of another program")
        assert len(names(tmp_path)) == 3
        remove_leftovers(tmp_path, "out")
        assert len(names(tmp_path)) == 3
        writers[0].kill()
        writers[0].wait()
        remove_leftovers(tmp_path, "other")
        assert len(names(tmp_path)) == 3
        remove_leftovers(tmp_path, "out")
        assert len(names(tmp_path)) == 2
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    remove_leftovers(tmp_path, "out")
    assert names(tmp_path) == [".out.mine.tmp"]


# --- what survives a power loss ------------------------------------------------------------------


def test_data_then_name_then_folder(tmp_path, synced):
    path = tmp_path / "deep" / "file"
    write_text(path, "text")
    made, temporary, renamed, named = synced
    assert made == str(tmp_path)  # the new folder's name
    assert temporary.startswith(str(path.with_name(".file.")))
    assert (renamed, named) == (f"-> {path}", str(path.parent))


def test_all_of_a_folder_before_its_name(tmp_path, synced):
    path = tmp_path / "set"
    with replacing_folder(path) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "part").write_text("x")
        (folder / "card").write_text("x")
    at = synced.index(f"-> {path}")
    inside = {str(tmp_path / ".set.tmp" / name) for name in ("card", "data", "data/part")}
    assert inside | {str(tmp_path / ".set.tmp")} == set(synced[:at])
    assert synced[at + 1 :] == [str(tmp_path)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_flush_a_folder(tmp_path, monkeypatch, code):
    """It is used as well as it can be; a disk that fails is an error."""

    def fsync(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            make_folder(tmp_path / "new")
    else:
        make_folder(tmp_path / "new")
        assert (tmp_path / "new").is_dir()

"""Each attempt keeps its own log."""

from __future__ import annotations

from video_pipeline.common import logs


def attempt(log, text: str):
    """What a job does: Snakemake deletes the log, the shell opens it, the job writes to it."""
    log.unlink(missing_ok=True)
    with open(log, "a") as stream:
        own = logs.begin_attempt(log)
        stream.write(text)
    return own


def test_the_logs_of_earlier_attempts_stay(tmp_path):
    log = tmp_path / "infer.rank3.log"
    first = attempt(log, "error: one\n")
    second = attempt(log, "two\n")
    assert [first.name, second.name] == ["infer.rank3.attempt1.log", "infer.rank3.attempt2.log"]
    assert first.read_text().endswith("error: one\n")
    assert first.read_text().startswith("=== 20")
    assert second.read_text() == log.read_text()
    assert "one" not in log.read_text()
    for _ in range(15):
        last = attempt(log, "more\n")
    attempt(tmp_path / "infer.rank30.log", "another's\n")
    kept = sorted(int(p.stem[19:]) for p in tmp_path.glob("infer.rank3.attempt*"))
    assert kept == list(range(8, 18))
    assert last.name == "infer.rank3.attempt17.log"


def test_where_a_file_system_has_no_links_there_is_one_log(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    log = tmp_path / "split.log"
    assert attempt(log, "error: one\n") == log


def test_the_last_error_is_all_that_follows(tmp_path):
    log = tmp_path / "split.log"
    assert logs.last_error(log) is None
    log.write_text("1 bad line\n")
    assert logs.last_error(log) is None
    log.write_text("error: old\nmore\nerror: 2 bad lines\n  line 3\n")
    assert logs.last_error(log) == "2 bad lines\n  line 3"

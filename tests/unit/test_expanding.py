"""``expand`` runs in processes that may die: a line that ends or holds one costs only itself."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager

import pytest
from helpers import EXPAND, samples
from video_pipeline.common.processes import MARK, job_processes
from video_pipeline.config import load_config
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.errors import EnvironmentFault, TaskError, UserError
from video_pipeline.run.layout import Layout
from video_pipeline.run.run import DatasetNeeds, Run
from video_pipeline.split.scanning import scan

pytestmark = pytest.mark.slow

WINDOWS = ("0.0-1.0", "1.0-2.5")

BAD = {
    "segfault": "ProcessDied: the decode process died (killed by SIGSEGV)",
    "killed": "ProcessDied: the decode process died (killed by SIGKILL",
    "die": "ProcessDied: the decode process died (exit code 7)",
    "hang": "TimeoutError: not ready after 1 s",
    "devour": "MemoryError: not enough memory; the limit of a decode process is",
}


def doing(*behaviours: str | None) -> list[dict]:
    return [{**samples(len(behaviours))[i], "do": do} for i, do in enumerate(behaviours)]


def cut(*numbers: int) -> list[str]:
    return [f"{number}@{times}" for number in numbers for times in WINDOWS]


@pytest.fixture
def expanding(splitting):
    """Splits samples that stand for two windows each."""
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    splitting.run.configure(data={"worker_memory_gb": 4.0})
    return splitting


@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_line_that_crashes_or_hangs_stays_one_sample(
    expanding, limit_begins, caplog, num_processes
):
    """Whatever the number of processes, and nothing is lost."""
    expanding.run.configure(data={"sample_timeout_s": 1.0})
    limit_begins(lambda key, line: b'"hang"' in line)
    entries = doing(None, *BAD, None)
    expanding(entries, num_processes=num_processes)
    bad = list(range(1, 1 + len(BAD)))
    assert expanding.order == [*cut(0), *map(str, bad), *cut(len(bad) + 1)]
    whole = {e.key: e.raw for chunk in expanding.chunks for e in chunk if e.key in map(str, bad)}
    assert whole == {str(number): entries[number] for number in bad}
    warnings = [r.getMessage() for r in caplog.records if "which samples" in r.getMessage()]
    assert len(warnings) == len(BAD)
    for number, warning, said in zip(bad, warnings, BAD.values(), strict=True):
        assert f"samples.jsonl, line {number + 1} ({number}): " in warning
        assert said in warning


def test_its_processes_know_the_commit_of_the_model(tmp_path, monkeypatch):
    """By which the files of the model that are here are found, and so its family."""
    asked = []

    @contextmanager
    def expanding(config, num_processes):
        asked.append(config.vllm.arguments["revision"])
        yield None

    monkeypatch.setattr("video_pipeline.decode.expanding.expanding", expanding)
    (tmp_path / "samples.jsonl").touch()
    data = {"input_jsonl": str(tmp_path / "samples.jsonl")}
    config = load_config({"data": data, "vllm": {"model": "lab/glm"}})
    run = Run(config, Layout.of(config, 1), commit="0" * 40)
    run.dataset = DatasetNeeds("clips", 1, 1, expands=True)
    assert list(scan(run, 1, with_identities=False)) == []
    assert asked == ["0" * 40]


def test_a_line_whose_process_died_by_accident_is_expanded(expanding, caplog):
    expanding(doing(None, "die once", None))
    assert expanding.order == cut(0, 1, 2)
    assert "which samples" not in caplog.text


def test_bad_lines_among_those_that_crash_are_told(expanding):
    with pytest.raises(UserError) as caught:
        expanding(doing("segfault", "raise", "exit", "silent", None))
    head, *lines = str(caught.value).splitlines()
    assert "3 bad line(s)" in head
    assert lines[0] == "  line 2: no such clip"
    assert lines[1].startswith("  line 3: SystemExit: 0 (")
    assert lines[2].startswith("  line 4: ValueError (")
    assert "plugin.py, line" in lines[2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"path": "ftp://a/b.mp4"}, "'ftp://a/b.mp4': only local paths"),
        ({"path": ["a.png", 3]}, "no video: field 'path' (data.video_field) must be a path"),
        ({"path": None}, "no video: field 'path' (data.video_field) must be a path"),
        ({"video_start": "a minute"}, "video_start: got 'a minute', expected seconds"),
    ],
)
def test_what_a_dataset_makes_of_a_line_is_checked_as_a_line_is(splitting, changed, said):
    expand = f"return [sample, {{**sample, **{changed!r}}}]"
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    splitting.run.edit_plugin(
        "        from video_pipeline.samples.windows import windows\n", f"        {expand}\n"
    )
    with pytest.raises(UserError, match=re.escape(f"line 1: {said}")):
        splitting(samples(1))


def test_fields_of_the_line_that_have_the_names_of_ours_stay(expanding):
    """A record that jq has made flat may have its key as the id."""
    expanding.run.configure(data={"id_field": "__key"})
    line = {"__key": "cat", "path": "cat.mp4", "__video_uri": "x"}
    expanding([line])
    windows = [entry for chunk in expanding.chunks for entry in chunk]
    assert sorted(entry.key for entry in windows) == [f"cat@{times}" for times in WINDOWS]
    assert all(line.items() <= entry.raw.items() for entry in windows)


def test_an_input_of_many_blocks_is_in_order(expanding):
    """With a line in each block that takes two processes with it."""
    entries = [{**sample, "hint": "h" * 2000} for sample in samples(600)]
    for number in (5, 300, 595):
        entries[number]["do"] = "segfault"
    expanding(entries, num_processes=2)
    expected = [str(n) if n in (5, 300, 595) else cut(n) for n in range(600)]
    assert expanding.order == [
        key for keys in expected for key in ([keys] if isinstance(keys, str) else keys)
    ]


IN_EXPAND = '        misbehave(sample.get("do"))\n        return windows'
IN_A_PROCESS = f"if {MARK!r} in os.environ: "  # split is in one, too, but loads the plugin before


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        (IN_EXPAND, "        return 7\n        return windows", TaskError, "it returned 7"),
        ("HERE = ", f"{IN_A_PROCESS}os._exit(9)\nHERE = ", UserError, "exit code 9"),
        (
            "HERE = ",
            f"{IN_A_PROCESS}os.kill(os.getpid(), 9)\nHERE = ",
            EnvironmentFault,
            "too little memory",
        ),
    ],
)
def test_what_is_no_fault_of_a_line_stops_split(expanding, old, new, error, said):
    expanding.run.edit_plugin(old, new)
    with pytest.raises(error, match=said):
        expanding(doing(None, None))


def test_the_limits_of_access_hold(expanding):
    expanding.run.edit_plugin(
        "        from video_pipeline.samples.windows import windows\n",
        "        from video_pipeline.samples.windows import windows\n"
        "        from video_pipeline.video.access import permitted\n"
        "        permitted('/etc/hostname')\n",
    )
    expanding.run.configure(data={"allowed_roots": ["."]})
    with pytest.raises(UserError, match=r"line 1: lies outside the folders of data.allowed_roots"):
        expanding(doing(None))


def test_other_datasets_start_no_process(splitting, monkeypatch):
    def start(*_):
        raise AssertionError("a fork server")

    monkeypatch.setattr(ForkServer, "_start", start)
    assert splitting(samples(3)).manifest.samples == 3


def test_the_mark_of_a_job_holds_again_after_an_inner_one(monkeypatch):
    with job_processes():
        outer = os.environ[MARK]
        with job_processes():
            assert os.environ[MARK] != outer
        assert os.environ[MARK] == outer
    assert MARK not in os.environ

"""The page about a run: what it collects, and that a gallery that fails costs only itself."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers import Run, Splitter, keys, samples
from video_pipeline.common.printable import printable
from video_pipeline.config import Config, load_config
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.report import error_groups, gallery, page, records
from video_pipeline.report.error_groups import ErrorGroups
from video_pipeline.report.gallery import make_sheets
from video_pipeline.report.page import collect, render, write_report
from video_pipeline.report.records import Tally, card
from video_pipeline.report.timeline import time_line
from video_pipeline.run.invoked import without_secrets
from video_pipeline.run.statistics import JobStatistics, read_statistics

CONFIG = load_config({"run": {"engine": "simulated"}, "report": {"samples": 5}})


def record(number: int, **fields: Any) -> dict[str, Any]:
    """A record of an output."""
    usage = {"prompt_tokens": 100 + number, "completion_tokens": 10, "finish_reason": "stop"}
    known = {"__key": str(number), "__status": "ok", "__task": "t", "__model": "m"}
    return {**known, "__usage": usage, "input": {"path": f"{number}.mp4"}, **fields}


def failed(number: int, stage: str = "read", message: str = "no such clip") -> dict[str, Any]:
    error = {"stage": stage, "type": "ValueError", "message": message}
    known = {"__key": str(number), "__status": "error", "__error": error}
    return {**known, "__task": "t", "__model": "m", "input": {"path": f"{number}.mp4"}}


def tally(
    records: Iterable[dict[str, Any]], config: Config = CONFIG, num_damaged: int = 0
) -> Tally:
    made = Tally(config, num_damaged)
    for number, entry in enumerate(records):
        made.add(number, json.dumps(entry).encode())
    return made


# --- records -------------------------------------------------------------------------------------


def test_chosen_by_the_seed_whatever_the_order() -> None:
    found = [record(number) for number in range(100)]
    chosen = {each["__key"] for each in tally(found).chosen}
    assert len(chosen) == 5
    again = tally(reversed(found)).chosen
    assert {each["__key"] for each in again} == chosen
    assert [int(each["__key"]) for each in again] == sorted(map(int, chosen), reverse=True)
    other = load_config({"report": {"samples": 5, "seed": 1}})
    assert {each["__key"] for each in tally(found, other).chosen} != chosen
    # one more sample takes the place of one at most
    more = {each["__key"] for each in tally([*found, record(100)]).chosen}
    assert len(more & chosen) >= 4
    assert tally(found, load_config({"report": {"samples": 0}})).chosen == []


def test_errors_are_listed_up_to_a_bound_and_some_of_each_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MOST_ERRORS", 3)
    errors = [failed(n, message=f"message {n}") for n in range(6)]
    made = tally([*errors, failed(6, "parse"), failed(7, "crash"), failed(8, "parse")])
    assert (made.ok, made.failed) == (0, 9)
    groups = made.error_groups.by_count()
    assert [(each.stage, each.message, each.count) for each in groups] == [
        ("read", "message …", 6),
        ("parse", "no such clip", 2),
        ("crash", "no such clip", 1),
    ]
    assert groups[0].examples == [("0", "message 0"), ("1", "message 1"), ("2", "message 2")]
    assert [(each["key"], each["group"]) for each in made.errors] == [
        *(("0", 0), ("1", 0), ("2", 0)),
        *(("6", 1), ("7", 2), ("8", 1)),
    ]
    # of what could not be read there is nothing to see
    assert [each["__key"] for each in made.seen_errors] == ["6"]


def test_errors_with_many_texts_do_not_fill_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_ERROR_BYTES", 30_000)
    texts = {f"question {number}": "a" * 300 for number in range(20)}
    made = tally({**failed(n, "parse"), "output_text": texts} for n in range(100))
    assert (made.failed, len(made.errors)) == (100, 5)


def grouped(*errors: tuple[str, str, str]) -> list[tuple[str, int]]:
    """Messages and counts of the groups of errors, each with its message, key and path."""
    groups = ErrorGroups()
    for message, key, path in errors:
        groups.add({"stage": "read", "type": "E", "message": message}, key, path)
    return [(each.message, each.count) for each in groups.by_count()]


def test_errors_that_say_the_same_are_one_group() -> None:
    assert grouped(
        ("No such file: /data/my clips/a b.mp4", "k-1", "my clips/a b.mp4"),
        ("No such file: /data/my clips/other.mp4", "k-2", "my clips/other.mp4"),
        ("the prompt has 9012 tokens, the model takes 8192", "k-3", "c.mp4"),
        ("the prompt has 70 tokens, the model takes 8192", "k-4", "d.mp4"),
        ("the prompt has 8192 tokens, the model takes 8192", "k-5", "e.mp4"),
        ("sample the-key: it can't be read", "the-key", "e.mp4"),
        ("sample another one: it can't be read", "another one", "e.mp4"),
        ("field 'title' is missing", "k-6", "f.mp4"),
    ) == [
        ("the prompt has … tokens, the model takes 8192", 3),
        ("No such file: …", 2),
        ("sample …: it can't be read", 2),
        ("field 'title' is missing", 1),
    ]


def test_there_are_not_more_groups_than_the_page_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_groups, "MOST_GROUPS", 3)
    found = grouped(*((f"error {'x' * n}", "k", "p") for n in range(6)), ("error ", "k", "p"))
    assert found == [("other errors", 4), ("error ", 2), ("error x", 1)]


def test_a_command_is_shown_without_its_secrets() -> None:
    arguments = [
        *("--cores", "8", "--storage-s3-secret-key", "abc", "--storage-s3-access-key=def"),
        *("--config", "input=https://me:pw@host/list.jsonl?sig=1", "max_tokens=5", "--quiet"),
        "data={input_jsonl: 'https://me:pw@host/list.jsonl?sig=1', video_field: video}",
        "data={input_jsonl: HTTPS://me:pw@host/list.jsonl?sig=1, video_field: video}",
        *("input=HTTPS://me:p'w@host/list.jsonl?sig=a}b", 'input=https://host/a.mp4?sig="b"'),
    ]
    assert without_secrets(arguments) == [
        *("--cores", "8", "--storage-s3-secret-key", "***", "--storage-s3-access-key=***"),
        *("--config", "input=https://host/list.jsonl", "max_tokens=5", "--quiet"),
        "data={input_jsonl: 'https://host/list.jsonl', video_field: video}",
        "data={input_jsonl: https://host/list.jsonl, video_field: video}",
        *("input=https://host/list.jsonl", "input=https://host/a.mp4"),
    ]


def test_a_card_of_several_answers() -> None:
    shown = card(
        record(
            1,
            input={"path": "1.mp4", "video_start": 2, "video_end": 4.5},
            output_text={"one": "the same", "two": '{"mood": "calm"}'},
            one={"answer": "the same"},
            two={"mood": "calm", "tags": ["a", "b"], "boxes": [[1, 2], [3, 4]]},
            __reasoning={"two": "hm"},
        ),
        CONFIG,
    )
    assert shown["fields"] == [
        ["one · answer", "the same"],
        ["two · mood", "calm"],
        ["two · tags", "• a\n• b"],
        ["two · boxes", "[[1, 2], [3, 4]]"],
    ]
    # what a field says already is not said twice
    assert shown["said"] == [["output_text · two", '{"mood": "calm"}']]
    assert shown["reasoning"] == [["reasoning · two", "hm"]]
    assert shown["span"] == [2, 4.5]
    assert shown["usage"] == [101, 10, "stop"]


def test_long_texts_are_cut_and_say_so() -> None:
    shown = card(record(1, caption="x" * 10**6), CONFIG)
    ((_, text),) = shown["fields"]
    assert text.endswith("(the first 20,000 of 1,000,000 characters)")
    assert len(text) < 20_100


CUT_OFF = {"prompt_tokens": 9, "completion_tokens": 4, "finish_reason": "length"}


def test_some_of_the_answers_that_were_cut_off_are_always_shown() -> None:
    config = load_config({"report": {"samples": 8}})
    few = [record(n, __usage=CUT_OFF) if n in (50, 77) else record(n) for n in range(1000)]
    made = tally(few, config)
    assert {"50", "77"} <= {each["__key"] for each in made.chosen}
    assert len(made.chosen) == 8 + 2
    # not more than a quarter as many, and none twice
    every = tally([record(n, __usage=CUT_OFF) for n in range(1000)], config)
    assert len(every.chosen) == 8
    assert tally(few, load_config({"report": {"samples": 0}})).chosen == []


def test_some_of_the_damaged_videos_are_always_shown() -> None:
    """But not if the task has given a field of its own that name."""
    config, each = load_config({"report": {"samples": 8}}), [record(n) for n in range(1000)]
    for damaged in (each[50], each[77], each[99]):
        damaged["damaged"] = True
    for num_damaged, num_chosen in ((3, 8 + 2), (0, 8)):
        made = tally(each, config, num_damaged)
        assert len(made.chosen) == num_chosen
        shown = {entry["__key"] for entry in made.chosen if "damaged" in entry}
        assert shown < {"50", "77", "99"}
        assert len(shown) == num_chosen - 8


# --- time line -----------------------------------------------------------------------------------


def job(rank: int, start: float, seconds: float, **fields: Any) -> dict[str, Any]:
    """The statistics of an attempt that began at ``start`` and ran for ``seconds``."""
    made = JobStatistics(rank, 1, host=f"node{rank}", started_at=start)
    made.ready_at, made.lasted, made.state = start + 10, seconds, "done"
    steps = int(seconds)
    series = {
        "step": 1.0,
        **{name: [0.0] * steps for name in ("failed", "tokens", "busy")},
        "inferred": [2] * steps,
        "decode": [0.5] * steps,
        "engine": [0.25] * steps,
    }
    made.inferred = 2 * steps
    made.limits = {"decode": 0.5 * steps, "network": 0.0, "engine": 0.25 * steps}
    return {**made.as_dict(), "series": series, **fields}


def test_time_line_of_ranks() -> None:
    line = time_line([job(0, 1000.0, 40), job(1, 1000.0, 100)])
    assert (line["seconds"], line["began"], line["ended"]) == (100, 1000, 1100)
    assert line["pauses"] == []
    assert line["starts"] == {"count": 2, "median": 10, "longest": 10}
    first, second = line["ranks"]
    assert (first["ended"], second["ended"]) == (40, 100)
    assert first["host"] == "node0"
    assert first["waiting_share"] == pytest.approx(2 / 3, abs=1e-4)
    (bar,) = first["attempts"]
    assert (bar["start"], bar["ready"], bar["end"], bar["state"]) == (0, 10, 40, "done")
    assert set(bar["decode"]) == {"4"}  # half of nine, to the even digit
    assert set(bar["engine"]) == {"2"}
    curves = line["curves"]
    assert curves["inferred"][:40] == [4] * 40
    assert curves["inferred"][40:100] == [2] * 60
    assert (curves["jobs"][0], curves["jobs"][99]) == (2, 1)
    assert line["remarks"] == [
        "Rank 1 ended last, 30 s after the median of 2 ranks.",
        "Rank 1 waited longest for videos: 50 s, 67% of its time.",
    ]


def test_pauses_are_cut_out_and_nothing_is_lost() -> None:
    """A killed attempt, and one on the next day."""
    jobs = [job(0, 1000.0, 100, state="running"), job(0, 90_000.0, 50), job(1, 90_010.0, 50)]
    line = time_line(jobs)
    assert line["seconds"] == 160
    assert line["pauses"] == [{"at": 100, "seconds": 88_900}]
    curves = line["curves"]
    samples = sum(rate * curves["width"] for rate in curves["inferred"])
    assert samples == pytest.approx(sum(each["inferred"] for each in jobs), rel=0.02)
    killed, again = line["ranks"][0]["attempts"]
    assert (killed["state"], again["start"]) == ("running", 100)
    assert line["remarks"][-1] == "1 attempt did not end well, of 1 of 2 ranks."
    assert curves["means"]["inferred"] == pytest.approx(400 / 160, abs=0.02)


def test_what_was_counted_in_the_last_moment_is_on_the_curves() -> None:
    spent = job(0, 1000.0, 41)
    line = time_line([{**spent, "lasted": 40.4}])
    curves = line["curves"]
    assert len(curves["inferred"]) == 41
    assert curves["means"]["inferred"] == pytest.approx(spent["inferred"] / 40.4, abs=0.001)
    assert curves["inferred"][-1] == pytest.approx(2 / 0.4, abs=0.01)
    # Here it came after the end, so it belongs to the last step.
    curves = time_line([{**spent, "lasted": 40.0}])["curves"]
    assert curves["inferred"] == [2] * 39 + [4]


def test_an_attempt_that_never_had_a_request() -> None:
    line = time_line([job(0, 1000.0, 5, ready_at=None, state="starting")])
    assert line["starts"] is None
    (bar,) = line["ranks"][0]["attempts"]
    assert (bar["ready"], bar["end"]) == (5, 5)


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture
def finished(splitting: Splitter) -> Splitter:
    """Six samples that an earlier run answered."""
    splitting(samples(6), 1).finish(*keys(6))
    splitting(num_shards=1)
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    return splitting


def embedded(html: str) -> Any:
    """The data in a page."""
    packed = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_page_counts_what_the_summary_counts(
    splitting: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = splitting.run
    run.configure(report={"samples": 3})
    bad = {2: "raise", 5: "raise"}
    splitting([{**each, "do": bad.get(each["id"])} for each in samples(8)], 1)
    infer(run.config, splitting.layout, 0, 1)
    consolidate(run.config, splitting.layout)
    monkeypatch.setattr(page, "make_sheets", lambda config, seen, n: [gallery.Sheet()] * len(seen))
    layout = splitting.layout
    write_report(run.config, layout, 1)
    data = embedded(layout.report.read_text(encoding="utf-8"))
    summary = run.summary()
    assert data["samples"] == summary["samples"]
    assert data["samples"]["truncated"] == 0
    assert data["cut_off"] == data["damaged"] == ""
    assert data["usage"] == summary["usage"]
    assert data["gallery"]["answered"] == summary["samples"]["ok"] == 6
    assert data["gallery"]["failed"] == data["gallery"]["listed"] == 2
    assert [(each["stage"], each["type"], each["count"]) for each in data["error_groups"]] == [
        ("read", "ValueError", 2)
    ]
    assert [each["key"] for each in data["cards"] if each.get("failed")] == ["2", "5"]
    assert len(data["cards"]) == 3 + 2
    jobs = read_statistics(Path(summary["journal"]))
    assert sum(row["inferred"] for row in data["time"]["ranks"]) == 6
    assert sum(row["failed"] for row in data["time"]["ranks"]) == 2
    reading, engine, prompts, answers = data["histograms"]
    assert reading["total"] == sum(sum(j["histograms"]["decode_seconds"].values()) for j in jobs)
    assert engine["total"] == prompts["total"] == answers["total"] == 6
    assert answers["quantiles"] == {"p50": 16, "p95": 16, "p99": 16}
    assert prompts["edges"][0] <= prompts["quantiles"]["p50"] < prompts["edges"][-1]


def test_lines_that_are_no_samples_are_counted(splitting: Splitter) -> None:
    splitting.run.configure(data={"where": "id < 2"})
    splitting(samples(8), 1)
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    html = render(collect(splitting.run.config, splitting.layout, 1))
    assert "<small>8 lines, 6 dropped by data.where</small>" in html
    summary = splitting.run.summary()
    del summary["samples"]["dropped"]  # As in an earlier version.
    splitting.layout.summary.write_text(json.dumps(summary))
    html = render(collect(splitting.run.config, splitting.layout, 1))
    assert "<small>8 lines</small>" in html


def test_answers_that_were_cut_off_stand_out(
    splitting: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = splitting.run
    run.configure(sampling={"max_tokens": 4}, report={"samples": 3})
    monkeypatch.setattr(page, "make_sheets", lambda config, seen, n: [gallery.Sheet()] * len(seen))
    splitting(samples(2), 1)
    infer(run.config, splitting.layout, 0, 1)
    consolidate(run.config, splitting.layout)
    html = render(collect(run.config, splitting.layout, 1))
    assert '<p class="verdict warn">2 answers were cut off: raise sampling.max_tokens.' in html
    assert '<option value="cut">cut off</option>' in html
    assert [each["usage"][2] for each in embedded(html)["cards"]] == ["length", "length"]
    assert "of them because" not in html


def test_damaged_videos_stand_out(splitting: Splitter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of twelve, of which the choice of four has none; a quarter as many are added."""
    run = splitting.run
    run.configure(report={"samples": 4})
    monkeypatch.setattr(page, "make_sheets", lambda config, seen, n: [gallery.Sheet()] * len(seen))
    note = """if sample["id"] in (0, 1):
            from video_pipeline.video.errors import note_damage

            note_damage("a packet is lost")
        item ="""
    run.edit_plugin("item =", note)
    splitting(samples(12), 1)
    infer(run.config, splitting.layout, 0, 1)
    consolidate(run.config, splitting.layout)
    html = render(collect(run.config, splitting.layout, 1))
    words = "2 answers are about the part of a damaged video that could be read."
    assert f'<p class="verdict warn">{words}' in html
    assert '<option value="damaged">damaged</option>' in html
    assert "<b>2</b><span>damaged</span>" in html
    cards = embedded(html)["cards"]
    assert [["damaged", "true"] in each["fields"] for each in cards].count(True) == 1
    assert len(cards) == 5
    assert "1 of them because their answer\n    was cut off or their video is damaged" in html


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "</textarea></style></title><img src=x onerror='window.hacked = 3'>",
    "]]> <!-- <script> -->",
    "\u202egpj.exe \x00\x07\x1b[2J \u2028 & &amp; \"quoted' `",
]


def test_whatever_comes_from_outside_is_data(finished: Splitter) -> None:
    data = collect(finished.run.config, finished.layout, 1)
    for number, text in enumerate(HOSTILE):
        data["cards"].append({"key": text, "path": text, "fields": [[text, text]], "input": text})
        examples = [[text, text]]
        group = {"number": number, "stage": "read", "type": text, "message": text}
        data["error_groups"].append({**group, "count": 1, "examples": examples})
        data["setup"]["settings"].append((text, text))
        data["setup"]["command"] = data["prompts"][text] = text
        data[("title", "task", "model", "output", "errors_file")[number]] = text
    html = render(data)
    shown = embedded(html)
    assert [each["key"] for each in shown["cards"][-5:]] == [
        *HOSTILE[:4],
        "\\u202egpj.exe \\x00\\x07\\x1b[2J \\u2028 & &amp; \"quoted' `",
    ]
    # two scripts and nothing else: the data and the page's own
    assert html.count("<script") == html.count("</script") == 2
    assert "<img src=x" not in html
    assert "<!--" not in html
    assert not re.search("[\x00-\x08\u2028\u202e]", html)


def test_texts_of_all_languages_stay_as_they_are() -> None:
    text = "\u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f469 全\u3000角\u00a0\ttab\nline"
    assert printable(text) == text
    assert printable("one\r\ntwo") == "one\ntwo"
    assert printable("one\ttwo\n", newlines=False) == r"one\ttwo\n"


def test_the_policy_lets_nothing_out(finished: Splitter) -> None:
    html = render(collect(finished.run.config, finished.layout, 1))
    policy = re.search('Content-Security-Policy" content="(.*?)"', html)
    assert policy is not None
    rules = dict(rule.split(maxsplit=1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert all(rules[name].startswith("'sha256-") for name in ("style-src", "script-src"))
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["']?(?!#|data:)\w+""", html.partition("<script>")[0]
    )


# --- the gallery ---------------------------------------------------------------------------------


@pytest.mark.as_users
def test_a_sample_that_kills_its_reader_costs_its_sheet_only(here: Run) -> None:
    bad = {1: "die", 2: "raise", 3: "hang"}
    here.configure(data={"sample_timeout_s": 20.0})  # Enough for the others on a busy machine.
    config = here.config
    found = [record(n, input={**each, "do": bad.get(n)}) for n, each in enumerate(samples(6))]
    pictures = {"prompt": "x", "multi_modal_data": {"image": ["no picture"]}}
    found[4]["input"]["returns"] = {"llm_input": pictures}
    sheets = make_sheets(config, found, 2)
    assert (sheets[4].problem or "").startswith("no picture: ValueError")
    del sheets[4]
    assert [sheet.problem for sheet in sheets] == [
        None,
        "the decode process died (exit code 7)",
        "no such clip",
        "not ready after 20 s",
        None,
    ]
    assert sheets[0].prompts == sheets[4].prompts == {"": "x" * 40}
    assert {(sheet.image, sheet.count) for sheet in sheets} == {(None, 0)}


def test_a_gallery_that_cannot_be_made_is_no_failure(here: Run) -> None:
    here.edit_plugin('dataset_name = "plain"', 'dataset_name = "gone"')
    problems = {sheet.problem for sheet in make_sheets(here.config, [record(0), record(1)], 1)}
    assert len(problems) == 1
    assert "gone" in (problems.pop() or "")


def test_a_video_that_was_replaced_after_the_run_is_not_shown(splitting: Splitter) -> None:
    """The model has not seen it."""
    splitting.run.configure(report={"samples": 3})
    entries = samples(3)
    for entry in entries:
        Path(entry["path"]).touch()
    splitting(entries, 1)
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    later = time.time() + 10
    os.utime(entries[1]["path"], (later, later))
    shown = collect(splitting.run.config, splitting.layout, 1)["cards"]
    assert [each["problem"] for each in shown] == [None, page.CHANGED, None]


def test_a_storage_that_hangs_ends_the_gallery(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "GALLERY_SECONDS", 0.1)
    (sheet,) = make_sheets(here.config, [record(0, input={"path": "0.mp4", "do": "hang"})], 1)
    assert sheet.problem == "not made: the gallery took longer than 0.1 s"

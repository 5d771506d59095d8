"""Output records and the error rate."""

from __future__ import annotations

import contextlib
import math

import orjson
import pytest
from video_pipeline.chunks import ChunkEntry
from video_pipeline.config import load_config
from video_pipeline.errors import TaskError, UserError
from video_pipeline.records import ErrorRate, Records
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.structured_caption import StructuredCaption

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "finish_reason": "stop"}
RAW = {"path": "a.mp4", "title": "t"}
ENTRY = ChunkEntry("key", "r" * 32, RAW, None)


class Parsing(Task):
    """A task whose ``parse`` a test chooses."""

    name = "parsing"

    def build_messages(self, sample):
        return []

    def parse(self, generated_text, sample):
        return self.params["parse"](generated_text, sample)


def build(task: Task, text: str = "some text", **settings) -> dict:
    journaled = {"__key": "key", "__part": "", "__request": "r", "output_text": text}
    records = Records(load_config(settings), task)
    return records.build(ENTRY, {**journaled, "__usage": USAGE})


def build_parsed(parse, text: str = "some text") -> dict:
    return build(Parsing({"parse": parse}), text)


def test_an_ok_record():
    record = build(Describe(), " It rains. ", vllm={"model": "m"})
    assert record == {
        "__key": "key",
        "__status": "ok",
        "__task": "describe",
        "__model": "m",
        "__usage": USAGE,
        "input": RAW,
        "output_text": " It rains. ",
        "description": "It rains.",
    }


def test_a_simulated_record_says_so():
    assert build(Describe(), run={"engine": "simulated"})["__model"] == "simulated"


def test_an_error_record_of_the_journal():
    error = {"stage": "read", "type": "ValueError", "message": "no"}
    record = Records(load_config({"vllm": {"model": "m"}}), Describe()).build(
        ENTRY, {"__key": "key", "__part": "", "__request": "r", "__error": error}
    )
    assert record == {
        "__key": "key",
        "__status": "error",
        "__error": error,
        "__task": "describe",
        "__model": "m",
        "input": RAW,
    }


def test_an_error_after_the_answer_keeps_the_answer():
    error = {"stage": "length", "type": "Length", "message": "cut off"}
    journaled = {"__key": "key", "__error": error, "output_text": "half", "__usage": USAGE}
    record = Records(load_config({}), Describe()).build(ENTRY, journaled)
    assert (record["output_text"], record["__usage"]) == ("half", USAGE)


def test_parse_sees_text_and_sample():
    seen = []
    build_parsed(lambda text, sample: seen.append((text, sample)) or {}, "text")
    ((text, sample),) = seen
    assert text == "text"
    assert sample["__key"] == "key"
    assert sample["__video_uri"].endswith("/a.mp4")
    assert sample["title"] == "t"


def test_a_parse_that_fails_is_an_error_record_that_keeps_the_text():
    def fails(text, sample):
        raise LookupError("no colour")

    record = build_parsed(fails, "the text")
    assert record["__status"] == "error"
    assert record["__error"]["stage"] == "parse"
    assert record["__error"]["type"] == "LookupError"
    line = fails.__code__.co_firstlineno + 1
    for said in ("no colour", __file__, f"line {line}"):
        assert said in record["__error"]["message"]
    assert record["output_text"] == "the text"
    assert record["__usage"] == USAGE


def test_a_parse_that_fails_in_a_library_names_the_users_line():
    def fails(text, sample):
        return orjson.loads(text) or math.sqrt("x")

    def deep(text, sample):
        import json

        return json.loads(text)

    for parse, offset in ((fails, 1), (deep, 3)):
        message = build_parsed(parse)["__error"]["message"]
        assert f"{__file__}, line {parse.__code__.co_firstlineno + offset}" in message


@pytest.mark.parametrize("name", ["__key", "__anything", "input", "output_text"])
def test_reserved_names_are_refused(name):
    with pytest.raises(TaskError, match=rf"'parsing': parse returned '{name}'.*reserved"):
        build_parsed(lambda text, sample: {"answer": 1, name: 2})


@pytest.mark.parametrize("value", [None, "text", ["a"], {1: 2}])
def test_parse_must_return_a_dict(value):
    with pytest.raises(TaskError, match="'parsing': parse must return a dict"):
        build_parsed(lambda text, sample: value)


UNFIT = {
    "a set": {1},
    "an object": object(),
    "bytes": b"x",
    "half a surrogate pair": "\ud800",
    "a number of 70 bits": 1 << 70,
    "a key that is no text": {"deep": {1: 2}},
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_json_cannot_carry_costs_only_its_sample_or_is_named(case):
    """Either the task is blamed by name, or the sample gets an error record; never a crash."""
    with contextlib.suppress(TaskError):
        record = build_parsed(lambda text, sample: {"value": UNFIT[case]})
        assert orjson.loads(orjson.dumps(record))["__error"]["stage"] == "parse"


ANSWERS = {
    "half a surrogate pair": '{"scene": "\\ud83d"}',
    "a number of 70 bits": '{"n": 1180591620717411303424}',
    "deeper than can be written": '{"a": ' + "[" * 300 + "]" * 300 + "}",
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_models_odd_json_costs_only_its_sample(case):
    record = build(StructuredCaption(), ANSWERS[case])
    line = orjson.loads(orjson.dumps(record))
    assert line["__status"] == "error"
    assert line["__error"]["stage"] == "parse"
    assert line["output_text"] == ANSWERS[case]


def test_parse_cannot_change_the_input():
    entry = ChunkEntry("key", "r" * 32, {"path": "a.mp4", "tags": ["b", "a"]}, None)
    task = Parsing({"parse": lambda text, sample: {"first": sorted(sample["tags"])[0]}})
    sorting = Parsing({"parse": lambda text, sample: sample["tags"].sort() or {}})
    for each in (task, sorting):
        record = Records(load_config({}), each).build(
            entry, {"output_text": "x", "__usage": USAGE, "__key": "key"}
        )
        assert record["input"]["tags"] == ["b", "a"]


# --- structured captions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"scene": "rain"}',
        ' {"scene": "rain"}\n',
        '```json\n{"scene": "rain"}\n```',
        'Here it is:\n```\n{"scene": "rain"}\n```\nThat was it.',
    ],
)
def test_a_structured_caption(text):
    assert build(StructuredCaption(), text)["caption"] == {"scene": "rain"}


@pytest.mark.parametrize("text", ["", "It rains.", '{"scene": ', '["scene"]', "null"])
def test_no_structured_caption(text):
    error = build(StructuredCaption(), text)["__error"]
    assert error["stage"] == "parse"
    assert "JSON" in error["message"]


# --- the error rate ----------------------------------------------------------------------------


def counted(limit: float, ok: int, failed: int) -> ErrorRate:
    rate = ErrorRate(limit)
    for _ in range(ok):
        rate.count()
    for _ in range(failed):
        rate.count({"stage": "read", "type": "ValueError", "message": "no such clip"})
    return rate


@pytest.mark.parametrize(
    ("limit", "ok", "failed", "exceeded"),
    [
        (0.1, 0, 19, False),  # nobody looks yet
        (0.1, 0, 20, True),
        (0.1, 180, 20, False),  # just at the limit
        (0.1, 179, 20, True),
        (0.0, 1000, 19, False),
        (0.0, 1000, 20, True),
        (1.0, 0, 5000, False),
    ],
)
def test_the_error_rate(limit, ok, failed, exceeded):
    assert counted(limit, ok, failed).exceeded() is exceeded


def test_an_error_rate_that_is_passed_says_what_to_do():
    counted(0.1, 180, 20).check("rank 3")
    with pytest.raises(UserError, match=r"rank 3: 30 of 130 .*run\.max_error_rate: 0\.1"):
        counted(0.1, 100, 30).check("rank 3")

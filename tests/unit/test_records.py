"""Output records and the error rate."""

from __future__ import annotations

import gc
import json
import math
import sys
import weakref
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
from pydantic import create_model
from video_pipeline.config import load_config
from video_pipeline.errors import TaskError, UserError
from video_pipeline.output.records import RecordBuilder
from video_pipeline.run.chunks import ChunkEntry
from video_pipeline.run.error_rate import ErrorRate
from video_pipeline.tasks.base import ONLY_PART, Task
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.schemas import schema_text
from video_pipeline.tasks.structured_caption import StructuredCaption

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "finish_reason": "stop"}
RAW = {"path": "a.mp4", "title": "t"}
ENTRY = ChunkEntry("key", {ONLY_PART: "r" * 32}, orjson.dumps(RAW), {})


class Parsing(Task):
    """A task whose ``parse`` a test chooses."""

    name = "parsing"

    def build_messages(self, sample):
        return []

    def parse(self, generated_text, sample):
        return self.params["parse"](generated_text, sample)


def record_of(task: Task, entry: ChunkEntry, journaled: dict, **settings) -> dict:
    """The record that stands in the line, whose error and usage are known beside it."""
    built = RecordBuilder(load_config(settings), task).build(entry, journaled)
    record = orjson.loads(built.line)
    assert built.line.endswith(b"}\n")
    assert record.get("__error") == built.error
    assert record.get("__usage") == built.usage
    return record


def build(task: Task, text: str = "some text", **settings) -> dict:
    journaled = {"__key": "key", "__part": "", "__request": "r", "output_text": text}
    return record_of(task, ENTRY, {ONLY_PART: {**journaled, "__usage": USAGE}}, **settings)


def build_parsed(parse, text: str = "some text") -> dict:
    return build(Parsing({"parse": parse}), text)


def answered(text: str | list[str], **more: Any) -> dict[str, Any]:
    return {"output_text": text, "__usage": USAGE, **more}


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
    journaled = {"__key": "key", "__part": "", "__request": "r", "__error": error}
    record = record_of(Describe(), ENTRY, {ONLY_PART: journaled}, vllm={"model": "m"})
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
    record = record_of(Describe(), ENTRY, {ONLY_PART: journaled})
    assert (record["output_text"], record["__usage"]) == ("half", USAGE)


def test_a_damaged_video_is_named_in_its_record():
    journaled = {"output_text": "text", "__usage": USAGE, "damaged": True}
    assert record_of(Describe(), ENTRY, {ONLY_PART: journaled})["damaged"] is True
    assert RecordBuilder(load_config({}), Describe()).build(ENTRY, {ONLY_PART: journaled}).damaged
    assert "damaged" not in build(Describe())


def test_a_field_of_the_tasks_own_goes_before_the_damage():
    journaled = {"output_text": "text", "__usage": USAGE, "damaged": True}
    task = Parsing({"parse": lambda text, sample: {"damaged": "a dent"}})
    built = RecordBuilder(load_config({}), task).build(ENTRY, {ONLY_PART: journaled})
    assert built.line.count(b'"damaged"') == 1
    assert orjson.loads(built.line)["damaged"] == "a dent"
    assert not built.damaged


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
    for text in ("no colour", __file__, f"line {line}"):
        assert text in record["__error"]["message"]
    assert record["output_text"] == "the text"
    assert record["__usage"] == USAGE


def test_a_parse_that_ends_the_process_is_an_error_record():
    record = build_parsed(lambda text, sample: sys.exit(0), "the text")
    error = record["__error"]
    assert (error["stage"], error["type"], record["output_text"]) == (
        *("parse", "SystemExit"),
        "the text",
    )
    assert __file__ in error["message"]


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
    """Else only that sample fails, as if parse had raised an exception."""
    error = build_parsed(lambda text, sample: value)["__error"]
    said = f"parse must return a dict with text keys, it returned {value!r}"
    assert error == {"stage": "parse", "type": "ValueError", "message": said}


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
NOT_JSON = "a value that JSON cannot hold: "
UNFIT = {
    "a set": ({1}, f"{NOT_JSON}Type is not JSON serializable: set"),
    "an object": (object(), f"{NOT_JSON}Type is not JSON serializable: object"),
    "bytes": (b"x", f"{NOT_JSON}Type is not JSON serializable: bytes"),
    "numpy": (np.float32(1), f"{NOT_JSON}Type is not JSON serializable: numpy.float32"),
    "half a surrogate pair": (
        "\ud800",
        f"{NOT_JSON}str is not valid UTF-8: surrogates not allowed",
    ),
    "a number of 70 bits": (
        [1 << 70],
        "a number that does not fit in 64 bits; return it as text",
    ),
    "a key that is no text": ({"deep": {1: 2}}, "a dict that has keys other than text"),
    "a circle": (CIRCLE, "a value that is nested too deep"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_json_cannot_carry_costs_only_its_sample(case):
    value, why = UNFIT[case]
    record = build_parsed(lambda text, sample: {"fits": 1, "value": value})
    assert record["__status"] == "error"
    assert record["__error"] == {
        "stage": "parse",
        "type": "ValueError",
        "message": f"parse returned 'value' with {why}",
    }


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
    text = b'{"path": "a.mp4", "tags": ["b", "a"]}'
    entry = ChunkEntry("key", {ONLY_PART: "r" * 32}, text, {})
    task = Parsing({"parse": lambda text, sample: {"first": sorted(sample["tags"])[0]}})
    sorting = Parsing({"parse": lambda text, sample: sample["tags"].sort() or {}})
    for parsing in (task, sorting):
        journaled = {"output_text": "x", "__usage": USAGE, "__key": "key"}
        record = record_of(parsing, entry, {ONLY_PART: journaled})
        assert record["input"]["tags"] == ["b", "a"]


# --- structured captions -----------------------------------------------------------------------


CAPTION = {
    "subjects": [],
    "scene": "rain",
    "camera": {"shot_size": "wide", "angle": "low", "movement": "none"},
    "time_order": ["it rains"],
}


def test_a_structured_caption():
    assert build(StructuredCaption(), json.dumps(CAPTION))["caption"] == CAPTION


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the answer at the top: Invalid JSON"),
        ('{"scene": ', "the answer at the top: Invalid JSON"),
        ('["scene"]', "the answer at the top: Input should be an object"),
        (json.dumps({**CAPTION, "camera": {}}), "the answer at camera.shot_size: Field required"),
    ],
)
def test_no_structured_caption(text, message):
    error = build(StructuredCaption(), text)["__error"]
    assert error["stage"] == "parse"
    assert error["message"].startswith(message)


def test_a_bare_control_character_in_a_text_is_one_of_its_characters():
    text = json.dumps({**CAPTION, "scene": "rain and-wind"}).replace("-", "\t").replace("{", "{\n")
    assert build(StructuredCaption(), text)["caption"]["scene"] == "rain and\twind"
    assert build(Counting(), '{"people": 4, "of": "a\tb"}')["twice"] == 8


class Counting(Task):
    """A task with a JSON Schema of its own."""

    name = "counting"
    output_schema: ClassVar = {
        "type": "object",
        "properties": {"people": {"type": "integer"}},
        "required": ["people"],
    }

    def build_messages(self, sample):
        return [{"role": "user", "content": "How many?"}]

    def parse(self, generated_text, sample):
        return {"twice": 2 * generated_text["people"]}


def test_parse_gets_the_object_of_a_json_schema():
    assert build(Counting(), '{"people": 4}')["twice"] == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("four", "the answer is not JSON"),
        ('{"people": "four"}', "the answer at $.people: 'four' is not of type 'integer'"),
    ],
)
def test_an_answer_that_does_not_follow_its_json_schema(text, message):
    error = build(Counting(), text)["__error"]
    assert error["stage"] == "parse"
    assert error["message"].startswith(message)


class Choosing(Task):
    """A task whose answer is one of two texts."""

    name = "choosing"
    output_schema: ClassVar = ["film", "cartoon"]

    def build_messages(self, sample):
        return [{"role": "user", "content": "Which?"}]

    def parse(self, generated_text, sample):
        return {"kind": generated_text}


def test_parse_gets_a_text_of_the_list():
    assert build(Choosing(), " film\n")["kind"] == "film"
    spaced = type("Spaced", (Choosing,), {"output_schema": [" yes", "yes\n", "no "]})
    assert build(spaced(), "yes\n")["kind"] == "yes\n"
    assert build(spaced(), "no")["kind"] == "no "  # As it comes from a model that thinks.
    error = build(Choosing(), "play")["__error"]
    assert error["message"].startswith("the answer 'play' is none of film, cartoon")


def test_a_task_that_makes_a_model_for_each_sample_takes_no_memory():
    models = [create_model("Answer", number=(int, number)) for number in range(300)]
    made = list(map(weakref.ref, models))
    assert len(set(map(schema_text, models))) == 300
    models.clear()
    gc.collect()
    assert sum(model() is not None for model in made) < 200


# --- log probabilities, and several answers ----------------------------------------------------

TOKENS = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]


def test_parse_gets_the_log_probabilities():
    task = Parsing({"parse": lambda text, sample: {"first": sample["__logprobs"][0]["logprob"]}})
    record = record_of(task, ENTRY, {ONLY_PART: answered("a", __logprobs=TOKENS)})
    assert record["first"] == -0.5
    assert record["__logprobs"] == TOKENS


def test_several_answers_are_lists():
    def parse(text, sample):
        more = {"long": True} if len(text) > 1 else {}
        return {"text": text, "tokens": len(sample["__logprobs"]), **more}

    journaled = answered(["a", "bc"], __logprobs=[TOKENS, 2 * TOKENS], __reasoning=["", "Hm"])
    record = record_of(Parsing({"parse": parse}), ENTRY, {ONLY_PART: journaled})
    assert record["output_text"] == ["a", "bc"]
    assert record["__reasoning"] == ["", "Hm"]
    assert (record["text"], record["tokens"]) == (["a", "bc"], [1, 2])
    assert record["long"] == [None, True]


def test_parse_may_change_what_it_gets():
    """Neither the next answer nor the record has the change."""

    def parse(text, sample):
        sample["tags"].append(text)
        sample["__logprobs"].pop()["token"] = "b"
        return {"tags": sample["tags"]}

    entry = ChunkEntry("key", ENTRY.requests, orjson.dumps({**RAW, "tags": []}), {})
    journaled = answered(["a", "bc"], __logprobs=[TOKENS, TOKENS])
    record = record_of(Parsing({"parse": parse}), entry, {ONLY_PART: journaled})
    assert record["tags"] == [["a"], ["bc"]]
    assert record["__logprobs"] == [TOKENS, TOKENS]


def test_one_of_several_answers_that_does_not_parse_fails_the_sample():
    task = Parsing({"parse": lambda text, sample: {"number": int(text)}})
    record = record_of(task, ENTRY, {ONLY_PART: answered(["1", "two"])})
    assert record["__error"]["stage"] == "parse"
    assert record["output_text"] == ["1", "two"]


@pytest.mark.parametrize(
    ("usage", "key"),
    [
        ({"completion_tokens": 30, "longest": 16}, "sampling.max_tokens"),
        ({"completion_tokens": 30, "longest": 12}, "vllm.max_model_len"),
        ({"completion_tokens": 9, "max_tokens": 9}, "max_tokens in the task's sampling"),
        ({"completion_tokens": 8, "max_tokens": 9}, "vllm.max_model_len"),
    ],
)
def test_the_limit_that_cut_an_answer_off_is_named(usage, key):
    usage = {"prompt_tokens": 1, "finish_reason": "length", **usage}
    journaled = {"output_text": ["a", "b"], "__usage": usage}
    settings = {"sampling": {"max_tokens": 16}, "run": {"truncated": "error"}}
    record = record_of(Describe(), ENTRY, {ONLY_PART: journaled}, **settings)
    assert f"({key})" in record["__error"]["message"]


# --- several questions -------------------------------------------------------------------------


class Asking(Task):
    """Two questions; the answer to the second must be a number."""

    name = "asking"

    def build_messages(self, sample):
        return {name: [{"role": "user", "content": name}] for name in ("what", "many")}

    def parse(self, generated_text, sample):
        if sample["__part"] == "many":
            return {"count": int(generated_text)}
        return {"answer": generated_text}


ASKED = ChunkEntry("key", {"what": "r" * 32, "many": "s" * 32}, orjson.dumps(RAW), {})


def test_one_record_has_all_answers():
    journaled = {"what": answered("A cat.", __reasoning="Hm."), "many": answered("3")}
    record = record_of(Asking(), ASKED, journaled)
    assert record == {
        "__key": "key",
        "__status": "ok",
        "__task": "asking",
        "__model": load_config({}).vllm.model,
        "__usage": {
            "prompt_tokens": 2 * USAGE["prompt_tokens"],
            "completion_tokens": 2 * USAGE["completion_tokens"],
            "finish_reason": "stop",
        },
        "input": RAW,
        "output_text": {"what": "A cat.", "many": "3"},
        "__reasoning": {"what": "Hm."},
        "what": {"answer": "A cat."},
        "many": {"count": 3},
    }


def test_a_damaged_video_is_damaged_for_all_questions():
    journaled = {"what": answered("A cat.", damaged=True), "many": answered("3", damaged=True)}
    assert record_of(Asking(), ASKED, journaled)["damaged"] is True
    assert RecordBuilder(load_config({}), Asking()).build(ASKED, journaled).damaged


def test_one_answer_that_was_cut_off_says_so_for_all():
    usage = {**USAGE, "finish_reason": "length"}
    journaled = {"what": {"output_text": "A c", "__usage": usage}, "many": answered("3")}
    record = record_of(Asking(), ASKED, journaled)
    assert record["__usage"]["finish_reason"] == "length"


def test_the_first_question_that_failed_is_named():
    error = {"stage": "read", "type": "ValueError", "message": "no"}
    journaled = {"what": {"__error": error}, "many": answered("some")}
    record = record_of(Asking(), ASKED, journaled)
    assert record["__error"] == {**error, "message": "what: no"}
    assert record["__usage"] == USAGE
    assert record["output_text"] == {"many": "some"}


def test_an_error_without_an_answer_goes_before_one_of_parse():
    """It counts for the error rate, and ``retry`` may help."""
    error = {"stage": "generate", "type": "ValueError", "message": "no"}
    for failed, other in (("what", "many"), ("many", "what")):
        journaled = {failed: {"__error": error}, other: answered("some")}
        task = Parsing({"parse": lambda text, sample: int(text)})
        assert record_of(task, ASKED, journaled)["__error"] == {**error, "message": f"{failed}: no"}


def test_an_answer_that_fails_keeps_the_others():
    journaled = {"what": answered("A cat."), "many": answered("some")}
    record = record_of(Asking(), ASKED, journaled)
    assert record["__status"] == "error"
    assert record["__error"]["stage"] == "parse"
    assert record["__error"]["message"].startswith("many: invalid literal for int()")
    assert record["output_text"] == {"what": "A cat.", "many": "some"}
    assert record["what"] == {"answer": "A cat."}
    assert "many" not in record


# --- answers that did not end by themselves -------------------------------------------------------


def ended(reason: str, tokens: int, text: str = "It rains", **more: Any) -> dict[str, Any]:
    """What the journal has of an answer of so many tokens that ended for this reason."""
    return answered(text, **more) | {
        "__usage": {**USAGE, "completion_tokens": tokens, "finish_reason": reason}
    }


SIXTEEN = {"sampling": {"max_tokens": 16}}
ERRORS = {**SIXTEEN, "run": {"truncated": "error"}}


def test_a_cut_off_answer_is_kept_or_an_error_as_the_user_says():
    journaled = {ONLY_PART: ended("length", 16)}
    kept = record_of(Describe(), ENTRY, journaled, **SIXTEEN)
    assert (kept["__status"], kept["description"]) == ("ok", "It rains")
    record = record_of(Describe(), ENTRY, journaled, **ERRORS)
    assert record["__status"] == "error"
    assert record["__error"]["stage"] == "length"
    assert "16 tokens (sampling.max_tokens)" in record["__error"]["message"]
    assert record["output_text"] == "It rains"
    assert record["__usage"]["finish_reason"] == "length"
    assert "description" not in record
    whole = record_of(Describe(), ENTRY, {ONLY_PART: ended("stop", 16)}, **ERRORS)
    assert whole["__status"] == "ok"


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_model_that_was_still_thinking_has_not_answered(text):
    journaled = {ONLY_PART: ended("length", 16, text, __reasoning="Let me see")}
    record = record_of(Describe(), ENTRY, journaled, **SIXTEEN)
    assert record["__error"]["stage"] == "length"
    assert record["__error"]["message"].startswith("there was no answer yet after 16 tokens")
    assert record["__reasoning"] == "Let me see"


@pytest.mark.parametrize("has_stop", [False, True])
@pytest.mark.parametrize(
    ("text", "reasoning", "is_answer"),
    [
        ("", "I see a", False),
        (" \n", "I see a", False),
        (["A cat", ""], ["I see a", "I see"], False),
        (["A cat", "A dog"], ["I see a", ""], True),
        ("A cat", "I see a", True),
        ("", "", True),  # It was asked not to think, and says nothing.
        ("", None, True),
        (["", "A cat"], ["", "I see a"], True),
    ],
)
def test_a_model_that_ended_within_its_thoughts_has_not_answered(
    text, reasoning, is_answer, has_stop
):
    journaled = {ONLY_PART: ended("stop", 16, text, __reasoning=reasoning)}
    sampling = {**SIXTEEN["sampling"], **({"stop": ["."]} if has_stop else {})}
    record = record_of(Describe(), ENTRY, journaled, **{**SIXTEEN, "sampling": sampling})
    assert record["__reasoning"] == reasoning
    if is_answer:
        assert record["__status"] == "ok"
        return
    error = record["__error"]
    assert (error["stage"], error["type"]) == ("generate", "Unfinished")
    assert error["message"].startswith("the model ended within its thoughts, before an answer: ")
    assert ("sampling.stop" in error["message"]) is has_stop


def test_of_several_questions_the_one_that_ended_within_its_thoughts_is_named():
    journaled = {"what": ended("stop", 16, "", __reasoning="I see a"), "many": answered("3")}
    record = record_of(Asking(), ASKED, journaled, **SIXTEEN)
    assert record["__error"]["message"].startswith("what: the model ended within its thoughts")
    assert record["many"] == {"count": 3}


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", "unknown"])
def test_what_the_engine_ended_is_no_answer(reason):
    error = record_of(Describe(), ENTRY, {ONLY_PART: ended(reason, 3)})["__error"]
    assert error["stage"] == "generate"
    assert reason in error["message"]


@pytest.mark.parametrize(
    ("reason", "tokens", "key"),
    [
        ("stop", 16, None),
        ("length", 16, "sampling.max_tokens"),
        ("length", 9, "vllm.max_model_len"),  # the prompt left no room for more
        ("length", 40, "run.retry_truncated"),
    ],
)
def test_a_record_knows_the_setting_that_cut_it_off(reason, tokens, key):
    config = load_config({**SIXTEEN, "run": {"retry_truncated": 40}})
    built = RecordBuilder(config, Describe()).build(ENTRY, {ONLY_PART: ended(reason, tokens)})
    assert built.cut_off == key


def test_of_several_answers_one_that_was_cut_off_is_enough():
    journaled = {"what": ended("length", 16), "many": answered("3")}
    kept = record_of(Asking(), ASKED, journaled, **SIXTEEN)
    assert (kept["__status"], kept["__usage"]["finish_reason"]) == ("ok", "length")
    built = RecordBuilder(load_config(SIXTEEN), Asking()).build(ASKED, journaled)
    assert built.cut_off == "sampling.max_tokens"
    record = record_of(Asking(), ASKED, journaled, **ERRORS)
    assert record["__error"]["stage"] == "length"
    assert record["__error"]["message"].startswith("what: ")
    assert "what" not in record
    assert record["many"] == {"count": 3}
    odd = {"what": ended("repetition", 3), "many": answered("3")}
    assert record_of(Asking(), ASKED, odd)["__usage"]["finish_reason"] == "repetition"


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


@pytest.mark.parametrize(
    ("samples", "allowed"),
    [(240, 24), (1000, 100), (1_000_000, 100)],
)
def test_failures_that_come_first_are_judged_with_what_follows(samples, allowed):
    """The bad files of a folder may sort first."""
    rate = ErrorRate(0.1, samples)
    for failures in range(1, allowed + 2):
        rate.count({"stage": "read", "type": "ValueError", "message": "no such clip"})
        assert rate.exceeded() is (failures > allowed)


def test_samples_that_wait_for_their_answer_count_as_not_failed():
    rate = counted(0.1, 0, 20)
    assert rate.exceeded(under_way=179)
    assert not rate.exceeded(under_way=180)
    rate.check(3, under_way=180)


UNPARSED = {"stage": "parse", "type": "KeyError", "message": "'caption'"}


def test_answers_that_parse_failed_on_are_counted_apart():
    rate = ErrorRate(0.1)
    for _ in range(1000):
        rate.count(UNPARSED)
    assert (rate.finished, rate.failed, rate.unparsed) == (1000, 0, 1000)
    assert rate.last_unparsed == UNPARSED
    rate.check(3)


def test_an_error_rate_that_is_passed_says_what_it_does_not_count():
    rate = counted(0.1, 100, 30)
    rate.count(UNPARSED)
    with pytest.raises(
        UserError,
        match=r"^rank 3: 30 of .* 131 .*read: ValueError: no such clip; not "
        r"counted: 1 that failed in parse\. Fix",
    ):
        rate.check(3)


def test_an_error_rate_that_is_passed_says_what_to_do():
    counted(0.1, 180, 20).check(3)
    rate = counted(0.1, 100, 30)
    rate.samples = 200
    stay = "failures stay until `video-pipeline retry` opens them"
    fates = {
        30: "30 failures to read are tried again",
        25: f"25 failures to read are tried again, 5 {stay}",
        0: f"30 {stay}",
    }
    for reopened, fate in fates.items():
        with pytest.raises(UserError) as caught:
            rate.check(3, reopened)
        assert str(caught.value) == (
            "rank 3: 30 of the 130 samples that are finished (of 200) failed, more than "
            "run.max_error_rate: 0.1 allows; the last: read: ValueError: no such clip. Fix the "
            f"cause, or raise run.max_error_rate to accept failures, and run again: {fate}"
        )

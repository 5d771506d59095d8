"""Export: Parquet that holds every value of the output, and a card that a hub reads."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from video_pipeline.common.files import Seal, replacing_folder
from video_pipeline.common.versions import SUMMARY
from video_pipeline.config import load_config
from video_pipeline.errors import UserError
from video_pipeline.export import columns as columns_module
from video_pipeline.export import export as module
from video_pipeline.export.columns import MAX_DEPTH, MAX_NAMES, OTHERS, Columns
from video_pipeline.export.export import _MEANINGS, dataset_card, export, size_category
from video_pipeline.export.flat import flat_names, flattened
from video_pipeline.output.records import _ANSWER
from video_pipeline.run.layout import Layout

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "finish_reason": "stop"}
ERROR = {"stage": "read", "type": "VideoReadError", "message": "moov atom not found"}


def record(number: int, **fields: Any) -> dict[str, Any]:
    """An ok record."""
    known = {"__key": str(number), "__status": "ok", "__task": "ask", "__model": "simulated"}
    return {**known, "__usage": USAGE, "input": {"id": number}, "output_text": "it", **fields}


def exported(folder: Path, records: list[dict[str, Any]], **sections: dict[str, Any]) -> Layout:
    """Export these records, as consolidate would have written them."""
    nested = {"parquet_columns": "nested", **sections.pop("run", {})}
    data = {"output_jsonl": str(folder / "out.jsonl")}
    config = load_config({"data": data, "run": nested, **sections})
    layout = Layout.of(config, 1)
    layout.output.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in records))
    failed = sum("__error" in entry for entry in records)
    asked = sum(entry["__status"] != "left_out" for entry in records)
    counts = {"distinct": asked, "ok": asked - failed, "error": failed}
    stages = {"read": failed} if failed else {}
    usages = [entry.get("__usage") or {} for entry in records]
    cut_off = sum(usage.get("finish_reason") == "length" for usage in usages)
    truncated_at = {"sampling.max_tokens": cut_off} if cut_off else {}
    damaged = sum("damaged" in entry for entry in records)
    summary = {
        "version": SUMMARY,
        "task": "ask",
        "model": "simulated",
        "samples": {
            **counts,
            "errors_by_stage": stages,
            "truncated": cut_off,
            "truncated_at": truncated_at,
            "damaged": damaged,
            "duplicates": 0,
        },
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        **dict.fromkeys(("cost", "throughput", "journal", "splits")),  # not looked at
        "output_file": Seal.of(layout.output)._asdict(),
    }
    layout.summary.write_text(json.dumps(summary))
    export(config, layout)
    return layout


def table_of(layout: Layout) -> pa.Table:
    """What the Parquet files hold, by the schema of the files themselves."""
    files = sorted((layout.dataset / "data").iterdir())
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def restored(value: Any, type_: pa.DataType, original: Any) -> Any:
    """A value from a table as the JSON that it was made of. ``original`` says only where a text is
    JSON text: where it stands for something that is no text of this content."""
    if value is None:
        return None
    if pa.types.is_string(type_):
        return value if value == original else json.loads(value)
    if pa.types.is_struct(type_):
        original = original if isinstance(original, dict) else {}
        fields = {f.name: restored(value[f.name], f.type, original.get(f.name)) for f in type_}
        return {name: entry for name, entry in fields.items() if entry is not None}
    if pa.types.is_list(type_):
        entries = zip(value, original, strict=True)
        return [restored(entry, type_.value_type, before) for entry, before in entries]
    return value


def without_nulls(value: Any) -> Any:
    """``value`` without the fields that are null, which a table cannot tell from missing ones."""
    if isinstance(value, dict):
        return {n: without_nulls(entry) for n, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same; a whole number may have become the float it equals."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[n], right[n]) for n in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


def check_round_trip(layout: Layout, records: list[dict[str, Any]]) -> None:
    """Every value of ``records`` comes back through pyarrow, and pandas sees the same."""
    table = table_of(layout)
    check_flat(table)
    rows = table.to_pylist()
    assert len(rows) == len(records)
    for row, entry in zip(rows, records, strict=True):
        others = json.loads(row.pop(OTHERS, None) or "{}")
        back = {n: restored(v, table.field(n).type, entry.get(n)) for n, v in row.items()}
        restored_entry = without_nulls({**back, **others})
        assert same(restored_entry, without_nulls(entry)), (restored_entry, entry)
    frame = pd.read_parquet(layout.dataset / "data", dtype_backend="pyarrow")
    assert list(frame.columns) == table.column_names
    for name in table.column_names:
        seen = [None if value is pd.NA else value for value in frame[name]]
        assert seen == [row[name] for row in table.to_pylist()]


def leaves(type_: pa.DataType, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths of what is no struct."""
    if not pa.types.is_struct(type_):
        return [path]
    return [leaf for field in type_ for leaf in leaves(field.type, (*path, field.name))]


def check_flat(table: pa.Table) -> None:
    """Each value is in one of the flat columns."""
    paths = [leaf for field in table.schema for leaf in leaves(field.type, (field.name,))]
    names = flat_names(paths)
    assert list(names) == paths
    flat = flattened(table, list(names.values()))
    assert not any(pa.types.is_struct(field.type) for field in flat.schema)
    rows = table.to_pylist()
    for path, name in names.items():
        values: list[Any] = rows
        for part in path:
            values = [value and value.get(part) for value in values]
        assert flat[name].to_pylist() == [None if value == {} else value for value in values]


# what orjson writes and reads: no infinities, no lone surrogates, integers of at most 64 bits
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
NAMES = st.sampled_from("abc") | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


@settings(
    max_examples=80,
    derandomize=True,  # The same ones each time: a run of all tests finds no other by chance.
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(OBJECTS, OBJECTS), max_size=4))
@example([({"a": 1}, {"a": 2.5}), ({"a": 2**53 + 1}, {"a": 2**53 + 1})])
@example([({"a": [None, None]}, {"a": [[None, None], []]})])
@example([({"a": {}}, {"a": [{}]}), ({"a": None}, {"b": [[], [None]]})])
@example([({"a": -1}, {"a": 2**63}), ({"a": 2**64 - 1}, {"a": -(2**63)})])
def test_every_value_comes_back(tmp_path, pairs):
    reserved = {"input", "output_text"}
    records = []
    for number, (sample, fields) in enumerate(pairs):
        own = {n: v for n, v in fields.items() if n not in reserved and not n.startswith("__")}
        records.append({**record(number), "input": sample, **own})
    check_round_trip(exported(tmp_path, records), records)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, None], "string"),
        ([True, None], "bool"),
        ([1, None, -5], "int64"),
        ([1, 2**63], "uint64"),
        ([-1, 2**63], "string"),
        ([1, 2.5], "double"),
        ([2**53 + 1, 2.5], "string"),
        ([True, 1], "string"),
        (["2024-01-31", "2024-02-01T00:00:00Z"], "string"),
        (["é 你 \0", "\u202e"], "string"),
        ([1, "1"], "string"),
        ([{}, {}], "string"),
        ([{"a": 1}, {}, {"b": {"c": [1]}}], "struct<a: int64, b: struct<c: list<element: int64>>>"),
        ([{"a": 1, "b": 1}, {"a": 1, "b": "x"}], "struct<a: int64, b: string>"),
        ([[], []], "list<element: string>"),
        ([[None, None], []], "list<element: string>"),
        ([{"a": None}, None], "struct<a: string>"),
        ([[1, None], []], "list<element: int64>"),
        ([[1, "a"], [2]], "string"),
        ([[{"a": 1}], [{"a": "x"}]], "list<element: struct<a: string>>"),
        ([{"a": 1}, [1]], "string"),
    ],
)
def test_a_column_has_the_type_of_its_values(tmp_path, values, expected):
    records = [record(number, field=value) for number, value in enumerate(values)]
    layout = exported(tmp_path, records)
    assert str(table_of(layout).schema.field("field").type) == expected
    check_round_trip(layout, records)


def test_json_text_tells_a_number_from_a_text(tmp_path):
    records = [record(number, field=value) for number, value in enumerate([1, "1", None, "a"])]
    column = table_of(exported(tmp_path, records))["field"]
    assert column.to_pylist() == ["1", '"1"', None, '"a"']


def test_what_every_output_has_is_typed_whatever_it_holds(tmp_path):
    empty = table_of(exported(tmp_path, []))
    assert empty.num_rows == 0
    failed = {**record(0), "__status": "error", "__error": ERROR}
    del failed["__usage"], failed["output_text"]
    for schema in (empty.schema, table_of(exported(tmp_path, [failed])).schema):
        types = {field.name: str(field.type) for field in schema}
        assert types["__key"] == types["__status"] == types["__model"] == "string"
        assert types["__error"] == "struct<stage: string, type: string, message: string>"
        assert types["__usage"] == (
            "struct<prompt_tokens: int64, completion_tokens: int64, finish_reason: string>"
        )


def test_names_that_are_data_make_no_columns(tmp_path):
    votes = [{f"voter {number}": number} for number in range(MAX_NAMES + 1)]
    invented = [{f"field {number}": [number]} for number in range(MAX_NAMES + 1)]
    records = [
        record(i, **{"votes": vote, **more})
        for i, (vote, more) in enumerate(zip(votes, invented, strict=True))
    ]
    layout = exported(tmp_path, records)
    schema = table_of(layout).schema
    assert str(schema.field("votes").type) == "string"
    assert len(schema) == MAX_NAMES + 1
    check_round_trip(layout, records)


def test_deep_values_are_text_from_some_depth_on(tmp_path):
    deep: Any = "bottom"
    for level in range(200):
        deep = {"a": deep} if level % 2 else [deep]
    records = [record(0, field=deep)]
    layout = exported(tmp_path, records)
    assert str(table_of(layout).schema.field("field").type).count("<") == MAX_DEPTH - 1
    assert same(unfolded(table_of(layout)["field"][0].as_py()), deep)


def unfolded(value: Any) -> Any:
    """``value`` with the JSON text in it read."""
    if isinstance(value, dict):
        return {name: unfolded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [unfolded(entry) for entry in value]
    return json.loads(value)


def test_large_outputs_are_cut_into_row_groups_and_files(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 2_000)
    monkeypatch.setattr(module, "FILE_BYTES", 8_000)
    monkeypatch.setattr("video_pipeline.common.progress.LOG_SECONDS", -1.0)
    records = [record(number, late=number if number > 150 else None) for number in range(200)]
    layout = exported(tmp_path, records)
    names = sorted(path.name for path in (layout.dataset / "data").iterdir())
    assert len(names) > 2
    assert names == [
        f"train-{number:05}-of-{len(names):05}.parquet" for number in range(len(names))
    ]
    assert pq.ParquetFile(layout.dataset / "data" / names[0]).num_row_groups > 1
    check_round_trip(layout, records)
    assert "look at the columns: 150 of 200 (75.0%) records" in caplog.text
    assert re.search(r"write the records: 1\d\d of 200 .* records", caplog.text)


def test_the_card_is_one(tmp_path):
    failed = {**record(1), "__status": "error", "__error": ERROR}
    records = [record(0, **{"a|b": 1, "mix`ed": [1, "x"]}), failed]
    prompt = tmp_path / "question.txt"
    prompt.write_text("What is this?\n```\n")
    layout = exported(
        tmp_path,
        records,
        vllm={"gpu_memory_utilization": 0.5, "dtype": "float32"},
        run={"engine": "simulated"},
        task_params={
            "prompt_file": str(prompt),
            "deep": [{"max_tokens": 7}],
            "x": None,
        },
    )
    card = DatasetCard.load(layout.card)
    assert card.data.configs == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
        }
    ]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.license == "unknown"
    text = card.text
    assert "max_tokens: 7" in text
    assert "dtype: float32" in text
    assert "gpu_memory_utilization" not in text
    assert "````\nWhat is this?\n```\n````" in text
    assert "| `a\\|b` | int64 |  |" in text
    assert "| `` mix`ed `` | string | JSON text" in text
    assert "| failed in stage `read` | 1 |" in text
    assert "made up by the simulated engine" in text
    assert "pyarrow " in text
    assert "<--" in text


def test_paths_stay_out_of_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("models/base", "adapters/mine", "prompts"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "prompts/ask.txt").write_text("Why?")
    layout = exported(
        tmp_path,
        [record(0)],
        vllm={
            "model": str(tmp_path / "models/base"),
            "lora_path": "adapters/mine",
            "tokenizer": str(tmp_path / "gone/tok"),
            "hf_overrides": {"a": ["/srv/deep/x.json", "~/deep/y", "org/name", "and/or"]},
        },
        task_params={"prompt_file": "prompts/ask.txt", "hint": "/no_think", "q": "a / b and /c/d"},
    )
    text = layout.card.read_text()
    for shown in ("model: base", "lora_adapter: mine", "tokenizer: tok", "- x.json", "- y"):
        assert shown in text
    for shown in ("org/name", "and/or", "hint: /no_think", "q: a / b and /c/d"):
        assert shown in text
    assert "prompt_file: ask.txt" in text
    assert "The file `ask.txt`:\n\n```\nWhy?" in text
    for path in (str(tmp_path), "lora_path", "adapters/", "models/", "prompts/", "/srv", "~/deep"):
        assert path not in text


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("/srv/models/mine", "mine"),
        ("/mine", "mine"),
        ("runs/7/last", "last"),
        ("org/name/file.gguf", "org/name/file.gguf"),
    ],
)
def test_the_card_names_the_model_of_the_summary(model, shown):
    summary = {
        "model": model,
        "task": "ask",
        "samples": {"distinct": 1, "ok": 1, "error": 0, "errors_by_stage": {}, "duplicates": 0}
        | {"truncated": 0, "truncated_at": {}, "damaged": 0},
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    columns = Columns({})
    columns.finish()
    card = dataset_card(load_config({"vllm": {"model": model}}), "out", summary, columns, 0, {})
    assert f"The answers of `{shown}` to" in card
    assert f"model: {shown}\n" in card


def test_the_card_says_that_answers_were_cut_off(tmp_path):
    cut_off = {**USAGE, "finish_reason": "length"}
    records = [record(0), record(1, __usage=cut_off), record(2, __usage=cut_off)]
    text = DatasetCard.load(exported(tmp_path, records).card).text
    assert "**2 answers were cut off: raise sampling.max_tokens." in text
    assert "cut off at `sampling.max_tokens`, the setting to raise | 2 |" in text
    whole = DatasetCard.load(exported(tmp_path, [record(0)]).card).text
    assert "cut off" not in whole


def test_the_card_counts_damaged_videos(tmp_path):
    text = DatasetCard.load(exported(tmp_path, [record(0), record(1, damaged=True)]).card).text
    row = "| answered, but only a part of the video could be read (`damaged`) | 1 |"
    assert row in text
    assert row[:30] not in DatasetCard.load(exported(tmp_path, [record(0)]).card).text


def test_columns_are_flat_unless_nested_ones_are_wanted(tmp_path):
    raw = {"id": 7, "path": "a.mp4", "status": "draft", "meta": {"fps": 25}, "answer": "given"}
    failed = {**record(1), "__status": "error", "__error": ERROR, "input": {"path": "b.mp4"}}
    del failed["__usage"], failed["output_text"]
    records = [record(0, input=raw, answer="said", scores={"a": 1}, tags=["x"]), failed]
    layout = exported(tmp_path, records, run={"parquet_columns": "flat"})
    table = table_of(layout)
    assert table.column_names == [
        *("key", "status", "error_stage", "error_type", "error_message", "task", "model"),
        *("prompt_tokens", "completion_tokens", "finish_reason"),
        *("id", "path", "input_status", "meta_fps", "input_answer"),
        *("output_text", "answer", "scores_a", "tags"),
    ]
    first, second = table.to_pylist()
    assert (first["status"], first["input_status"]) == ("ok", "draft")
    assert (first["answer"], first["input_answer"]) == ("said", "given")
    assert (first["path"], first["meta_fps"], first["scores_a"]) == ("a.mp4", 25, 1)
    assert (first["tags"], first["error_stage"]) == (["x"], None)
    assert (second["path"], second["error_stage"]) == ("b.mp4", "read")
    assert (second["finish_reason"], second["meta_fps"]) == (None, None)
    text = layout.card.read_text()
    assert "| answered (`status` is `ok`) | 1 |" in text
    assert "| `input_status` | string | of the sample: `status` |" in text
    assert "| `error_stage` | string | of a failed sample: the stage of the error |" in text
    assert "__" not in text


def test_names_that_are_taken_get_another():
    paths = [("__status",), ("input", "status"), ("input", "input", "status"), ("a", "b"), ("a_b",)]
    names = flat_names([*paths, ("input", "a", "b"), ("input", "a_b")])
    assert list(names.values()) == [
        *("status", "input_status", "input_input_status"),
        *("a_b", "a_b_2", "input_a_b", "input_a_b_2"),
    ]


def test_the_card_says_what_was_asked(tmp_path):
    left_out = {**record(0), "__status": "left_out", "__left_out": {"by": "where", "message": "-"}}
    records = [left_out, record(1, input={"path": "a.mp4", "title": "Cats"})]
    text = exported(
        tmp_path, records, task_params={"prompt": "Why {{ title }}, {{ __video_uri }}?"}
    ).card.read_text()
    assert "system:\nYou are a helpful assistant.\n\nuser:\n<video>\nWhy Cats, <video>?\n" in text
    assert "| not asked about (`__status` is `left_out`) | 1 |" in text
    assert "each of\n2 samples" in text
    default = exported(tmp_path, records).card.read_text()
    assert "<video>\nDescribe this video in detail.\n" in default
    asks = {"run": {"task": "questions"}, "task_params": {"questions": {"who": "Who?"}}}
    assert (
        "`who`:\n\n```\nuser:\n<video>\nWho?"
        in exported(tmp_path, records, **asks).card.read_text()
    )


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (1_000_000, "1M<n<10M"),
        (10**12, "n>1T"),
    ],
)
def test_sizes_have_the_names_of_the_hub(count, name):
    assert size_category(count) == name


def torn(lines):
    return [*lines, b'{"__key": ']


def cut_off(lines):
    return lines[:1]


def empty(lines):
    return []


def swapped(lines):
    return lines[::-1]


def edited(lines):
    return [line.replace(b'"it"', b'"at"') for line in lines]


@pytest.mark.parametrize("change", [torn, cut_off, empty, swapped, edited])
def test_an_output_that_was_changed_is_not_exported(tmp_path, change):
    layout = exported(tmp_path, [record(0), record(1)])
    before = layout.card.read_text()
    lines = layout.output.read_bytes().splitlines(keepends=True)
    layout.output.write_bytes(b"".join(change(lines)))
    config = load_config({"data": {"output_jsonl": str(layout.output)}})
    with pytest.raises(UserError, match=r"out\.jsonl: it has changed .*run snakemake again"):
        export(config, layout)
    assert layout.card.read_text() == before
    assert [path.name for path in tmp_path.glob("*.dataset*")] == ["out.dataset"]
    assert [path.name for path in tmp_path.glob(".out.dataset*")] == []
    layout.output.unlink()
    with pytest.raises(UserError, match="run snakemake first"):
        export(config, layout)


def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch):
    target = tmp_path / "set"
    removed = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **how: (removed.append(path), rmtree(path, **how))
    )
    (tmp_path / ".set.tmp").mkdir()
    (tmp_path / ".set.tmp" / "left by a killed one").touch()
    for content in ("old", "new"):
        with replacing_folder(target) as folder:
            (folder / content).touch()
            assert not (target / content).exists()
        assert [path.name for path in target.iterdir()] == [content]
    with pytest.raises(ZeroDivisionError), replacing_folder(target) as folder:
        raise ZeroDivisionError(folder)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert target not in removed  # a process killed meanwhile would leave a part of it


def test_a_folder_on_another_disk_is_replaced_there(tmp_path):
    layout = exported(tmp_path, [record(0)])
    disk = tmp_path / "disk"
    disk.mkdir()
    layout.dataset.rename(disk / "moved")
    layout.dataset.symlink_to(disk / "moved")
    for count in (2, 3):
        exported(tmp_path, [record(number) for number in range(count)])
        assert layout.dataset.readlink() == disk / "moved"
        assert table_of(layout).num_rows == count
    assert [path.name for path in disk.iterdir()] == ["moved"]


def test_the_last_column_of_a_full_table_is_a_map():
    full = columns_module.Columns({str(n): 1 for n in range(MAX_NAMES)})
    full.see({"one more": [1]})
    full.finish()
    (row,) = full.table([{"0": 5, "one more": [1]}]).to_pylist()
    assert (row["0"], row[OTHERS]) == (5, '{"one more":[1]}')


def test_every_field_of_an_answer_has_its_line_on_the_card():
    assert set(_ANSWER) <= _MEANINGS.keys()

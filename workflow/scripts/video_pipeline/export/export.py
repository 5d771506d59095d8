"""Exports the output as a folder that can be uploaded to a hub: Parquet files with typed columns,
and a dataset card."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import partial
from os.path import exists
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from video_pipeline.common.files import replacing_folder
from video_pipeline.common.locks import waiting_lock
from video_pipeline.common.printable import printable
from video_pipeline.common.progress import Progress
from video_pipeline.common.versions import installed_versions
from video_pipeline.config import Config
from video_pipeline.errors import Failure
from video_pipeline.export.columns import OTHERS, Column, Columns
from video_pipeline.export.flat import flat_names, flattened
from video_pipeline.model.model import is_path
from video_pipeline.report.summary import read_summary
from video_pipeline.run.answers import describe_cut_off
from video_pipeline.run.fingerprint import NEUTRAL_ENGINE_ARGUMENTS
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import check_origin
from video_pipeline.samples.input import task_sample
from video_pipeline.tasks.prompts import prompt_files
from video_pipeline.tasks.registry import load_task

logger = logging.getLogger(__name__)

ROW_GROUP_BYTES = 16 << 20
"""Size of a row group, as JSON Lines: the part of the output that is in memory at once."""

FILE_BYTES = 500_000_000
"""Size of a full Parquet file, like ``max_shard_size`` of the library ``datasets``."""

_CONTRACT: dict[str, Any] = {
    "__key": "",
    "__status": "",
    "__error": {"stage": "", "type": "", "message": ""},
    "__task": "",
    "__model": "",
    "__usage": {"prompt_tokens": 0, "completion_tokens": 0, "finish_reason": ""},
    "input": None,
    "output_text": None,
}
"""Every output has these columns, and they come first."""

_MEANINGS = {
    "__key": "the sample's id, or a hash of its content",
    "__status": "`ok`, `error`, or `left_out` if it was not asked about",
    "__error": "of a failed sample: the stage, the type and the message of the error",
    "__error.stage": "of a failed sample: the stage of the error",
    "__error.type": "of a failed sample: the type of the error",
    "__error.message": "of a failed sample: the message of the error",
    "__left_out": "of a sample that was not asked about: the reason",
    "__left_out.by": "of a sample that was not asked about: `where` (data.where) or `error`",
    "__left_out.message": "of a sample that was not asked about: the reason",
    "__task": "the task",
    "__model": "the model",
    "__usage": "tokens of the prompt and of the answer, and why the answer ended",
    "__usage.prompt_tokens": "tokens of the prompt",
    "__usage.completion_tokens": "tokens of the answer",
    "__usage.finish_reason": "why the answer ended: `stop` by itself, `length` at a limit",
    "__reasoning": "the thoughts of the model before its answer",
    "__logprobs": "the log probability of each token of the answer, and of others at its place",
    "input": "the fields of the sample in the input",
    "output_text": "the answer of the model",
    "damaged": "`true` if only a part of the video could be read; the frames are from that part",
    OTHERS: "JSON text: the other fields, because records have too many names of fields",
}

_ABSOLUTE = re.compile(r"(file://|~|\.\.?)?/[^\s/]+/\S*")
"""A text that can only be a path."""


def export(config: Config, layout: Layout) -> None:
    """Write ``layout.dataset`` from the consolidated output and its summary. It appears when it is
    complete. Memory does not grow with the number of records.

    Raises :class:`UserError` if there is no consolidated output, or it does not belong to the
    summary or to ``config``.
    """
    progress_file = layout.progress("export")
    with waiting_lock(layout.dataset_lock, logger):
        summary = read_summary(layout)
        check_origin(summary.get("origin", {}), config, layout.summary)
        with open(layout.output, "rb") as output, replacing_folder(layout.dataset) as folder:
            count = sum(1 for _ in output)
            output.seek(0)
            columns = Columns(_CONTRACT)
            left_out, first = 0, None
            with Progress(progress_file, "look at the columns", "records", count) as progress:
                for line in output:
                    columns.see(record := orjson.loads(line))
                    if record["__status"] == "left_out":
                        left_out += 1
                    elif first is None:
                        first = record
                    progress.advance()
            columns.finish()
            names = _names(config, columns)
            output.seek(0)
            with Progress(progress_file, "write the records", "records", count) as progress:
                num_files = _write_parquet(output, columns, names, folder / "data", progress)
            card = dataset_card(
                config, layout.stem, summary, columns, left_out, _asked(config, first)
            )
            (folder / "README.md").write_text(card, encoding="utf-8")
    logger.info("%s: %d records in %d file(s)", layout.dataset, count, num_files)


_Names = dict[tuple[str, ...], str] | None
"""The names of flat columns by the paths of their fields; None: the columns are nested."""


def _names(config: Config, columns: Columns) -> _Names:
    if config.run.parquet_columns == "nested":
        return None
    return flat_names(path for path, _ in columns.leaves())


def _write_parquet(
    output: BinaryIO, columns: Columns, names: _Names, folder: Path, progress: Progress
) -> int:
    """Write all records into ``folder``, under the hub's names; returns the number of files."""
    folder.mkdir()
    files: list[Path] = []
    row_groups = _row_groups(output, columns, names, progress)
    row_group: pa.Table | None = next(row_groups)
    while row_group is not None:
        files.append(folder / f"{len(files)}.parquet")
        with pq.ParquetWriter(files[-1], row_group.schema, compression="zstd") as writer:
            while row_group is not None and files[-1].stat().st_size < FILE_BYTES:
                writer.write_table(row_group)
                row_group = next(row_groups, None)
    for index, file in enumerate(files):
        file.rename(folder / f"train-{index:05}-of-{len(files):05}.parquet")
    return len(files)


def _row_groups(
    output: BinaryIO, columns: Columns, names: _Names, progress: Progress
) -> Iterator[pa.Table]:
    """The records as tables of one schema; there is at least one table."""
    lines = output.readlines(ROW_GROUP_BYTES)
    while True:
        table = columns.table([orjson.loads(line) for line in lines])
        yield table if names is None else flattened(table, list(names.values()))
        progress.advance(len(lines))
        if not (lines := output.readlines(ROW_GROUP_BYTES)):
            return


def dataset_card(
    config: Config,
    stem: str,
    summary: dict[str, Any],
    columns: Columns,
    left_out: int,
    asked: dict[str, str],
) -> str:
    """The README.md of the folder: a dataset card with the front matter that the Hugging Face hub
    reads (https://huggingface.co/docs/hub/datasets-cards). Arrows mark what the user fills in.
    ``stem``: the name of the output; ``left_out``: the number of records that were not asked about;
    ``asked``: the conversations about a sample, by part, see :func:`_asked`.
    """
    num_rows = summary["samples"]["distinct"] + left_out
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    to_yaml = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, width=80)
    environment.filters.update(code=_code, fenced=_fenced, yaml=to_yaml)
    return environment.get_template("dataset_card.md.j2").render(
        stem=stem,
        summary=summary,
        model=_shown(summary["model"]),
        cut_off=describe_cut_off(summary["samples"]["truncated_at"]),
        num_rows=num_rows,
        left_out=left_out,
        size=size_category(num_rows),
        is_simulated=config.run.engine == "simulated",
        settings=_settings(config),
        asked=asked,
        prompts=[
            (Path(file).name, Path(file).read_text("utf-8"))
            for file in prompt_files(config.task_params).values()
            if Path(file).is_file()
        ],
        versions=installed_versions(),
        columns=list(_described(columns, _names(config, columns))),
        mark="" if config.run.parquet_columns == "flat" else "__",
    )


def _asked(config: Config, record: dict[str, Any] | None) -> dict[str, str]:
    """The conversations about the sample of ``record`` as text, by part; empty if that fails."""
    if record is None:
        return {}
    try:
        sample = task_sample(record["__key"], record["input"], config)
        conversations = load_task(config).conversations(sample)
    except Failure as error:
        logger.warning("the card does not show what was asked: %s", error)
        return {}
    address = sample["__video_uri"]

    def shown(text: str) -> str:
        return text.replace(address, "<video>") if isinstance(address, str) else text

    return {
        part: shown("\n\n".join(f"{message['role']}:\n{_text_of(message)}" for message in asked))
        for part, asked in conversations.items()
    }


def _text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    if not isinstance(content, list):
        return str(content)
    return "\n".join(
        str(item["text"]) if "text" in item else f"<{item.get('type', 'video')}>"
        for item in content
    )


def size_category(count: int) -> str:
    """The hub's name for a number of records: ``n<1K``, ``1K<n<10K``, ..., ``n>1T``."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    above = [name for power, name in enumerate(steps, 3) if count >= 10**power]
    if not above:
        return f"n<{steps[0]}"
    if len(above) == len(steps):
        return f"n>{steps[-1]}"
    return f"{above[-1]}<n<{steps[len(above)]}"


def _settings(config: Config) -> dict[str, Any]:
    """The configuration that the answers depend on, without the section ``data``. It has only the
    last part of paths, because the folders of this machine are private."""
    engine = {
        name: value
        for name, value in config.vllm.model_dump(mode="json", exclude_none=True).items()
        if name not in NEUTRAL_ENGINE_ARGUMENTS
    }
    if lora_path := engine.pop("lora_path", None):
        engine["lora_adapter"] = Path(lora_path).name
    engine["model"] = _shown(config.vllm.model)
    settings: dict[str, Any] = {
        "run": config.run.model_dump(include={"task", "dataset"}, exclude_none=True),
        "vllm": engine,
        "vision": config.vision.model_dump(exclude_none=True),
        "sampling": config.sampling.model_dump(),
        "task_params": config.task_params,
    }
    return {name: _without_paths(section) for name, section in settings.items()}


def _shown(model: str) -> str:
    """The whole name of a model on the hub, or the name of a local model's folder."""
    return Path(model).name if is_path(model) else str(_without_paths(model))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_paths(entry) for entry in value]
    if isinstance(value, str) and "/" in value and (_ABSOLUTE.fullmatch(value) or exists(value)):
        return Path(value).name
    return value


def _described(columns: Columns, names: _Names) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of each column and of the fields inside."""
    nested: list[tuple[tuple[str, ...], Column]]
    nested = [((name,), column) for name, column in columns.columns.items()]
    for place, outer in nested if names is None else columns.leaves():
        top = place[0] if names is None else names[place]
        field = ".".join(place)
        for path, column in outer.walk(field):
            meaning = _MEANINGS.get(path, "")
            if names is not None and column is outer and place[0] == "input":
                meaning = f"of the sample: {_code(field.removeprefix('input.'))}"
            kind = "string" if column.is_json else str(column.type)
            if pa.types.is_nested(column.type):
                kind = "struct" if pa.types.is_struct(column.type) else "list"
            notes = [meaning] if meaning else []
            if column.is_json and path != OTHERS:
                notes.append("JSON text, because its values have different types")
            if column.is_null:
                notes.append("only `null`")
            if column.is_mixed:
                notes.append("whole numbers among them are written as floats")
            yield top + path.removeprefix(field), kind, "; ".join(notes)


def _code(text: str) -> str:
    """``text`` as a code span that may stand in a table."""
    shown = printable(text, newlines=False).replace("|", "\\|") or " "
    ticks = "`" * (_longest_run(shown) + 1)
    pad = " " if "`" in shown else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def _fenced(text: str, language: str = "") -> str:
    """``text`` as a code block; ``text`` may hold backticks."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)

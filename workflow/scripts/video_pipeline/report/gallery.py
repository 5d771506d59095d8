"""Makes contact sheets of what the model saw: some videos are read again, as the run read them."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from video_pipeline.common.files import EMPTY
from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import READER, WorkerSpec
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import Failure, explain
from video_pipeline.model.model import Model, with_commit
from video_pipeline.model.processor import dataset_model
from video_pipeline.model.prompt import prompt_of
from video_pipeline.report.contact_sheet import Picture, all_pictures, contact_sheet
from video_pipeline.run.chunks import ChunkEntry
from video_pipeline.run.layout import Layout
from video_pipeline.samples.input import task_sample
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task

logger = logging.getLogger(__name__)

PICTURES = 12
"""The most pictures on a sheet; of more pictures, an even choice."""

WIDTH = 160
"""Width of a picture on a sheet, in pixels."""

QUALITIES = (75, 60, 45, 30, 15)
"""Qualities of the WebP, from which the first is taken that makes a sheet small enough."""

ALL_SHEETS_BYTES = 800_000
"""Limit for all sheets together. The page holds them as base64, and Snakemake's report holds the
page as base64: that stays below the 2 MiB (``url::kMaxURLChars``) that Chromium opens as a
``data:`` address."""

SHEET_BYTES = (10_000, 40_000)
"""The limit for one sheet depends on their number and lies between these."""

PROMPT_CHARACTERS = 4_000
"""The most characters of a prompt that are shown."""

SHEET_SECONDS = 60.0
"""Time limit for one sheet; a page is not worth ``data.sample_timeout_s``."""

GALLERY_SECONDS = 600.0
"""Time limit for all sheets: if the storage hangs, the run must still end."""

SHEETS_PER_PROCESS = 4
"""The least number of sheets for which another decode process starts, which takes seconds."""


@dataclass(frozen=True)
class Sheet:
    """What the model saw of one sample: the ``data:`` URI of its contact sheet (None without a
    picture), the number of pictures, and the prompts by conversation; or why there is no sheet."""

    image: str | None = None
    count: int = 0
    prompts: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class SheetPreparer(Preparer):
    """Makes a contact sheet in a decode process, as others make requests for an engine. The worst
    quality may need more than ``most_bytes``."""

    most_bytes: int

    def start(self) -> None:
        """Nothing to load."""

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        """The fields of a :class:`Sheet`; ``image`` as the bytes of a WebP."""
        try:
            pictures = all_pictures(llm_inputs.values())
            image = _webp(pictures, self.most_bytes) if pictures else None
        except Exception as error:  # A user's own dataset may take anything for a picture.
            raise RequestRefused(type(error).__name__, f"no picture: {explain(error)}") from error
        prompts = {
            part: prompt_of(llm_input)[:PROMPT_CHARACTERS] for part, llm_input in llm_inputs.items()
        }
        return {"image": image, "count": len(pictures), "prompts": prompts}


def _webp(pictures: list[Picture], most_bytes: int) -> bytes:
    sheet = contact_sheet(pictures, columns=4, width=WIDTH, most=PICTURES)
    for quality in QUALITIES:
        stream = io.BytesIO()
        sheet.save(stream, "WEBP", quality=quality)
        if stream.tell() <= most_bytes:
            break
    return stream.getvalue()


def make_sheets(
    config: Config, records: Sequence[dict[str, Any]], num_processes: int
) -> list[Sheet]:
    """A sheet for each of the output's ``records``, made in up to ``num_processes`` processes.

    A fault costs the sheets that it concerns, never the page: :attr:`Sheet.problem` describes it.
    """
    if not records:
        return []
    try:
        return _make_sheets(config, records, num_processes)
    except Failure as error:
        logger.warning("no pictures: %s", error)
        problem = str(error)
    except Exception as error:
        logger.exception("no pictures")
        problem = f"{type(error).__name__}: {error}; the report's log says more"
    return [Sheet(problem=problem)] * len(records)


def _make_sheets(
    config: Config, records: Sequence[dict[str, Any]], num_processes: int
) -> list[Sheet]:
    task = load_task(config)
    config = with_commit(config, Model.of(config).known_commit(Layout.of(config).commits))
    num_processes = min(num_processes, math.ceil(len(records) / SHEETS_PER_PROCESS))
    entries = [
        ChunkEntry(record["__key"], {}, orjson.dumps(record["input"]), {}) for record in records
    ]
    lines = b"".join(entry.to_line() for entry in entries)
    least, most = SHEET_BYTES
    preparer = SheetPreparer(min(max(ALL_SHEETS_BYTES // len(records), least), most))
    seconds = min(SHEET_SECONDS, config.data.sample_timeout_s)
    with job_processes() as folder:
        chunk = folder / "chosen.jsonl"
        chunk.write_bytes(lines)
        model, seal = dataset_model(config), EMPTY.extended(lines)
        spec = WorkerSpec(config, chunk, seal, model, preparer, folder)
        pool = DecodePool(ForkServer(READER), spec, num_processes, seconds)
        try:
            return asyncio.run(_all_sheets(config, task, entries, pool))
        finally:
            pool.stop()


async def _all_sheets(
    config: Config, task: Task, entries: list[ChunkEntry], pool: DecodePool
) -> list[Sheet]:
    jobs = [
        asyncio.create_task(_sheet(config, task, entry, position, pool))
        for position, entry in enumerate(entries)
    ]
    done, late = await asyncio.wait(
        jobs, timeout=GALLERY_SECONDS, return_when=asyncio.FIRST_EXCEPTION
    )
    for job in late:
        job.cancel()
    sheets = {job: job.result() for job in done if not job.exception()}
    problem = f"not made: the gallery took longer than {GALLERY_SECONDS:g} s"
    if failed := next((job for job in done if job not in sheets), None):
        problem = str(failed.exception())
        logger.warning("pictures are missing: %s", problem)
    return [sheets.get(job, Sheet(problem=problem)) for job in jobs]


async def _sheet(
    config: Config, task: Task, entry: ChunkEntry, position: int, pool: DecodePool
) -> Sheet:
    """Raises :class:`UserError` if no sheet can be made of any sample."""
    try:
        parts = task.conversations(task_sample(entry.key, entry.raw, config)).keys()
        fields = (await pool.prepare(position, parts)).requests
    except SampleError as error:
        logger.warning("no pictures of %s: %s", entry.key, error)
        return Sheet(problem=str(error))
    webp = fields["image"]
    image = webp and f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
    return Sheet(image, fields["count"], fields["prompts"])

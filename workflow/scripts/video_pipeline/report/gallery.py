"""What the model saw: the videos of some records are read again, as the run read them."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from video_pipeline.chunks import ChunkEntry
from video_pipeline.config import Config
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import READER, WorkerSpec
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import Failure, explain
from video_pipeline.files import EMPTY
from video_pipeline.model.processor import SIMULATED_MODEL, processor_folder
from video_pipeline.processes import job_processes
from video_pipeline.report.contact_sheet import contact_sheet
from video_pipeline.samples import task_sample
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task

if TYPE_CHECKING:
    from video_pipeline.data.model_pictures import Picture

logger = logging.getLogger(__name__)

PICTURES = 12
"""Pictures of a sheet, at most, evenly chosen."""

WIDTH = 160
"""Width of each, in pixels."""

QUALITIES = (75, 60, 45, 30, 15)
"""Of the WebP: the first one with which a sheet is small enough."""

SHEETS_BYTES = 800_000
"""What all sheets may have. As base64 in the page, and the page once more so in Snakemake's report,
they stay below the 2 MiB (``url::kMaxURLChars``) that Chromium opens as a ``data:`` address."""

SHEET_BYTES = (10_000, 40_000)
"""What one sheet may have, at least and at most, however many there are."""

PROMPT = 4_000
"""Characters of a prompt that are shown, at most."""

SHEET_SECONDS = 60.0
"""What one sheet may take; a page is not worth ``data.sample_timeout_s``."""

GALLERY_SECONDS = 600.0
"""What all sheets may take: a storage that hangs must not keep the run from ending."""

SHEETS_PER_WORKER = 4
"""A decode process takes seconds to start, so it should have so many sheets to make."""


@dataclass(frozen=True)
class Sheet:
    """What the model saw of one sample.

    Attributes:
        image: ``data:`` URI of the contact sheet; None if there is none.
        count: How many pictures the model saw.
        prompts: The texts it was given, by conversation.
        problem: Why there is no sheet, if it could not be made.
    """

    image: str | None = None
    count: int = 0
    prompts: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class SheetPreparer(Preparer):
    """Makes a contact sheet in a decode process, where others make requests for an engine.

    Attributes:
        most_bytes: Size of the sheet, at most, as far as the worst quality allows.
    """

    most_bytes: int

    def start(self) -> None:
        """Nothing to load."""

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        """The fields of a :class:`Sheet`; ``image`` as the bytes of a WebP."""
        from video_pipeline.data.model_pictures import all_pictures

        try:
            shown = all_pictures(llm_inputs.values())
            image = _webp(shown, self.most_bytes) if shown else None
        except Exception as error:  # what a user's own dataset may take for a picture
            raise RequestRefused(type(error).__name__, f"no picture: {explain(error)}") from error
        prompts = {part: str(each.get("prompt", "")) for part, each in llm_inputs.items()}
        return {"image": image, "count": len(shown), "prompts": prompts}


def _webp(shown: list[Picture], most_bytes: int) -> bytes:
    sheet = contact_sheet(
        [picture.image for picture in shown],
        [picture.caption for picture in shown],
        columns=4,
        width=WIDTH,
        most=PICTURES,
    )
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

    Whatever goes wrong costs the sheets it concerns, never the page: a :class:`Sheet` says what.
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
    num_processes = min(num_processes, math.ceil(len(records) / SHEETS_PER_WORKER))
    with job_processes() as folder:
        chunk = folder / "chosen.jsonl"
        entries = [
            ChunkEntry(each["__key"], {}, orjson.dumps(each["input"]), {}) for each in records
        ]
        lines = b"".join(entry.to_line() for entry in entries)
        chunk.write_bytes(lines)
        low, high = SHEET_BYTES
        preparer = SheetPreparer(min(max(SHEETS_BYTES // len(records), low), high))
        model, seal = _dataset_model(config), EMPTY.extended(lines)
        spec = WorkerSpec(config, chunk, seal, model, preparer, folder)
        server = ForkServer(READER)
        pool = DecodePool(
            server, spec, num_processes, min(SHEET_SECONDS, config.data.sample_timeout_s)
        )
        try:
            return asyncio.run(_all_sheets(config, task, entries, pool))
        finally:
            pool.stop()


def _dataset_model(config: Config) -> str:
    if config.run.engine == "simulated":
        return SIMULATED_MODEL
    return processor_folder(config.vllm.model, config.vllm.arguments.get("revision"))


async def _all_sheets(
    config: Config, task: Task, entries: list[ChunkEntry], pool: DecodePool
) -> list[Sheet]:
    makers = [
        asyncio.create_task(_sheet(config, task, entry, position, pool))
        for position, entry in enumerate(entries)
    ]
    ended, late = await asyncio.wait(
        makers, timeout=GALLERY_SECONDS, return_when=asyncio.FIRST_EXCEPTION
    )
    for maker in late:
        maker.cancel()
    failures = [maker.exception() for maker in ended if maker.exception()]
    problem = f"not made: the gallery took longer than {GALLERY_SECONDS:g} s"
    if failures:
        problem = str(failures[0])
        logger.warning("pictures are missing: %s", problem)
    made = {maker for maker in ended if not maker.exception()}
    return [maker.result() if maker in made else Sheet(problem=problem) for maker in makers]


async def _sheet(
    config: Config, task: Task, entry: ChunkEntry, position: int, pool: DecodePool
) -> Sheet:
    """Raises :class:`UserError` where no sheet can be made, of whichever sample."""
    try:
        parts = task.conversations(task_sample(entry.key, entry.raw, config)).keys()
        made = (await pool.prepare(position, parts)).requests
    except SampleError as error:
        logger.warning("no pictures of %s: %s", entry.key, error)
        return Sheet(problem=str(error))
    image = made["image"] and "data:image/webp;base64," + base64.b64encode(made["image"]).decode()
    return Sheet(image, made["count"], {p: text[:PROMPT] for p, text in made["prompts"].items()})

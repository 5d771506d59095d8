"""Plan: what a run will take, found out without a GPU and without the weights of the model.

The samples go through the decode processes of a run (:mod:`video_pipeline.decode.pool`), with the
run's own dataset, but what is read is measured only (:func:`video_pipeline.video.reader.measuring`)
and the model's processor counts the tokens. A file that crashes or hangs its reader costs itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import random
import shutil
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import orjson

from video_pipeline.changes import JournalSettings
from video_pipeline.chunks import Chunk, ChunkEntry
from video_pipeline.config import Config
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import READER, WorkerSpec
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import Failure, UserError, explain
from video_pipeline.files import replacing, write_text
from video_pipeline.gpus import card_of, devices
from video_pipeline.histograms import even_edges, figures, growing_edges, histogram
from video_pipeline.journal import clean_text, read_index
from video_pipeline.layout import Layout
from video_pipeline.locks import describe_holder, try_lock
from video_pipeline.model.processor import SIMULATED_MODEL, processor_folder
from video_pipeline.model.prompt import check_processor
from video_pipeline.model.token_count import TokenCount, count_tokens
from video_pipeline.origin import origin_of
from video_pipeline.processes import job_processes
from video_pipeline.report.plan import FLAGS, show_plan
from video_pipeline.sharding import (
    Fingerprint,
    Manifest,
    journal_folder,
    split,
    warn_of_changes,
)
from video_pipeline.statistics import read_statistics
from video_pipeline.tasks.registry import load_task

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset
    from video_pipeline.video.reader import VideoInfo

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""How often a line of progress is logged."""

SEED = 0
"""Of the random sample: asked again, the plan looks at the same samples."""

AHEAD = 64
"""Samples on their way for each process, at most: one that hangs does not keep the others from
working, and the lines of the plan stay in the order of the input."""

ERROR_KINDS = 1000
"""So many different errors are told apart; the lines of the samples hold all."""

_REFUSED = frozenset({"prompt_too_long", "item_too_large"})


@dataclass(frozen=True)
class Medium:
    """A video or image that the model sees.

    Attributes:
        pictures: Sampled frames; of an image 1.
        info: What the file of a video holds, where it is known.
    """

    pictures: int
    info: VideoInfo | None


@dataclass(frozen=True)
class Counted:
    """One conversation about a sample.

    Attributes:
        tokens: Its prompt.
        media: What is shown; objects that several conversations share are the same.
    """

    tokens: TokenCount
    media: tuple[Medium, ...]


class CountingPreparer(Preparer):
    """Counts the tokens of what a dataset made of a sample, in place of the engine's part."""

    def __init__(self, model: str) -> None:
        """``model``: ``dataset_model`` of the engine."""
        self._model = model

    def start(self) -> None:
        check_processor(self._model)

    def read(self, dataset: BaseDataset, position: int) -> Any:
        """The item of a sample, without pixels; with them where the dataset looks at them."""
        from video_pipeline.video.reader import VideoReadError, measuring

        with measuring():
            try:
                return dataset[position]
            except (VideoReadError, Failure):
                raise
            except Exception as error:  # it fails again below, unless it was for want of pixels
                logger.debug("measured: %s", error)
        return dataset[position]

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        media: dict[int, Medium] = {}
        counted = {}
        try:
            for part, llm_input in llm_inputs.items():
                shown = _items(llm_input)
                for item in shown:
                    media.setdefault(id(item), _medium(item))
                counted[part] = Counted(
                    self._count(llm_input), tuple(media[id(item)] for item in shown)
                )
        except Exception as error:
            raise RequestRefused(type(error).__name__, str(error)) from error
        return counted

    def _count(self, llm_input: dict[str, Any]) -> TokenCount:
        if self._model == SIMULATED_MODEL:
            from video_pipeline.engine import simulated

            text = simulated.count_tokens({"prompt": llm_input["prompt"]})
            prompt = simulated.count_tokens(llm_input)
            return TokenCount(prompt, prompt - text, 0)
        return count_tokens(self._model, llm_input)


def _items(llm_input: dict[str, Any]) -> list[Any]:
    """The images and videos of an input."""
    given = (llm_input.get("multi_modal_data") or {}).values()
    return [item for items in given for item in (items if isinstance(items, list) else [items])]


def _medium(item: Any) -> Medium:
    if not isinstance(item, tuple):
        return Medium(1, None)
    frames, metadata = item
    return Medium(len(frames), getattr(metadata, "info", None))


def plan_stages(configs: Sequence[Config], threads: int) -> None:
    """Make the plan of each stage whose input is there; arguments as in :func:`make_plan`."""
    for number, config in enumerate(configs):
        source = config.data.input_jsonl
        outputs = [other.data.output_jsonl for other in configs[:number]]
        if source in outputs and not source.exists():
            logger.warning(
                "%s: left out, a stage before it has to write its input first: %s",
                config.data.output_jsonl,
                source,
            )
        else:
            make_plan(config, Layout.of(config, 0), threads)


def make_plan(config: Config, layout: Layout, threads: int) -> None:
    """Look at the samples of ``config`` in ``threads`` processes; write ``layout.plan_report`` and
    ``layout.plan_samples`` and print what is in them.

    Raises :class:`UserError` where split would (bad lines, a longest prompt that does not fit), for
    the user's own code, and if the model's processor is not available.
    """
    lock = try_lock(layout.plan_lock)
    if lock is None:
        raise UserError(
            f"the plan of {layout.output} is being made by {describe_holder(layout.plan_lock)}"
        )
    with lock:
        shutil.rmtree(layout.plan_scratch, ignore_errors=True)  # of a plan that was killed
        try:
            report = _plan(_own_config(config, layout), config, layout, threads)
        finally:
            shutil.rmtree(layout.plan_scratch, ignore_errors=True)
    write_text(layout.plan_report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    show_plan(report)


def _own_config(config: Config, layout: Layout) -> Config:
    """``config`` with a scratch place for an output and, for a model, its processor."""
    data = config.data.model_copy(
        update={"output_jsonl": layout.plan_scratch / "plan.jsonl", "balance": "count"}
    )
    if config.run.engine == "simulated":
        return config.model_copy(update={"data": data})
    folder = processor_folder(config.vllm.model, config.vllm.arguments.get("revision"))
    vllm = config.vllm.model_copy(update={"model": folder})
    return config.model_copy(update={"data": data, "vllm": vllm})


def _plan(own: Config, config: Config, layout: Layout, threads: int) -> dict[str, Any]:
    """The report, with the settings of ``config``; ``own`` is what the work is done with."""
    ours = Layout.of(own, 1)
    # it would speak of chunks and how they are balanced, of which there are none here
    logging.getLogger(split.__module__).setLevel(logging.WARNING)
    manifest = split(own, ours, num_processes=threads)
    chunk = manifest.open_chunk(ours, 0)
    positions: Sequence[int] = range(len(chunk))
    if config.plan.samples is not None and config.plan.samples < len(chunk):
        positions = sorted(random.Random(SEED).sample(positions, config.plan.samples))
    with job_processes() as folder, replacing(layout.plan_samples) as lines:
        findings = Findings(config, lines)
        if positions:
            _look(own, chunk, positions, folder, threads, findings)
    _warn_of_changes(config, layout, manifest, chunk)
    return _report(config, layout, manifest, findings)


def _warn_of_changes(config: Config, layout: Layout, manifest: Manifest, chunk: Chunk) -> None:
    """Log what a run would infer again because the settings have changed."""
    earlier = JournalSettings.last(layout) if config.data.resume else None
    if earlier is None:
        return
    stands_for = Fingerprint.of(config, layout, load_task(config))
    now = JournalSettings.of(stands_for.folder(layout), stands_for.by_key, origin_of(config))
    index = read_index(now.folder)
    pending = sum(any(index.find(*each) is None for each in entry.questions) for entry in chunk)
    if pending:
        warn_of_changes(now, earlier, pending, manifest.samples)


def _look(
    own: Config,
    chunk: Chunk,
    positions: Sequence[int],
    folder: Path,
    threads: int,
    findings: Findings,
) -> None:
    """Have the samples at ``positions`` counted, while another process asks the engine for its
    limit."""
    simulated = own.run.engine == "simulated"
    model = SIMULATED_MODEL if simulated else own.vllm.model
    spec = WorkerSpec(own, chunk.path, chunk.seal, model, CountingPreparer(model), folder)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as engine:
        limit = None if simulated else engine.submit(_max_item_tokens, own)
        asyncio.run(_look_at_all(spec, chunk, positions, threads, findings, limit))


def _max_item_tokens(config: Config) -> int | None:
    """Visual tokens of the largest item that the engine takes, run in a process of its own: vLLM
    takes 2 GB, and has much to say."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from video_pipeline.engine import create_engine

    return create_engine(config, with_videos=False).max_item_tokens


async def _look_at_all(
    spec: WorkerSpec,
    chunk: Chunk,
    positions: Sequence[int],
    threads: int,
    findings: Findings,
    limit: Future[int | None] | None,
) -> None:
    """Count the samples, many at once, and note what is found in their order."""
    timeout_s = spec.config.data.sample_timeout_s
    pool = DecodePool(ForkServer(READER), spec, min(threads, len(positions)), timeout_s)
    progress = asyncio.create_task(_log_progress(findings, len(positions)))
    waiting: deque[asyncio.Task[Found]] = deque()
    try:
        if limit is not None:
            await findings.ask(limit)
        for position in positions:
            waiting.append(asyncio.create_task(_look_at(pool, position, chunk[position])))
            if len(waiting) == threads * AHEAD:
                findings.note(await waiting.popleft())
        while waiting:
            findings.note(await waiting.popleft())
    finally:
        pool.stop()  # its threads end with their processes
        for task in (progress, *waiting):
            task.cancel()


async def _look_at(pool: DecodePool, position: int, entry: ChunkEntry) -> Found:
    """What a sample costs. One that kills its process is tried once more, as in a run."""
    try:
        try:
            prepared = await pool.prepare(position, entry.requests)
        except SampleError as error:
            if error.stage != "crash":
                raise
            prepared = await pool.prepare(position, entry.requests)
    except SampleError as error:
        record = error.as_record()
        return Found(entry, error={**record, "message": clean_text(record["message"])})
    return Found(entry, prepared.video_seconds, prepared.requests)


async def _log_progress(findings: Findings, total: int) -> None:
    begun = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        done = findings.looked_at
        if not done:
            begun = time.monotonic()
            logger.info("%d samples to look at, starting up", total)
            continue
        rate = done / (time.monotonic() - begun)
        logger.info(
            "looked at %d of %d samples, %.1f a second, %.1f min left; %d unreadable",
            done,
            total,
            rate,
            (total - done) / rate / 60,
            findings.unreadable,
        )


@dataclass(frozen=True)
class Found:
    """What is known of a sample.

    Attributes:
        entry: The sample.
        seconds: Length of its videos (of the segment, where one is given).
        counted: What each conversation about it costs; empty if it cannot be read.
        error: ``__error`` of the record that a run would write, if it cannot.
    """

    entry: ChunkEntry
    seconds: float = 0.0
    counted: dict[str, Counted] = field(default_factory=dict)
    error: dict[str, str] | None = None

    @property
    def media(self) -> list[Medium]:
        """Its videos and images, each once."""
        distinct = {id(each): each for one in self.counted.values() for each in one.media}
        return list(distinct.values())

    @property
    def tokens(self) -> list[TokenCount]:
        """Of each conversation."""
        return [one.tokens for one in self.counted.values()]


class Findings:
    """What is known of the samples that were looked at; numbers are those of a sample unless they
    are said to be of a prompt.

    Attributes:
        max_item_tokens: See :class:`video_pipeline.engine.base.Engine`.
        why_unknown: Why that is not known, where it is not.
        looked_at: Samples.
        unreadable: Of these, those that would become error records.
        errors: How often each kind of error came, as (stage, type, message).
        examples: The video of the first sample with that error.
        prompt_tokens: Of each prompt.
        visual_tokens: Likewise.
        refused: Prompts that vLLM would refuse.
        tokens_to_run: Tokens of all others.
        flagged: Samples with each of :data:`FLAGS`.
        seconds: Of each sample with videos.
        num_bytes: Of all videos together.
        sizes: Videos of each size, such as ``1920x1080``.
        codecs: Videos of each codec.
    """

    def __init__(self, config: Config, lines: BinaryIO) -> None:
        self._config = config
        self._lines = lines
        self.max_item_tokens: int | None = None
        self.why_unknown = ""
        self.looked_at = self.unreadable = 0
        self.errors: Counter[tuple[str, str, str]] = Counter()
        self.examples: dict[tuple[str, str, str], Any] = {}
        self.prompt_tokens = array("q")
        self.visual_tokens = array("q")
        self.refused = self.tokens_to_run = 0
        self.flagged: Counter[str] = Counter()
        self.seconds = array("d")
        self.num_bytes = 0
        self.sizes: Counter[str] = Counter()
        self.codecs: Counter[str] = Counter()

    def note(self, found: Found) -> None:
        """Count a sample, and write its line."""
        video = found.entry.raw.get(self._config.data.video_field)
        line: dict[str, Any] = {"key": found.entry.key, "path": video}
        self.looked_at += 1
        if found.error is not None:
            self._note_error(found.error, video)
            line |= {"readable": False, "error": found.error}
        else:
            line |= {"readable": True, **self._note_readable(found)}
        self._lines.write(orjson.dumps(line) + b"\n")

    async def ask(self, max_item_tokens: Future[int | None]) -> None:
        """Wait for what another process says. On a machine without a GPU a vLLM that was built for
        one may not know."""
        try:
            self.max_item_tokens = await asyncio.wrap_future(max_item_tokens)
        except Exception as error:
            self.why_unknown = str(error) if isinstance(error, Failure) else explain(error)

    @property
    def prompts_per_sample(self) -> float:
        """How many conversations there are about a sample."""
        readable = self.looked_at - self.unreadable
        return len(self.prompt_tokens) / readable if readable else 1.0

    def _note_error(self, error: dict[str, str], video: Any) -> None:
        self.unreadable += 1
        kind = (error["stage"], error["type"], error["message"])
        if kind not in self.errors and len(self.errors) >= ERROR_KINDS:
            kind = (error["stage"], error["type"], "(other messages)")
        self.errors[kind] += 1
        self.examples.setdefault(kind, video)

    def _note_readable(self, found: Found) -> dict[str, Any]:
        flags: set[str] = set()
        for tokens in found.tokens:
            wrong = self._flags(tokens)
            flags |= wrong
            self.prompt_tokens.append(tokens.prompt)
            self.visual_tokens.append(tokens.visual)
            if wrong & _REFUSED:
                self.refused += 1
            else:
                self.tokens_to_run += tokens.prompt
        self.flagged.update(flags)
        media = found.media
        files = [each.info for each in media if each.info is not None]
        for file in files:
            self.num_bytes += file.num_bytes
            self.sizes[f"{file.width}x{file.height}"] += 1
            self.codecs[file.codec] += 1
        if found.seconds:
            self.seconds.append(found.seconds)
        first = files[0] if files else None
        several = {part: one.tokens.prompt for part, one in found.counted.items()}
        return {
            "seconds": round(found.seconds, 3),
            "width": first and first.width,
            "height": first and first.height,
            "codec": first and first.codec,
            "bytes": sum(file.num_bytes for file in files) if files else None,
            "frames": sum(each.pictures for each in media),
            "prompt_tokens": sum(several.values()),
            "visual_tokens": sum(tokens.visual for tokens in found.tokens),
            **({"prompt_tokens_of": several} if len(several) > 1 else {}),
            "flags": [flag for flag in FLAGS if flag in flags],
        }

    def _flags(self, tokens: TokenCount) -> set[str]:
        """What is wrong with a prompt, see :data:`FLAGS`."""
        most = self._config.vllm.max_model_len
        flags = set()
        if tokens.prompt >= most:
            flags.add("prompt_too_long")
        elif tokens.prompt + self._config.most_tokens > most:
            flags.add("answer_may_be_cut")
        if self.max_item_tokens is not None and tokens.largest > self.max_item_tokens:
            flags.add("item_too_large")
        return flags


def _report(
    config: Config, layout: Layout, manifest: Manifest, findings: Findings
) -> dict[str, Any]:
    scale = manifest.samples / findings.looked_at if findings.looked_at else 1.0
    limits = {
        "max_model_len": config.vllm.max_model_len,
        "longest_answer": config.most_tokens,
        "max_item_tokens": findings.max_item_tokens,
        "max_item_tokens_unknown": findings.why_unknown or None,
    }
    return {
        "output": str(layout.output),
        "task": manifest.task,
        "model": config.model_name,
        "samples": {
            **manifest.counts,
            "looked_at": findings.looked_at,
            "readable": findings.looked_at - findings.unreadable,
            "unreadable": findings.unreadable,
        },
        "scale": scale,
        "errors": [
            {
                **dict(zip(("stage", "type", "message"), kind, strict=True)),
                "count": count,
                "example": findings.examples[kind],
            }
            for kind, count in findings.errors.most_common()
        ],
        "videos": {
            "seconds": figures(findings.seconds),
            "bytes": findings.num_bytes,
            "sizes": dict(findings.sizes.most_common()),
            "codecs": dict(findings.codecs.most_common()),
        },
        "tokens": {
            "prompts": len(findings.prompt_tokens),
            "prompt": figures(findings.prompt_tokens),
            "visual": figures(findings.visual_tokens),
        },
        "limits": limits,
        "flagged": {flag: findings.flagged[flag] for flag in FLAGS},
        "expected": _expected(config, layout, findings, scale),
        "histograms": {
            "prompt_tokens": histogram(findings.prompt_tokens, even_edges),
            "seconds": histogram(findings.seconds, growing_edges),
        },
    }


def _expected(config: Config, layout: Layout, findings: Findings, scale: float) -> dict[str, Any]:
    """Tokens, GPU-hours and cost of the whole run, as far as they can be told."""
    settings, earlier = config.plan, _earlier_run(config, layout)
    prompts = (len(findings.prompt_tokens) - findings.refused) * scale
    prompt_tokens = findings.tokens_to_run * scale
    if settings.expected_completion_tokens is not None:
        each, source = settings.expected_completion_tokens, "plan.expected_completion_tokens"
    elif earlier is not None and earlier.completion_tokens_per_sample is not None:
        each = earlier.completion_tokens_per_sample / findings.prompts_per_sample
        source = f"the mean of {earlier.words}"
    else:
        each, source = config.sampling.max_tokens, "sampling.max_tokens, the worst case"
    completion_tokens = prompts * each
    expected: dict[str, Any] = {
        "prompts": round(prompts),
        "prompt_tokens": round(prompt_tokens),
        "completion_tokens": round(completion_tokens),
        "completion_tokens_each": each,
        "completion_tokens_from": source,
    }
    if settings.prompt_tokens_per_second is not None:
        rates = {
            "prompt_tokens_per_second": settings.prompt_tokens_per_second,
            "completion_tokens_per_second": settings.completion_tokens_per_second,
        }
        reading, writing = rates.values()
        hours = (prompt_tokens / reading + completion_tokens / writing) / 3600
        formula = (
            "(prompt tokens / plan.prompt_tokens_per_second + completion tokens / "
            "plan.completion_tokens_per_second) / 3600"
        )
    elif earlier is not None:
        rates = {"tokens_per_second": earlier.tokens_per_second}
        hours = (prompt_tokens + completion_tokens) / earlier.tokens_per_second / 3600
        formula = (
            f"(prompt tokens + completion tokens) / tokens per second and GPU of {earlier.words} / "
            "3600"
        )
    else:
        return {**expected, "gpu_hours": None, "cost": None}
    price = settings.price_per_gpu_hour
    return {
        **expected,
        **rates,
        "gpu_hours": hours,
        "formula": formula,
        "price_per_gpu_hour": price,
        "cost": None if price is None else hours * price,
    }


class _EarlierRun(NamedTuple):
    """What earlier attempts with the same model measured, on one kind of card.

    Attributes:
        words: Which attempts they are.
        tokens_per_second: Of prompts and answers together, of one GPU.
        completion_tokens_per_sample: The mean; None where they had other settings, so that their
            answers tell nothing.
    """

    words: str
    tokens_per_second: float
    completion_tokens_per_sample: float | None


def _earlier_run(config: Config, layout: Layout) -> _EarlierRun | None:
    """What the attempts spent whose answers a run of ``config`` would go on from, and those of its
    runs without ``data.resume``. Where there are none, what others beside this output spent with
    the same model on a card that is known. None if they inferred nothing."""
    task = load_task(config)
    journal = journal_folder(config, layout, task, "")
    jobs = [
        job for job in _attempts(journal.parent, f"{journal.name}*") if job["task"] == task.name
    ]
    has_same_settings = bool(jobs)
    if not has_same_settings:
        quantization = config.vllm.arguments.get("quantization")
        jobs = [
            job
            for job in _attempts(layout.journal.parent, "*/*")
            if job["card"]
            and (job["model"], job["quantization"]) == (config.model_name, quantization)
        ]
    if not jobs:
        return None
    card = _card(jobs)
    jobs = [job for job in jobs if job["card"] == card]
    tokens = sum(job["prompt_tokens"] + job["completion_tokens"] for job in jobs)
    seconds = sum(max(job["gpus"], 1) * job["seconds"] for job in jobs)
    on = f" on {card}" if card else ""
    if not has_same_settings:
        words = (
            f"earlier attempts with the same model and other settings{on} ({journal.parent.parent})"
        )
        return _EarlierRun(words, tokens / seconds, None)
    completion, inferred = (sum(j[n] for j in jobs) for n in ("completion_tokens", "inferred"))
    return _EarlierRun(f"earlier attempts{on} ({journal})", tokens / seconds, completion / inferred)


def _attempts(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The attempts in these journals that inferred something."""
    return [
        job
        for journal in folder.glob(pattern)
        for job in read_statistics(journal)
        if job["seconds"] > 0 and job["inferred"] > 0
    ]


def _card(jobs: list[dict[str, Any]]) -> str | None:
    """Of the cards that these attempts ran on, this machine's, else that of the last attempt."""
    here = None
    with suppress(UserError):  # a plan needs no GPU that works
        here = card_of(devices())
    if here is not None and any(job["card"] == here for job in jobs):
        return here
    return max(jobs, key=lambda job: job["started_at"])["card"]

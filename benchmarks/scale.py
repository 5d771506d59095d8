"""Millions of lines and a thousand shards: split, a restart with everything done, consolidate, and
what Snakemake needs to plan; and how evenly split deals out.

``BENCH_LINES`` sets the number of lines (default 10,000,000, which takes 35 GB of disk).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from video_pipeline.run.statistics import read_statistics

from benchmarks.jobs import SCRIPTS, call, measure
from benchmarks.memory import Watch
from benchmarks.report import Figure, Section

LINES = int(os.environ.get("BENCH_LINES", 10_000_000))
RANKS, MANY_RANKS = 8, 1000
BAR_COST, BAR_MB, BAR_PLAN, BAR_RESTART, BAR_BALANCE = 2.5, 500, 3.0, 2.0, 1.03
HEAVY_TAILED, SIGMA = 10_000, 1.0
ROOT = Path(__file__).resolve().parents[1]

LINE = (
    '{{"path": "clips/part-{part:04d}/{name:016x}.mp4", "id": "yt-{number:09d}", "duration": '
    '{seconds:.2f}, "caption": "{caption}", "width": 1280, "height": 720, "fps": 29.97, "source": '
    '"web-crawl-2024", "license": "cc-by", "tags": ["street", "dog", "rain"]}}\n'
)
SENTENCE = (
    "a man in the red jacket walks his small brown dog along wet street while cars pass by and "
    "then stops to talk with an old neighbour who waits for bus under umbrella"
)

BARE = """
RANKS = range({num_ranks})
rule all:
    input: "out.jsonl", "out.summary.json", "out.errors.jsonl"
rule split:
    input: "samples.jsonl"
    output: [f"chunks/{{r}}.jsonl" for r in RANKS], "chunks/order.bin", "chunks/manifest.json"
    shell: "true"
rule infer:
    input: "chunks/{{rank}}.jsonl", "chunks/manifest.json"
    output: temp("out.rank{{rank}}.jsonl")
    shell: "true"
rule consolidate:
    input:
        [f"out.rank{{r}}.jsonl" for r in RANKS],
        [f"chunks/{{r}}.jsonl" for r in RANKS],
        "chunks/order.bin",
        "chunks/manifest.json",
    output: "out.jsonl", "out.summary.json", "out.errors.jsonl"
    shell: "true"
"""


@dataclass
class Cost:
    """What a step took: wall seconds, CPU seconds of all its processes, and peak bytes of its main
    process and of all of them."""

    seconds: float
    cpu: float
    main: int = 0
    tree: int = 0


def run(work: Path) -> Section:
    """Measure the steps over one large input, then planning, then the balance."""
    folder = work / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_input(folder / "samples.jsonl")
    line_bytes = (folder / "samples.jsonl").stat().st_size / LINES
    _write_config(folder, RANKS)
    samples = str(folder / "samples.jsonl")
    plain = _loop(folder, "plain_loop", paths=[samples])
    least_split = _loop_on_all_cores(folder, "least_split", samples=samples)
    split = _step(folder, "split.py", "--threads", str(os.cpu_count()))
    _finish_all(folder)
    (journal,) = folder.glob("results/.journal/out/*")
    journals = sorted(map(str, journal.iterdir()))
    journal_loop = _loop(folder, "plain_loop", paths=journals)
    least_publish = _loop_on_all_cores(folder, "least_publish", samples=samples, paths=journals)
    index = _loop(folder, "read_journals", journal=str(journal))
    again = _step(folder, "split.py", "--threads", str(os.cpu_count()))
    infer = _infer_all(folder)
    if read_statistics(journal):
        raise RuntimeError("a restart with everything done has inferred something")
    consolidate = _step(folder, "consolidate.py")
    shutil.rmtree(folder)
    bare, ours = _planning(work / "scale-plan")
    even = {ranks: _balance(ranks) for ranks in (8, 64)}

    mb = f"{LINES:,} lines: peak memory of {{}}, MB, all its processes"
    figures = [
        Figure.at_most(
            f"{LINES:,} lines: split / plain loop", split.seconds / plain.seconds, BAR_COST
        ),
        Figure.for_comparison(
            f"the least that resume needs, on {os.cpu_count()} cores / the same",
            f"{least_split.seconds / plain.seconds:.2f}",
        ),
        Figure.at_most(
            f"{LINES:,} lines: consolidate / plain loop",
            consolidate.seconds / plain.seconds,
            BAR_COST,
        ),
        Figure.at_most(mb.format("split"), split.tree / 1e6, BAR_MB, f"{split.tree / 1e6:.0f}"),
        Figure.at_most(
            mb.format("split, everything done"), again.tree / 1e6, BAR_MB, f"{again.tree / 1e6:.0f}"
        ),
        Figure.at_most(
            mb.format("consolidate"),
            consolidate.tree / 1e6,
            BAR_MB,
            f"{consolidate.tree / 1e6:.0f}",
        ),
        Figure.at_most(
            "reading the journals / plain loop over their lines",
            index.seconds / journal_loop.seconds,
            BAR_RESTART,
        ),
        Figure.for_comparison(
            "split, everything done / plain loop over the journals' lines",
            f"{again.seconds / journal_loop.seconds:.2f}",
        ),
        Figure.for_comparison(
            f"all infer jobs, {os.cpu_count()} at a time, everything done / the same",
            f"{infer.seconds / journal_loop.seconds:.2f}",
        ),
        Figure.for_comparison(
            f"the least that a changed `parse` needs, on {os.cpu_count()} cores / the same",
            f"{least_publish.seconds / journal_loop.seconds:.2f}",
        ),
        Figure.at_most(f"planning {MANY_RANKS:,} shards / a bare workflow", ours / bare, BAR_PLAN),
        *(
            figure
            for ranks, (longest, by_count) in even.items()
            for figure in (
                Figure.at_most(
                    f"longest rank / mean, log-normal durations, {ranks} ranks",
                    longest,
                    BAR_BALANCE,
                    f"{longest:.4f}",
                ),
                Figure.for_comparison(
                    f"the same, split by count, {ranks} ranks", f"{by_count:.4f}"
                ),
            )
        ),
    ]
    steps = {
        "plain loop over the input": plain,
        "the least that resume needs": least_split,
        "split, everything pending": split,
        "plain loop over the journals": journal_loop,
        "the least that a changed `parse` needs": least_publish,
        "reading the journals": index,
        "split, everything done": again,
        f"all infer jobs, {os.cpu_count()} at a time, everything done": infer,
        "consolidate": consolidate,
    }
    details = [
        ["", "seconds", "µs a line", "CPU, µs a line", "main process, MB", "all processes, MB"]
    ] + [
        [
            name,
            f"{cost.seconds:.1f}",
            f"{cost.seconds / LINES * 1e6:.2f}",
            f"{cost.cpu / LINES * 1e6:.2f}",
            f"{cost.main / 1e6:.0f}" if cost.main else "",
            f"{cost.tree / 1e6:.0f}" if cost.tree else "",
        ]
        for name, cost in steps.items()
    ]
    details += [
        [f"`snakemake -n`, {MANY_RANKS:,} shards", f"{ours:.1f}", "", "", "", ""],
        [f"`snakemake -n`, bare workflow of {MANY_RANKS:,} jobs", f"{bare:.1f}", "", "", "", ""],
    ]
    how = (
        f"{LINES:,} lines of {line_bytes:.0f} bytes as `json.dumps` writes them (path, id, "
        "duration, a caption of 22 words, size, rate, source, licence, tags), `id_field: id`, "
        f"task `describe`, {RANKS} shards, `data.balance: duration` from the field. *Plain loop*: "
        "one process that parses each line with orjson and writes it back. *Split*, *infer* and "
        "*consolidate* are the real command lines, start of Python and torch included; split may "
        "use all cores. The journal is written through `JournalWriter`, one answer of 300 "
        "characters a sample; *reading the journals* is what split does with it. *The least*: "
        "loops like the plain one that do what no split can leave out (the task's messages and "
        "their digest, for each line), and no infer (the answer and its sample parsed, the task's "
        "`parse`, the record written); nothing is checked or looked up. One loop runs on each "
        "core at the same time, and the time is divided by their number. *All processes*: "
        "proportional set sizes, sampled twice a second. *Planning*: `snakemake -n`, the faster of "
        f"two. *Balance*: {HEAVY_TAILED:,} samples, log-normal durations, sigma {SIGMA:g}, seeded."
    )
    limits = (
        "Split: Python's own work on each line. Of a line's CPU in a scanning process a quarter is "
        "reading it (parse, names that are there twice, video, id), two fifths its request "
        "digest (the task's messages, their JSON, blake2b), the rest the task's sample, its entry, "
        "its weight and the way to the other process; cores divide it. Infer with everything done: "
        "the task's parse of each answer, for which the record of the journal and the sample are "
        "parsed and the output record is written. Consolidate: moving the records, each more than "
        "twice as long as a line of the input, and their checksum."
    )
    return Section("Millions of samples", figures, how, limits, details)


def _write_input(path: Path) -> None:
    rng = random.Random(0)
    words = SENTENCE.split()
    with open(path, "w", encoding="utf-8", buffering=1 << 20) as stream:
        for number in range(LINES):
            stream.write(
                LINE.format(
                    part=number % 4096,
                    name=rng.getrandbits(64),
                    number=number,
                    seconds=rng.lognormvariate(2.5, SIGMA),
                    caption=" ".join(rng.choices(words, k=22)),
                )
            )


def _write_config(folder: Path, num_ranks: int) -> None:
    config = {
        "data": {
            "input_jsonl": "samples.jsonl",
            "output_jsonl": "results/out.jsonl",
            "id_field": "id",
            "balance": "duration",
            "num_shards": num_ranks,
        },
        "run": {"engine": "simulated"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _loop(folder: Path, what: str, **settings: Any) -> Cost:
    result = measure("scale_loop", folder / "loop", what=what, **settings)
    return Cost(result["seconds"], result["cpu"])


def _loop_on_all_cores(folder: Path, what: str, **settings: Any) -> Cost:
    """One loop over everything on each core, at the same time, divided by their number: cores side
    by side may do less than as many alone."""
    number = os.cpu_count()
    with ThreadPoolExecutor(number) as pool:
        futures = [
            pool.submit(_loop, folder / f"core{core}", what, **settings) for core in range(number)
        ]
        loops = [future.result() for future in futures]
    seconds = max(loop.seconds for loop in loops)
    return Cost(seconds / number, sum(loop.cpu for loop in loops) / number)


def _step(folder: Path, script: str, *arguments: str) -> Cost:
    watch = Watch()
    begun, cpu = time.monotonic(), _cpu_of_children()
    command = [str(SCRIPTS / script), "--config", "config.yaml", "--num-shards", str(RANKS)]
    call([*command, *arguments], folder, watch)
    seconds, cpu = time.monotonic() - begun, _cpu_of_children() - cpu
    return Cost(seconds, cpu, watch.peaks.main, watch.peaks.tree)


def _infer_all(folder: Path) -> Cost:
    """The infer jobs of all ranks, one on each core at a time; memory is that of one job."""
    begun, cpu = time.monotonic(), _cpu_of_children()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = list(
            pool.map(lambda rank: _step(folder, "infer.py", "--rank", str(rank)), range(RANKS))
        )
    seconds, cpu = time.monotonic() - begun, _cpu_of_children() - cpu
    return Cost(seconds, cpu, max(job.main for job in jobs), max(job.tree for job in jobs))


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _finish_all(folder: Path) -> None:
    """Write an answer for every sample, as the inference jobs would."""
    from video_pipeline.journal.format import attempt_prefix
    from video_pipeline.journal.writer import JournalWriter
    from video_pipeline.run.layout import Layout
    from video_pipeline.run.manifest import Manifest

    layout = Layout(folder / "results" / "out.jsonl", RANKS)
    manifest = Manifest.read(layout)
    usage = {"prompt_tokens": 2609, "completion_tokens": 64, "finish_reason": "stop"}
    text = f"The video shows {SENTENCE}; {SENTENCE}"[:300]
    for rank in range(RANKS):
        prefix = attempt_prefix(manifest.split_id, rank)
        with JournalWriter(Path(manifest.journal), prefix) as journal:
            for entry in manifest.open_chunk(layout, rank):
                journal.answer(*entry.questions[0], text, usage)


def _planning(folder: Path) -> tuple[float, float]:
    """Seconds that ``snakemake -n`` takes for a bare workflow, and for this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text('{"path": "a.mp4", "id": "a"}\n')
    _write_config(folder, MANY_RANKS)
    bare = folder / "bare.smk"
    bare.write_text(BARE.format(num_ranks=MANY_RANKS))
    commands = (
        ["--snakefile", str(bare)],
        ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml"],
    )
    options = ["-n", "--quiet", "--cores", "2", "--directory", str(folder)]

    def plan(command: list[str]) -> float:
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "snakemake", *options, *command],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return time.monotonic() - begun

    bare_seconds, our_seconds = (min(plan(command) for _ in range(2)) for command in commands)
    return bare_seconds, our_seconds


def _balance(num_ranks: int) -> tuple[float, float]:
    """Weight of the longest rank / the mean: as split deals, and by count."""
    from video_pipeline.split.balance import BalanceReport, assign_ranks

    weights = np.random.default_rng(0).lognormal(2.5, SIGMA, HEAVY_TAILED).astype(np.float32)
    balance = BalanceReport("duration")
    assign_ranks(weights, num_ranks, balance)
    return balance.longest, balance.longest_by_count

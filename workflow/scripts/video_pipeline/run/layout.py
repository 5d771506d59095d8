"""The paths of a run's files, all beside ``data.output_jsonl``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from video_pipeline.common.files import is_newer, remove_leftovers
from video_pipeline.config import Config

_CHUNKS = re.compile(r"of-\d+|\.of-\d+\.tmp")


class _Path:
    """A path that follows from a layout."""

    def __init__(self, path_of: Callable[[Layout], Path]) -> None:
        self._path_of = path_of

    def __get__(self, layout: Layout, owner: type[Layout]) -> Path:
        return self._path_of(layout)


def _beside(ending: str) -> _Path:
    return _Path(lambda layout: layout.beside(ending))


def _of_run(name: str) -> _Path:
    return _Path(lambda layout: layout.output.parent / ".chunks" / layout.stem / name)


def _of_split(name: str) -> _Path:
    return _Path(lambda layout: layout.chunks / name)


@dataclass(frozen=True)
class Layout:
    """The paths of one output."""

    output: Path  # the consolidated output, as configured
    num_shards: int = 0  # how many chunks the input is split into; 0 where that does not matter
    logs: Path = Path("logs")  # the folder of all logs, relative to the working directory

    @classmethod
    def of(cls, config: Config, num_shards: int = 0) -> Layout:
        """The layout of a configuration's output."""
        return cls(config.data.output_jsonl, num_shards)

    @property
    def stem(self) -> str:
        """The name of the output without ``.jsonl``."""
        return self.output.name.removesuffix(".jsonl")

    def beside(self, ending: str) -> Path:
        """``output.describe`` + ``ending``."""
        return self.output.with_name(self.stem + ending)

    def log(self, name: str) -> Path:
        """The log of one rule, relative to the working directory."""
        return self.logs / self.stem / f"{name}.log"

    def benchmark(self, name: str) -> Path:
        """Snakemake's measurements of one rule's last job: time, memory, disk. Beside its log."""
        return self.log(name).with_suffix(".tsv")

    # --- beside the output ------------------------------------------------------------------------

    config = _beside(".config.yaml")  # the resolved configuration
    summary = _beside(".summary.json")  # counts of the whole run
    errors = _beside(".errors.jsonl")  # the failed samples; may be the input of another run
    report = _beside(".report.html")
    report_table = _beside(".report.tsv")  # the summary and the plan, for Snakemake's report
    partial = _beside(".partial.jsonl")  # the records that are finished before the run is
    videos = _beside(".videos.jsonl")  # of long videos: one line for each, with its windows
    dataset = _beside(".dataset")  # a folder to upload to a hub: Parquet and a card
    card = _Path(lambda layout: layout.dataset / "README.md")  # exists when the whole folder does
    receipt = _beside(".published.json")  # what was published, and where
    plan_report = _beside(".plan.json")  # the estimate of a run
    plan_samples = _beside(".plan.jsonl")  # the estimate of each sample that plan has read

    @property
    def consolidated(self) -> list[Path]:
        """The files that consolidate makes for every output."""
        return [self.output, self.summary, self.errors]

    def rank_file(self, rank: int | str) -> Path:
        """The finished records of one rank, in input order."""
        return self.beside(f".rank{rank}.jsonl")

    def rank_files(self) -> list[Path]:
        """The rank files on disk, of any split."""
        pattern = re.compile(rf"{re.escape(self.stem)}\.rank\d+\.jsonl")
        return [path for path in self.output.parent.iterdir() if pattern.fullmatch(path.name)]

    # --- the journal ------------------------------------------------------------------------------

    # A folder in it for each fingerprint, and the commits of models of the hub.
    journal = _Path(lambda layout: layout.output.parent / ".journal" / layout.stem)
    commits = _Path(lambda layout: layout.journal / "commits.json")

    def journal_now(self, path: str) -> Path:
        """The journal that a manifest or a summary calls ``path``: the run may have moved since."""
        return self.journal / Path(path).name

    # --- of the run, for any number of shards -----------------------------------------------------

    _all_chunks = _of_run("")
    sharding = _of_run("plan.json")  # the number of shards, decided once, see run/sharding.py
    plan_config = _of_run("plan.config.yaml")  # that plan reads; a live run may have another one
    plan_scratch = _of_run("plan")  # the folder that plan works in
    plan_lock = _of_run("plan.lock")  # held by the process that estimates
    dataset_lock = _of_run("dataset.lock")  # held by the process that writes the dataset
    checksums = _of_run("sha256")  # of the files that are being published
    run_lock = _of_run("snakemake.lock")  # held by the Snakemake, retry or prune that works on it
    previous = _of_run("previous")  # the output of the run before, see run/previous.py
    invoked = _of_run("invoked.json")  # the last invocation, see run/invoked.py
    reopened = _of_run("reopened")  # exists while the output has errors that were opened again

    def progress(self, step: str) -> Path:
        """The progress of a step other than inference."""
        return self._all_chunks / f"{step}.progress.json"

    @property
    def all_locks(self) -> list[Path]:
        """The locks of every sharding of this output."""
        return sorted(self._all_chunks.glob("of-*/rank*.lock"))

    # --- of one split -----------------------------------------------------------------------------

    # The folder of the chunks, which names the number of shards, and the one that split works in.
    chunks = _Path(lambda layout: layout._all_chunks / f"of-{layout.num_shards}")
    split_scratch = _Path(lambda layout: layout._all_chunks / f".of-{layout.num_shards}.tmp")
    manifest = _of_split("manifest.json")  # what split did, see run/manifest.py
    order = _of_split("order.bin")  # the rank of each distinct sample, in input order
    left_out = _of_split("left_out.jsonl")  # the records of samples that are not asked about
    weights = _of_split("weights.txt")  # names the folder of the model's weights

    def chunk(self, rank: int | str) -> Path:
        """The samples of one rank."""
        return self.chunks / f"rank{rank}.jsonl"

    def contents(self, rank: int) -> Path:
        """A description of the rank file of one rank."""
        return self.chunks / f"rank{rank}.contents.json"

    def failure(self, rank: int) -> Path:
        """The error of the last inference job of one rank, if another attempt would fail, too."""
        return self.chunks / f"rank{rank}.failure.txt"

    def lock(self, rank: int) -> Path:
        """Held by the process that infers one rank."""
        return self.chunks / f"rank{rank}.lock"

    def unfinished(self) -> list[int]:
        """The ranks whose rank file is missing, or older than the chunks; none if the output is
        finished, or there are no chunks."""
        if not self.manifest.exists() or self.is_finished:
            return []
        split_at, ranks = self.manifest.stat().st_mtime, range(self.num_shards)
        return [rank for rank in ranks if not is_newer(self.rank_file(rank), split_at)]

    @property
    def is_finished(self) -> bool:
        """Whether the output exists and is newer than the chunks and the start of the last job."""
        # A job that begins writes its name into the lock of its rank.
        locks = map(self.lock, range(self.num_shards))
        begun = [path.stat().st_mtime for path in (self.manifest, *locks) if path.exists()]
        return not self.reopened.exists() and is_newer(self.output, max(begun, default=0.0))

    # --- leftovers --------------------------------------------------------------------------------

    def of_other_shardings(self) -> list[Path]:
        """The folders of chunks of splits into other numbers of shards, finished or not."""
        ours = (self.chunks, self.split_scratch)
        folders = [path for path in self._all_chunks.iterdir() if _CHUNKS.fullmatch(path.name)]
        return [path for path in folders if path not in ours]

    def remove_leftovers(self, rank: int | None = None) -> None:
        """Remove the temporary files that killed processes have left, of one rank or all."""
        of_rank = "" if rank is None else f"rank{rank}."
        remove_leftovers(self.output.parent, f"{self.stem}.{of_rank}")
        remove_leftovers(self.chunks, of_rank)
        if rank is None:
            remove_leftovers(self._all_chunks)

"""The paths of a run's files, all beside ``data.output_jsonl``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from video_pipeline.config import Config
from video_pipeline.files import is_newer, remove_leftovers

_CHUNKS = re.compile(r"of-\d+|\.of-\d+\.tmp")


@dataclass(frozen=True)
class Layout:
    """The paths of one output.

    Attributes:
        output: The consolidated output, as configured.
        num_shards: How many chunks the input is split into.
    """

    output: Path
    num_shards: int

    @classmethod
    def of(cls, config: Config, num_shards: int) -> Layout:
        """The layout of a configuration's output."""
        return cls(config.data.output_jsonl, num_shards)

    @property
    def stem(self) -> str:
        """The name of the output without ``.jsonl``."""
        return self.output.name.removesuffix(".jsonl")

    def beside(self, ending: str) -> Path:
        """``output.describe`` + ``ending``."""
        return self.output.with_name(self.stem + ending)

    @property
    def summary(self) -> Path:
        """Counts of the whole run."""
        return self.beside(".summary.json")

    @property
    def errors(self) -> Path:
        """The records of the failed samples, which may be the input of another run."""
        return self.beside(".errors.jsonl")

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.beside(".report.html")

    @property
    def partial(self) -> Path:
        """The records that are finished before the run is."""
        return self.beside(".partial.jsonl")

    @property
    def videos(self) -> Path:
        """If long videos were cut into windows: one line for each video, with its windows."""
        return self.beside(".videos.jsonl")

    @property
    def dataset(self) -> Path:
        """A folder to upload to a hub: the output as Parquet, with a card."""
        return self.beside(".dataset")

    @property
    def card(self) -> Path:
        """The dataset card, which exists when the whole folder does."""
        return self.dataset / "README.md"

    @property
    def plan_report(self) -> Path:
        """The estimate of a run, see :mod:`video_pipeline.estimate`."""
        return self.beside(".plan.json")

    @property
    def plan_samples(self) -> Path:
        """The estimate of each sample that ``plan`` has read: one line for each."""
        return self.beside(".plan.jsonl")

    @property
    def plan_config(self) -> Path:
        """The resolved configuration that ``plan`` reads; a live run may have another one."""
        return self._all_chunks / "plan.config.yaml"

    @property
    def plan_scratch(self) -> Path:
        """The folder that ``plan`` works in."""
        return self._all_chunks / "plan"

    @property
    def plan_lock(self) -> Path:
        """Held by the process that estimates."""
        return self._all_chunks / "plan.lock"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.beside(".config.yaml")

    def rank_file(self, rank: int | str) -> Path:
        """The finished records of one rank, in input order."""
        return self.beside(f".rank{rank}.jsonl")

    @property
    def plan(self) -> Path:
        """The number of shards, decided once, see :mod:`video_pipeline.plan`."""
        return self._all_chunks / "plan.json"

    @property
    def chunks(self) -> Path:
        """The folder of the chunks; it names the number of shards."""
        return self._all_chunks / f"of-{self.num_shards}"

    def chunk(self, rank: int | str) -> Path:
        """The samples of one rank."""
        return self.chunks / f"rank{rank}.jsonl"

    @property
    def weights(self) -> Path:
        """Holds the name of the folder of the model's weights, once they are fetched."""
        return self.chunks / "weights.txt"

    def unfinished(self) -> list[int]:
        """The ranks whose rank file is missing, or older than the chunks; none if the output is
        finished, or there are no chunks."""
        if not self.manifest.exists() or self.is_finished:
            return []
        split_at, ranks = self.manifest.stat().st_mtime, range(self.num_shards)
        return [rank for rank in ranks if not is_newer(self.rank_file(rank), split_at)]

    @property
    def is_finished(self) -> bool:
        """Whether the output exists and is newer than the chunks and than the last job's begin."""
        # A job that begins writes its name into the lock of its rank.
        begun = [path for path in map(self.lock, range(self.num_shards)) if path.exists()]
        last = max(path.stat().st_mtime for path in (self.manifest, *begun))
        return not self.reopened.exists() and is_newer(self.output, last)

    def contents(self, rank: int) -> Path:
        """A description of the rank file of one rank."""
        return self.chunks / f"rank{rank}.contents.json"

    def progress(self, step: str) -> Path:
        """The progress of a step other than inference."""
        return self._all_chunks / f"{step}.progress.json"

    def failure(self, rank: int) -> Path:
        """The error of the last inference job of one rank, if another attempt would fail, too."""
        return self.chunks / f"rank{rank}.failure.txt"

    def lock(self, rank: int) -> Path:
        """Held by the process that infers one rank."""
        return self.chunks / f"rank{rank}.lock"

    @property
    def dataset_lock(self) -> Path:
        """Held by the process that writes :attr:`dataset`."""
        return self._all_chunks / "dataset.lock"

    @property
    def run_lock(self) -> Path:
        """Held by the Snakemake, the retry or the prune that works on this output."""
        return self._all_chunks / "snakemake.lock"

    @property
    def reopened(self) -> Path:
        """Exists while the output has errors that were opened again: it has to be written anew."""
        return self._all_chunks / "reopened"

    @property
    def all_locks(self) -> list[Path]:
        """The locks of every plan of this output."""
        return sorted(self._all_chunks.glob("of-*/rank*.lock"))

    @property
    def manifest(self) -> Path:
        """The manifest of the split, see :mod:`video_pipeline.sharding`."""
        return self.chunks / "manifest.json"

    @property
    def order(self) -> Path:
        """The rank of each distinct sample, in input order."""
        return self.chunks / "order.bin"

    @property
    def journal(self) -> Path:
        """The folder of the journals, one folder in it for each fingerprint."""
        return self.output.parent / ".journal" / self.stem

    @property
    def commits(self) -> Path:
        """The commits of models of the hub, see :mod:`video_pipeline.hub`."""
        return self.journal / "commits.json"

    def log(self, name: str) -> Path:
        """The log of one rule, relative to the working directory."""
        return Path("logs") / self.stem / f"{name}.log"

    @property
    def split_scratch(self) -> Path:
        """The folder that split works in."""
        return self.chunks.with_name(f".{self.chunks.name}.tmp")

    def of_other_plans(self) -> list[Path]:
        """The folders of chunks of splits into other numbers of shards, finished or not."""
        ours = (self.chunks, self.split_scratch)
        folders = [path for path in self._all_chunks.iterdir() if _CHUNKS.fullmatch(path.name)]
        return [path for path in folders if path not in ours]

    def rank_files(self) -> list[Path]:
        """The rank files on disk, of any split."""
        pattern = re.compile(rf"{re.escape(self.stem)}\.rank\d+\.jsonl")
        return [path for path in self.output.parent.iterdir() if pattern.fullmatch(path.name)]

    def remove_leftovers(self, rank: int | None = None) -> None:
        """Remove the temporary files that killed processes have left, of one rank or all."""
        of_rank = "" if rank is None else f"rank{rank}."
        remove_leftovers(self.output.parent, f"{self.stem}.{of_rank}")
        remove_leftovers(self.chunks, of_rank)
        if rank is None:
            remove_leftovers(self._all_chunks)

    @property
    def _all_chunks(self) -> Path:
        return self.output.parent / ".chunks" / self.stem

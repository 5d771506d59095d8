"""Where the files of a run lie, all beside ``data.output_jsonl``."""

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
        """Name of the output without ``.jsonl``."""
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
        """The records of the failed samples, which are an input again."""
        return self.beside(".errors.jsonl")

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.beside(".report.html")

    @property
    def partial(self) -> Path:
        """The records that are there before the run is over."""
        return self.beside(".partial.jsonl")

    @property
    def videos(self) -> Path:
        """Where long videos were cut into windows: one line for each video, with its windows."""
        return self.beside(".videos.jsonl")

    @property
    def dataset(self) -> Path:
        """The folder that can be uploaded to a hub: the output as Parquet, with a card."""
        return self.beside(".dataset")

    @property
    def card(self) -> Path:
        """The dataset card, which is there when the whole folder is."""
        return self.dataset / "README.md"

    @property
    def plan_report(self) -> Path:
        """What the run will take, see :mod:`video_pipeline.estimate.estimate`."""
        return self.beside(".plan.json")

    @property
    def plan_samples(self) -> Path:
        """The same of each sample that was looked at: one line for each."""
        return self.beside(".plan.jsonl")

    @property
    def plan_config(self) -> Path:
        """The resolved configuration that ``plan`` reads: a live run may have another one."""
        return self._all_chunks / "plan.config.yaml"

    @property
    def plan_scratch(self) -> Path:
        """The folder that ``plan`` works in."""
        return self._all_chunks / "plan"

    @property
    def plan_lock(self) -> Path:
        """Held by the process that makes the plan."""
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
        """The resolved number of shards, see :mod:`video_pipeline.plan`."""
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
        """The name of the folder of the model's weights, written when they are there."""
        return self.chunks / "weights.txt"

    def unfinished(self) -> list[int]:
        """The ranks whose rank file is not there, or is of earlier chunks; none where the output is
        finished, or no chunks are there."""
        if not self.manifest.exists() or self.is_finished:
            return []
        split_at, ranks = self.manifest.stat().st_mtime, range(self.num_shards)
        return [rank for rank in ranks if not is_newer(self.rank_file(rank), split_at)]

    @property
    def is_finished(self) -> bool:
        """Whether the output is there and holds all that these chunks have come to."""
        # a job that begins writes its name into the lock of its rank
        begun = [path for path in map(self.lock, range(self.num_shards)) if path.exists()]
        last = max(path.stat().st_mtime for path in (self.manifest, *begun))
        return not self.reopened.exists() and is_newer(self.output, last)

    def contents(self, rank: int) -> Path:
        """What the rank file of one rank holds."""
        return self.chunks / f"rank{rank}.contents.json"

    def progress(self, step: str) -> Path:
        """How far a step is that is no inference."""
        return self._all_chunks / f"{step}.progress.json"

    def failure(self, rank: int) -> Path:
        """Why the last inference job of one rank failed, if another attempt would fail, too."""
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
        """There while the output has errors that were opened again: it is to be written anew."""
        return self._all_chunks / "reopened"

    @property
    def all_locks(self) -> list[Path]:
        """The locks of every plan of this output."""
        return sorted(self._all_chunks.glob("of-*/rank*.lock"))

    @property
    def manifest(self) -> Path:
        """What split did."""
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
        """The commits of models of the hub, see :mod:`video_pipeline.model.model`."""
        return self.journal / "commits.json"

    def log(self, name: str) -> Path:
        """The log of one rule, relative to the working directory."""
        return Path("logs") / self.stem / f"{name}.log"

    @property
    def split_scratch(self) -> Path:
        """The folder that split works in."""
        return self.chunks.with_name(f".{self.chunks.name}.tmp")

    def of_other_plans(self) -> list[Path]:
        """What splits into other numbers of shards have left: their folders of chunks, finished or
        not."""
        ours = (self.chunks, self.split_scratch)
        found = [path for path in self._all_chunks.iterdir() if _CHUNKS.fullmatch(path.name)]
        return [path for path in found if path not in ours]

    def rank_files(self) -> list[Path]:
        """The rank files that are there, of whatever split."""
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

"""Stages: runs that feed each other, in order. A plain run is one stage without a name."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from video_pipeline.common.faults import process_deaths
from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding, resolve_sharding
from video_pipeline.samples.identity import digest


@dataclass(frozen=True)
class Stage:
    """One stage of an invocation: its ``name`` in ``stages`` (empty for a plain run) and its own,
    complete configuration."""

    name: str
    config: Config
    sharding: Sharding
    layout: Layout

    @property
    def title(self) -> str:
        """The start of a message about it: ``caption: ``; empty for a plain run."""
        return f"{self.name}: " if self.name else ""

    @property
    def ranks(self) -> range:
        """The ranks of its inference jobs."""
        return range(self.sharding.num_shards)

    @property
    def final_output(self) -> list[Path]:
        """The files that a complete run leaves."""
        layout = self.layout
        card = [layout.card] if "parquet" in self.config.run.formats else []
        receipt = [layout.receipt] if self.config.run.publish else []
        return [layout.output, layout.summary, layout.errors, layout.report, *card, *receipt]

    @property
    def rule_outputs(self) -> dict[str, Path]:
        """A file of each rule that exists when its job has ended well; ``infer`` has rank files."""
        layout = self.layout
        publish = {"publish": layout.receipt} if self.config.run.publish else {}
        return {
            "split": layout.manifest,
            "consolidate": layout.output,
            "report": layout.report,
            "export": layout.card,
            **publish,
        }

    def rule(self, rule: str) -> str:
        """The name of one of its rules: ``infer``, and ``infer_caption`` in a stage."""
        return f"{rule}_{self.name}" if self.name else rule

    def digest(self, *sections: str) -> str:
        """One param of Snakemake that stands for the sharding and some sections of the
        configuration: Snakemake compares params as a set of values, and takes the braces in a
        prompt for wildcards.

        Keys that only export and publish read are left out: no other job must run again.
        """
        own = {"formats", "parquet_columns", "publish"}
        settings = self.config.model_dump(mode="json", exclude={"run": own})
        spec = {"plan": vars(self.sharding), **{name: settings[name] for name in sections}}
        return digest(json.dumps(spec, sort_keys=True).encode())

    @property
    def places_digest(self) -> str:
        """The same for ``run.publish``."""
        return digest(json.dumps(self.config.run.publish).encode())


def resolve_stages(config: Config, *, gpus: int | None, is_main: bool, logs: Path) -> list[Stage]:
    """The stages of an invocation, in order. ``logs``: the folder of all logs; the other arguments
    are those of :func:`resolve_sharding`.

    Raises :class:`UserError` for settings that cannot work.
    """
    stages = []
    for name, own in config.by_stage():
        sharding = resolve_sharding(own, Layout.of(own).sharding, gpus=gpus, is_main=is_main)
        layout = replace(Layout.of(own, sharding.num_shards), logs=logs)
        stages.append(Stage(name, own, sharding, layout))
    return stages


def check_stages(configs: list[Config]) -> None:
    """Check the task and the dataset of each stage in ``configs``, so that an error in a later one
    is known before the first has used a GPU.

    Raises :class:`UserError` naming the stage by its output.
    """
    # A process for each, because the plugins of two stages may have the same names.
    spawn = multiprocessing.get_context("spawn")
    with job_processes(), ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for config in configs:
            stage = f"the stage that writes {config.data.output_jsonl}"
            try:
                with process_deaths(f"the process that checks {stage}"):
                    pool.submit(_check, config).result()
            except UserError as error:
                raise UserError(f"{stage}: {error}") from error


def _check(config: Config) -> None:
    from video_pipeline.run.run import DatasetNeeds

    DatasetNeeds.of(config)

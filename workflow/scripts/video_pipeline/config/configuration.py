"""The whole configuration, and how it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from video_pipeline.common.files import why_not_there
from video_pipeline.config.data import Data
from video_pipeline.config.explain import explain
from video_pipeline.config.report import Planning, Report
from video_pipeline.config.run import Run
from video_pipeline.config.secrets import secrets_in
from video_pipeline.config.section import Section
from video_pipeline.config.short import SHORT_NAMES, with_long_names
from video_pipeline.config.source import absolute, scheme_of
from video_pipeline.config.stages import overlaid
from video_pipeline.config.vision import Vision
from video_pipeline.config.vllm import Sampling, Vllm
from video_pipeline.errors import UserError


class Config(Section):
    """The whole configuration."""

    data: Data = Data()
    vision: Vision = Vision()
    vllm: Vllm = Vllm()
    sampling: Sampling = Sampling()
    run: Run = Run()
    report: Report = Report()
    plan: Planning = Planning()
    task_params: dict[str, Any] = Field(default={})
    """Parameters of the task and of the dataset, which both see them as `params`."""
    stages: list[dict[str, Any]] = Field(default=[])
    """Several runs in a row. Each entry has a `name` and sections, whose keys replace those above.
    A stage reads the output of the stage before it. The last one writes `data.output_jsonl`."""

    @model_validator(mode="after")
    def _different_files(self) -> Config:
        if not self.stages and self.data.replaces(self.data.input_jsonl):
            raise ValueError(
                f"data.input_jsonl: {self.data.input_jsonl!r} is a file that a run with "
                f"data.output_jsonl: {str(self.data.output_jsonl)!r} replaces; give "
                "data.output_jsonl another name"
            )
        return self

    @model_validator(mode="after")
    def _publishes_elsewhere(self) -> Config:
        here = os.path.realpath(self.data.output_jsonl.parent)
        for place in self.run.publish:
            if not scheme_of(place) and os.path.realpath(place) == here:
                raise ValueError(
                    f"run.publish: {place!r} is the folder of data.output_jsonl, where the files "
                    "are already; name another one"
                )
        return self

    @model_validator(mode="after")
    def _more_tokens(self) -> Config:
        more, most = self.run.retry_truncated, self.sampling.max_tokens
        if more is not None and more <= most:
            raise ValueError(
                f"run.retry_truncated: {more} gives a second try no more than "
                f"sampling.max_tokens: {most}"
            )
        return self

    @property
    def model_name(self) -> str:
        """The model that answers, or the engine if it has no model."""
        return self.vllm.model if self.run.engine == "vllm" else self.run.engine

    @property
    def most_tokens(self) -> int:
        """Upper bound on the tokens of one answer."""
        return self.run.retry_truncated or self.sampling.max_tokens

    @property
    def published(self) -> set[str]:
        """Names of the places that it publishes to, which no other configuration may share. A
        dataset of the hub has one card; other folders hold the files of each output by name."""
        name = self.data.output_jsonl.name
        return {
            place if scheme_of(place) == "hf" else f"{absolute(place)}/{name}"
            for place in self.run.publish
        }

    @cached_property
    def video_root(self) -> str:
        """The absolute folder, or the address, that relative video paths start from."""
        return absolute(self.data.root)

    def placed(self, place: Callable[[str], str]) -> Config:
        """The same configuration, with the input, the output and the published copies of each
        stage where ``place`` puts them. An address stays as it is."""

        def moved(path: object) -> str:
            return str(path) if scheme_of(str(path)) else place(str(path))

        names = ("input_jsonl", "output_jsonl")
        update = {
            "input_jsonl": moved(self.data.input_jsonl),
            "output_jsonl": Path(place(str(self.data.output_jsonl))),
        }
        stages = []
        for stage in self.stages:
            own = stage.get("data")
            if isinstance(own, dict):  # else it is an error, which by_stage() explains
                files = {name: moved(own[name]) for name in names if name in own}
                stage = {**stage, "data": {**own, **files}}
            run = stage.get("run")
            if isinstance(run, dict) and isinstance(run.get("publish"), list):
                stage = {**stage, "run": {**run, "publish": list(map(moved, run["publish"]))}}
            stages.append(stage)
        data = self.data.model_copy(update=update)
        run = self.run.model_copy(update={"publish": list(map(moved, self.run.publish))})
        return self.model_copy(update={"data": data, "run": run, "stages": stages})

    def by_stage(self) -> list[tuple[str, Config]]:
        """The name and the complete configuration of each stage. A configuration without stages is
        one stage without a name.

        Raises :class:`UserError` if the name or the sections of a stage are wrong, or two write the
        same file.
        """
        if not self.stages:
            return [("", self)]
        shared = self.model_dump(exclude={"stages"})
        shared["data"]["video_root"] = self.data.root
        configs: list[tuple[str, Config]] = []
        publishers: dict[str, str] = {}
        for name, raw in overlaid(shared, self.stages):
            try:
                config = load_config(raw)
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from None
            for other, earlier in configs:
                for one, two in ((earlier, config), (config, earlier)):
                    if one.data.replaces(two.data.output_jsonl):
                        raise UserError(
                            f"stages: {other} and {name} write the same file, "
                            f"{two.data.output_jsonl}; give one another data.output_jsonl"
                        )
                if config.data.replaces(earlier.data.input_jsonl):
                    raise UserError(
                        f"stages: {name} replaces {earlier.data.input_jsonl}, the input of "
                        f"{other}; give it another data.output_jsonl"
                    )
            for place in sorted(config.published):
                if (other := publishers.setdefault(place, name)) != name:
                    raise UserError(
                        f"stages: {other} and {name} publish to the same place, {place}; give one "
                        "another run.publish ([]: it publishes nothing)"
                    )
            configs.append((name, config))
        return configs

    def to_yaml(self) -> str:
        """The resolved configuration, as YAML that :func:`load_config` reads back."""
        text: str = yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        )
        return text


def load_config(raw: dict[str, Any] | str | Path) -> Config:
    """Validate a configuration: the sections as a mapping, or the path of a YAML file. Both may
    have :data:`~video_pipeline.config.short.SHORT_NAMES` beside the sections.

    Raises :class:`UserError` with one line for every mistake: an unknown key with the nearest known
    one, a wrong value with its place and what is expected. A secret is a mistake, too, and is not
    shown.
    """
    source = "configuration"
    if not isinstance(raw, dict):
        source = str(raw)
        raw = read_file(Path(raw))
    if lines := [_secret(place, variable) for place, variable in secrets_in(raw)]:
        raise UserError("\n  ".join([f"{source}:", *lines]))
    if not SHORT_NAMES.keys().isdisjoint(raw):
        raw = with_long_names(raw, Config().model_dump())
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n  ".join([f"{source}:", *explain(error, Config)])) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last one without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in reversed(node.value):
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(f"the key {key.value!r} is there twice", key.start_mark)
        return node


def read_file(path: Path) -> dict[str, Any]:
    """The sections in a YAML file, unchecked. Raises :class:`UserError` if it holds none."""
    if why := why_not_there(path):
        raise UserError(f"cannot read the configuration: {why}")
    try:
        raw = _Loader(path.read_text(encoding="utf-8")).get_single_data() or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path.absolute()}: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path.absolute()}: expected sections (data:, vllm:, ...), got {raw!r}")
    return raw


def _secret(place: str, variable: str) -> str:
    return (
        f"{place}: a secret has no place in the configuration, which is written beside the output; "
        f"remove it and set the environment variable {variable}"
    )

"""The configuration: one typed model that validates, documents and resolves itself.

This module is the only one that reads configuration. ``config/config.yaml``, ``config/README.md``
and ``config/schema.json`` are generated from the models below (``make config-docs``), and a test
fails when they drift apart. It is imported while Snakemake parses the workflow, so it must stay
light: no torch, no vLLM.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from video_pipeline.engine.vllm.names import wrong_names
from video_pipeline.errors import UserError
from video_pipeline.files import why_not_there
from video_pipeline.secret_keys import secrets_in

Auto = Literal["auto"]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``yes`` and ``on`` are booleans, and Python takes True for 1."""
        annotation = cls.model_fields[info.field_name].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float}:
            raise PydanticCustomError("int_type", "a number")
        return value


class Data(Section):
    """What is read, what is written, and how the samples are prepared."""

    input_jsonl: Path = Field(
        Path("samples.jsonl"),
        description="The samples: one JSON object a line. `.gz` and `.zst` are read too.",
    )
    output_jsonl: Path = Field(
        Path("results/output.describe.jsonl"),
        description="The consolidated output. Rank files, journal, summary and the resolved "
        "configuration are written beside it.",
    )
    video_field: str = Field(
        "path", min_length=1, description="The field that holds the video's path or address."
    )
    video_root: Path | None = Field(
        None,
        description="What a relative video path is relative to. `null`: the folder of "
        "`input_jsonl`.",
    )
    id_field: str | None = Field(
        None,
        min_length=1,
        description="The field that holds a unique id, used as `__key`. `null`: the key is a hash "
        "of the sample's content.",
    )
    allowed_roots: list[Path] | None = Field(
        None,
        description="The folders that local videos and images must lie in, after links and `..` "
        "are followed; anything else gets an error record. Relative ones are relative to the "
        "working directory. `null`: they may lie anywhere.",
    )
    max_download_gb: float = Field(
        4.0,
        gt=0,
        description="Size, in GB, of the largest video that is read by http(s). It is downloaded "
        "to the folder for temporary files (`TMPDIR`).",
    )
    allow_private_addresses: bool = Field(
        False,
        description="`true`: videos are also read by http(s) from hosts that are not on the public "
        "internet: this machine, the local network, reserved addresses.",
    )
    resume: bool = Field(
        True,
        description="`false`: every invocation starts a new, empty journal (its own retries go on "
        "in it).",
    )
    num_shards: Auto | int = Field(
        "auto",
        description="How many chunks, and so how many inference jobs. `auto`: (GPUs given to "
        "Snakemake) // (GPUs per job), at least 1.",
    )
    balance: Literal["count", "size", "duration"] = Field(
        "size",
        description="By what the pending samples are dealt out, so that all jobs end together: "
        "their number, the sizes of their files, or their seconds (the field `duration` of a "
        "sample; where it is missing, the header of its file is read).",
    )
    num_workers: Auto | int = Field(
        "auto",
        description="Decode processes per rank. `auto`: the cores that Snakemake gave the job, "
        "less one for the engine. From 100 pending samples on there is one more.",
    )
    sample_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Seconds one sample may take to be read and prepared; then its worker is "
        "killed and the sample gets an error record.",
    )
    worker_memory_gb: float | None = Field(
        16.0,
        gt=0,
        description="Memory, in GB, that one decode process may ask for; a video that needs more "
        "gets an error record. `null`: no limit.",
    )
    max_ready_gb: float = Field(
        8.0,
        gt=0,
        description="Bound, in GB, on the prepared samples held at once: ready plus submitted to "
        "the engine.",
    )

    @model_validator(mode="after")
    def _counts(self) -> Data:
        for name in ("num_shards", "num_workers"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(
                    f"data.{name}: {value} is too small, expected `auto` or at least 1"
                )
        if re.search(r"\.rank\d+\.jsonl$", self.output_jsonl.name):
            raise ValueError(
                f"data.output_jsonl: {str(self.output_jsonl)!r} is the name of a rank file; take "
                "another one"
            )
        if not self.output_jsonl.name.endswith(".jsonl"):
            raise ValueError(
                f"data.output_jsonl: {str(self.output_jsonl)!r} must end with .jsonl "
                "(the summary and the rank files are named after it)"
            )
        return self

    def decode_processes(self, threads: int) -> int:
        """How many a job with so many cores has."""
        return max(1, threads - 1) if self.num_workers == "auto" else self.num_workers


class Vision(Section):
    """How many frames of which size the model sees: keys of the video item that
    `qwen_vl_utils.process_vision_info` reads. The defaults fit `vllm.max_model_len: 32768`."""

    fps: float | None = Field(
        2.0, gt=0, description="Frames a second to sample. `null` together with `nframes`."
    )
    nframes: int | None = Field(
        None, ge=2, description="Sample this many frames, however long the video; replaces `fps`."
    )
    min_frames: int | None = Field(
        None, ge=2, description="At least this many frames. `null`: 4, as in qwen-vl-utils."
    )
    max_frames: int = Field(256, ge=2, description="At most this many frames.")
    min_pixels: int = Field(
        16 * 28 * 28, gt=0, description="Pixels of a frame after the resize, at least."
    )
    max_pixels: int = Field(
        768 * 28 * 28, gt=0, description="Pixels of a frame after the resize, at most."
    )
    total_pixels: int = Field(
        20480 * 28 * 28,
        gt=0,
        description="Bound on frames x pixels / 2, and so on the visual tokens of a video: "
        "20,480 tokens where a token covers 28 x 28 pixels (Qwen2.5-VL), 15,680 where it covers "
        "32 x 32 (Qwen3-VL).",
    )

    resize: Literal["native", "exact"] = Field(
        "native",
        description="`native`: the fast uint8 resize that transformers' own Qwen video processor "
        "uses. `exact`: that of qwen-vl-utils, bit for bit, and much slower.",
    )
    decoder: Literal["auto", "cpu", "nvdec"] = Field(
        "cpu",
        description="`cpu`. `nvdec`: the decoder on the GPU, in every decode process; videos that "
        "it does not take are decoded on the CPU. `auto`: in a few of them, beside the CPU, where "
        "there is one. Its memory comes on top of `vllm.gpu_memory_utilization`, see "
        "[Throughput](../docs/throughput.md#the-decoder-on-the-gpu).",
    )

    @model_validator(mode="after")
    def _one_rate(self) -> Vision:
        if self.nframes is None and self.fps is None:
            raise ValueError("vision: give either vision.fps or vision.nframes")
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"vision.min_pixels: {self.min_pixels} is larger than vision.max_pixels: "
                f"{self.max_pixels}"
            )
        if self.min_frames is not None and self.min_frames > self.max_frames:
            raise ValueError(
                f"vision.min_frames: {self.min_frames} is larger than vision.max_frames: "
                f"{self.max_frames}"
            )
        return self

    def video_kwargs(self) -> dict[str, Any]:
        """The keys to add to a video item of the messages."""
        kwargs = self.model_dump(exclude_none=True, exclude={"decoder"})
        if "nframes" in kwargs:  # qwen-vl-utils accepts one of the two
            for key in ("fps", "min_frames", "max_frames"):
                kwargs.pop(key, None)
        return kwargs

    @property
    def most_frames(self) -> int:
        """Upper bound on the frames of one video."""
        return self.nframes if self.nframes is not None else self.max_frames


class VllmNames(Section):
    """Base of a section that takes vLLM's own names, too."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)

    @model_validator(mode="after")
    def _names_are_vllms(self) -> Self:
        section = type(self).__name__.lower()
        if faults := wrong_names(section, self.model_extra, type(self).model_fields):
            raise ValueError("\n  ".join(faults))
        return self


class Vllm(VllmNames):
    """The model, and any other engine argument of vLLM by its own name. Unknown names are found
    at once, in a list of those of the vLLM that is pinned; where another one is installed, they are
    a warning until its engine starts."""

    model: str = Field(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        min_length=1,
        description="A name on the Hugging Face hub, or a local folder.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one copy of the model.")
    pipeline_parallel_size: int = Field(1, ge=1, description="Stages the model is cut into.")
    data_parallel_size: int = Field(1, ge=1, description="Copies of the model in one job.")
    max_model_len: int = Field(
        32768, ge=1, description="Prompt and answer together, in tokens, at most."
    )

    lora_path: Path | None = Field(
        None, description="The folder of a LoRA adapter for the model. `null`: none."
    )

    @property
    def gpus_per_job(self) -> int:
        """GPUs that one inference job needs: tensor x pipeline x data parallel."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def arguments(self) -> dict[str, Any]:
        """All engine arguments, as they are handed to vLLM."""
        return self.model_dump(exclude={"lora_path"})


class Sampling(VllmNames):
    """Any field of vLLM's `SamplingParams` by its own name. Unknown names are found as those of
    `vllm`."""

    temperature: float = Field(0.0, ge=0, description="0: greedy, the same answer every time.")
    max_tokens: int = Field(512, ge=1, description="Tokens of an answer, at most.")


class Run(Section):
    """What is asked, and how the run behaves."""

    task: str = Field("describe", min_length=1, description="A registered task.")
    dataset: str | None = Field(
        None,
        min_length=1,
        description="A registered dataset that reads the samples. `null`: the task's own.",
    )
    plugins: list[str] = Field(
        [],
        description="Python files or modules to import, so that their tasks and datasets register.",
    )
    engine: Literal["vllm", "simulated"] = Field(
        "vllm",
        description="`simulated` answers with text made from the key, for tests and benchmarks.",
    )
    simulated: Simulated = Field(
        default_factory=lambda: Simulated(), description="Timing of the simulated engine."
    )
    max_in_flight: int = Field(
        256, ge=1, description="Requests submitted to the engine at once, at most."
    )
    engine_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Seconds without a sign of life from an engine that has requests, after which "
        "the job fails and is started again.",
    )
    retry_truncated: int | None = Field(
        None,
        ge=1,
        description="An answer with an `output_schema` that did not end within "
        "`sampling.max_tokens` is asked for once more with so many. `null`: it is an error record "
        "at once.",
    )
    truncated: Literal["keep", "error"] = Field(
        "keep",
        description="What becomes of an answer that was cut off at `sampling.max_tokens`: `keep` "
        "counts it as answered, `error` makes it an error record of stage `length` that keeps the "
        "text. The journal has the answer either way: a change infers nothing again. An answer "
        "with an `output_schema`, or without any text yet, is an error record in any case.",
    )
    keep_rank_files: bool = Field(False, description="Keep the rank files after consolidation.")
    max_error_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Failed / finished samples of a chunk, looked at from the 20th failure on; a "
        "shard over it stops at once. Errors of stage `parse` do not count: their answers are "
        "there.",
    )
    formats: list[Literal["jsonl", "parquet"]] = Field(
        ["jsonl"],
        description="What the output is written as. `jsonl` is always there; `parquet` writes it "
        "once more, as a folder of Parquet files with a dataset card, ready for a hub.",
    )

    @field_validator("formats")
    @classmethod
    def _jsonl_is_always_written(cls, formats: list[str]) -> list[str]:
        if "jsonl" not in formats:
            raise ValueError(
                f"run.formats: {formats} lacks jsonl, which is always written (the other formats "
                "are made of it); add it to the list"
            )
        return formats


class Planning(Section):
    """What `snakemake plan` looks at and reckons with. It changes nothing about a run."""

    samples: int | None = Field(
        None,
        ge=1,
        description="Look at so many samples, drawn at random (always the same ones); totals are "
        "scaled up. `null`: at all of them.",
    )
    prompt_tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="Prompt tokens that one GPU takes in a second. `null`: as measured by "
        "earlier attempts of this output with the same task, model and settings, or else by others "
        "beside it with the same model on a known card, or no GPU-hours.",
    )
    completion_tokens_per_second: float | None = Field(
        None, gt=0, description="Tokens of answers that one GPU writes in a second. Likewise."
    )
    expected_completion_tokens: float | None = Field(
        None,
        gt=0,
        description="Tokens of an answer, on average. `null`: as measured by attempts of this "
        "output with the same task, model and settings, or `sampling.max_tokens`, the worst case.",
    )
    price_per_gpu_hour: float | None = Field(
        None, ge=0, description="In any currency. `null`: no cost."
    )

    @model_validator(mode="after")
    def _both_rates(self) -> Planning:
        if (self.prompt_tokens_per_second is None) != (self.completion_tokens_per_second is None):
            raise ValueError(
                "plan: give both plan.prompt_tokens_per_second and "
                "plan.completion_tokens_per_second, or neither"
            )
        return self


class Simulated(Section):
    """How long the simulated engine pretends to compute."""

    seconds_per_prompt_token: float = Field(0.0, ge=0, description="Seconds a prompt token costs.")
    seconds_per_output_token: float = Field(0.0, ge=0, description="Seconds an answer token costs.")
    output_tokens: int = Field(16, ge=1, description="Tokens of an answer.")
    concurrency: int = Field(256, ge=1, description="Requests that are computed at the same time.")


class Report(Section):
    """The page about a run. It changes no answer: another value makes the page anew."""

    samples: int = Field(
        60,
        ge=0,
        description="Answered samples in the gallery, at most, and a quarter as many failed ones "
        "of which pictures are shown; their videos are read again. 0: no gallery of answers, and "
        "no pictures.",
    )
    seed: int = Field(0, description="Chooses the samples; another seed, other samples.")


class Config(Section):
    """The whole configuration."""

    data: Data = Data()
    vision: Vision = Vision()
    vllm: Vllm = Vllm()
    sampling: Sampling = Sampling()
    run: Run = Run()
    report: Report = Report()
    plan: Planning = Planning()
    task_params: dict[str, Any] = Field(
        {}, description="Handed to the task as `task.params` and to the dataset as `params`."
    )

    stages: list[dict[str, Any]] = Field(
        [],
        description="Runs of which each goes on with what the one before said: a list of sections "
        "with a `name` each, laid over the sections above. A stage reads the output of the one "
        "before, the last one writes `data.output_jsonl`.",
    )

    @model_validator(mode="after")
    def _different_files(self) -> Config:
        if os.path.abspath(self.data.input_jsonl) == os.path.abspath(self.data.output_jsonl):
            raise ValueError("data.output_jsonl: is the same file as data.input_jsonl")
        rank_file = re.escape(str(self.data.output_jsonl.absolute()).removesuffix(".jsonl"))
        if re.fullmatch(rf"{rank_file}\.rank\d+\.jsonl", os.path.abspath(self.data.input_jsonl)):
            raise ValueError(
                f"data.input_jsonl: {str(self.data.input_jsonl)!r} is a rank file of "
                "data.output_jsonl, which a run replaces; give it another name"
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
        """Who answers: the model, or the engine that has none."""
        return self.vllm.model if self.run.engine == "vllm" else self.run.engine

    @property
    def most_tokens(self) -> int:
        """Upper bound on the tokens of one answer."""
        return self.run.retry_truncated or self.sampling.max_tokens

    @cached_property
    def video_root(self) -> str:
        """The absolute folder that relative video paths are relative to."""
        return str((self.data.video_root or self.data.input_jsonl.parent).absolute())

    def by_stage(self) -> list[tuple[str, Config]]:
        """The name and the own configuration of each stage; without stages, of the only one.

        Raises :class:`UserError` for a stage that cannot be.
        """
        if not self.stages:
            return [("", self)]
        shared = self.model_dump(exclude={"stages"})
        shared["data"]["video_root"] = self.data.video_root or self.data.input_jsonl.parent
        names: list[str] = []
        configs: list[Config] = []
        for number, overlay in enumerate(self.stages):
            name = overlay.get("name")
            if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name) or name in names:
                raise UserError(
                    f"stages[{number}].name: got {name!r}, expected a name of its own, of letters, "
                    "digits and _"
                )
            own = {section: keys for section, keys in overlay.items() if section != "name"}
            merged = _overlaid(copy.deepcopy(shared), own)
            given = own.get("data", {})
            is_section = isinstance(given, dict)  # else the message comes from load_config
            if is_section and configs and "input_jsonl" not in given:
                merged["data"]["input_jsonl"] = configs[-1].data.output_jsonl
            if is_section and number < len(self.stages) - 1 and "output_jsonl" not in given:
                output = self.data.output_jsonl
                stem = output.name.removesuffix(".jsonl")
                merged["data"]["output_jsonl"] = output.with_name(f"{stem}.{name}.jsonl")
            try:
                configs.append(load_config(merged))
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from None
            names.append(name)
        writers: dict[Path, str] = {}
        for name, config in zip(names, configs, strict=True):
            other = writers.setdefault(config.data.output_jsonl, name)
            if other != name:
                raise UserError(
                    f"stages: {other} and {name} write the same output, "
                    f"{config.data.output_jsonl}; give one another data.output_jsonl"
                )
        return list(zip(names, configs, strict=True))

    def to_yaml(self) -> str:
        """The resolved configuration, as YAML that :func:`load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_STAGE_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def _overlaid(base: Any, overlay: Any) -> Any:
    """``base`` with the keys of ``overlay`` in place of its own, section by section."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return {
        **base,
        **{key: _overlaid(base.get(key), value) for key, value in overlay.items()},
    }


Run.model_rebuild()
Config.model_rebuild()


def load_config(raw: dict[str, Any] | str | Path) -> Config:
    """Validate a configuration given as a mapping, or as the path of a YAML file.

    Raises :class:`UserError` with one line for every mistake: an unknown key names the nearest
    key, a wrong value names its place, what was given and what is expected. A secret is a mistake,
    too, and is not repeated.
    """
    source = "configuration"
    if not isinstance(raw, dict):
        source = str(raw)
        fault = why_not_there(Path(raw))
        if fault:
            raise UserError(f"cannot read the configuration: {fault}")
        try:
            raw = yaml.safe_load(Path(raw).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read the configuration {source}: {error}") from error
        if not isinstance(raw, dict):
            raise UserError(f"{source}: expected sections (data:, vllm:, ...), got {raw!r}")
    if faults := [_explain_secret(*found) for found in secrets_in(raw)]:
        raise UserError("\n  ".join([f"{source}:", *faults]))
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n  ".join([f"{source}:", *_explain(error)])) from None


def _explain_secret(place: str, variable: str) -> str:
    return (
        f"{place}: a secret has no place in the configuration, which is written beside the output; "
        f"remove it and set the environment variable {variable}"
    )


def _explain(error: ValidationError) -> list[str]:
    """One line for every place that is wrong; the branches of a union share one."""
    expected: dict[tuple[str, str], list[str]] = {}
    lines = []
    for detail in error.errors():
        place = _place(detail["loc"])
        where = ".".join(place)
        if detail["type"] == "extra_forbidden":
            lines.append(_explain_unknown(place))
        elif detail["type"] == "value_error":
            lines.append(detail["msg"].removeprefix("Value error, "))
        else:
            wish = _WISHES.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")
            expected.setdefault((where, repr(detail["input"])), []).append(wish)
    lines += [
        f"{where}: got {got}, expected {' or '.join(e)}" for (where, got), e in expected.items()
    ]
    return lines


_WISHES = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "model_type": "keys and values",
    "dict_type": "keys and values",
}


def _explain_unknown(place: list[str]) -> str:
    section, known = ".".join(place[:-1]), _known_keys(place[:-1])
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {'.'.join([*place[:-1], *near])!r}? " if near else ""
    return (
        f"{'.'.join(place)}: unknown key; {hint}"
        f"known in {section or 'the configuration'}: {', '.join(known)}"
    )


def _place(steps: tuple[str | int, ...]) -> list[str]:
    """The keys in pydantic's path of a finding, without the branches of unions, such as
    ``literal['auto']``, which are steps of the path too."""
    place: list[str] = []
    model: Any = Config
    for step in steps:
        if _is_section(model):
            place.append(str(step))
            field = model.model_fields.get(step)
            model = field.annotation if field else None
        elif isinstance(step, int):
            place.append(str(step))
    return place


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _known_keys(place: list[str]) -> list[str]:
    model: Any = Config
    for step in place:
        model = model.model_fields[step].annotation
    return list(model.model_fields)


# --- what is generated from the models -----------------------------------------------------------

_HEADER = """\
# The defaults. Generated by `make config-docs`; put your own values in a file of your own
# and pass it with `--configfile`: what it leaves out is taken from here.
"""
_SCHEMA_LINE = "# yaml-language-server: $schema=schema.json\n"


_LOOSE = {"task_params": "{}", "stages": "[]"}
"""What is no section, and its default."""


def _sections() -> list[tuple[str, type[Section], dict[str, Any]]]:
    defaults = Config().model_dump(mode="json")
    return [
        (name, field.annotation, defaults[name])
        for name, field in Config.model_fields.items()
        if _is_section(field.annotation)
    ]


def default_yaml() -> str:
    """``config/config.yaml``: every default, with its description as a comment."""
    lines = [_SCHEMA_LINE + _HEADER]
    for name, model, defaults in _sections():
        lines.append(f"# {_one_line(model.__doc__)}\n{name}:")
        for key, field in model.model_fields.items():
            value = json.dumps(defaults[key])
            lines.append(f"  # {_one_line(field.description)}\n  {key}: {value}")
        lines.append("")
    for name, value in _LOOSE.items():
        description = _one_line(Config.model_fields[name].description)
        lines.append(f"# {description}\n{name}: {value}\n")
    return "\n".join(lines)


def reference_markdown() -> str:
    """``config/README.md``: the reference of every key."""
    lines = [
        "# Configuration",
        "",
        "Generated from `workflow/scripts/video_pipeline/config.py` by `make config-docs`.",
        "Values in a file given with `--configfile` replace these defaults key by key. Relative",
        "paths are relative to the working directory (`--directory`).",
        "An editor that understands JSON Schema completes and checks keys with",
        "[`schema.json`](schema.json).",
        "",
        "A key that holds a secret (`hf_token`, `api_key`, `password`, ..., in any spelling and",
        "at any depth) is an error: the configuration is written beside the output. Secrets go",
        "into the environment: `HF_TOKEN` for the hub, a variable that your plugin reads for",
        "anything else.",
    ]
    for name, model, defaults in _sections():
        lines += ["", f"## `{name}`", "", _one_line(model.__doc__), ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        for key, field in model.model_fields.items():
            if _is_section(field.annotation):
                for inner, inner_field in field.annotation.model_fields.items():
                    lines.append(
                        f"| `{key}.{inner}` | `{json.dumps(defaults[key][inner])}` | "
                        f"{_one_line(inner_field.description)} |"
                    )
            else:
                lines.append(
                    f"| `{key}` | `{json.dumps(defaults[key])}` | {_one_line(field.description)} |"
                )
    for name in _LOOSE:
        lines += ["", f"## `{name}`", "", Config.model_fields[name].description]
    lines.append("")
    return "\n".join(lines)


def json_schema() -> str:
    """``config/schema.json``: for editors."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def write_generated(folder: Path) -> None:
    """Write the generated files into ``folder`` (``config/`` of the repository)."""
    (folder / "config.yaml").write_text(default_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(reference_markdown(), encoding="utf-8")
    (folder / "schema.json").write_text(json_schema(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the generated configuration files.")
    parser.add_argument("folder", type=Path, help="the repository's config/ folder")
    write_generated(parser.parse_args().folder)

"""The origin of samples and answers: the files and settings that they come from.

The files must exist before a run begins, and a run uses nothing that has another origin.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from video_pipeline.common import versions
from video_pipeline.common.files import Seal, read_object, why_not_there
from video_pipeline.config import Config
from video_pipeline.config.source import Source, shown, stable_address
from video_pipeline.errors import SPLIT_AGAIN, UserError
from video_pipeline.journal.format import count_answers
from video_pipeline.model.model import is_path
from video_pipeline.run.changes import describe, different
from video_pipeline.run.fingerprint import written_settings
from video_pipeline.run.layout import Layout
from video_pipeline.samples.identity import digest
from video_pipeline.tasks.prompts import prompt_files

logger = logging.getLogger(__name__)

SMALL_BYTES = 1_000_000
"""The content stands for a file up to this size, size and time for a larger file."""


# --- do the files exist ---------------------------------------------------------------------------


def check_files(configs: Sequence[Config], made: Iterable[Path] = ()) -> None:
    """Check that every file exists that the stages ``configs`` name, unless an earlier stage writes
    it. ``made``: other files that may be written before.

    Raises :class:`UserError` naming the absolute path of every missing file, and the most similar
    name that exists.
    """
    written = set(made)
    faults = []
    for config in configs:
        for place, path, kind in _named_files(config):
            fault = "" if path in written else why_not_there(path, kind)
            if fault and str(path) == Config().data.input_jsonl:
                fault += " (the default: set data.input_jsonl, or give OUTPUT.config.yaml of a run)"
            if fault and (line := f"{place}: {fault}") not in faults:
                faults.append(line)
        written.add(config.data.output_jsonl)
    if faults:
        raise UserError("\n  ".join([*faults, "Nothing was started."]))


def _named_files(config: Config) -> Iterator[tuple[str, Path, str]]:
    """The key, the path and the kind of each file."""
    source = config.data.source
    if source.is_local:
        place = source.place if source.is_file else source.root
        yield "data.input_jsonl", Path(place), "file" if source.is_file else "folder"
    for plugin in config.run.plugins:
        if plugin.endswith(".py") or "/" in plugin:  # Otherwise it is the name of a module.
            yield "run.plugins", Path(plugin), "file"
    for name, file in prompt_files(config.task_params).items():
        yield f"task_params.{name}", Path(file), "file"
    if config.run.engine == "vllm":
        if is_path(config.vllm.model):
            yield "vllm.model", Path(config.vllm.model), "file or folder"
        if config.vllm.lora_path is not None:
            yield "vllm.lora_path", config.vllm.lora_path, "folder"


# --- have they changed ----------------------------------------------------------------------------


def origin_of(config: Config, *, with_input: bool = True) -> dict[str, Any]:
    """The origin of the samples and answers of ``config``, as JSON: the manifest and the summary
    hold it. ``with_input``: whether to look at the input, which reads at most a small file, or
    lists a folder or a store.

    ``input`` has the name in the configuration, so that the folder of a run may move.
    """
    settings = written_settings(config)
    return {
        "input": stable_address(config.data.input_jsonl),
        "task": config.run.task,
        "settings": orjson.loads(orjson.dumps(settings, option=orjson.OPT_NON_STR_KEYS)),
        "files": {
            stable_address(config.data.input_jsonl): (
                _source_digest(config.data.source) if with_input else None
            ),
            **{str(path): file_digest(path) for path in code_files(config)},
        },
    }


def _source_digest(source: Source) -> str | None:
    if source.is_local and source.is_file:
        return file_digest(Path(source.place))
    from video_pipeline.samples.sources import source_digest

    return source_digest(source)


def code_files(config: Config) -> list[Path]:
    """The user's own code and prompts, which the answers depend on."""
    plugins = [plugin for plugin in config.run.plugins if plugin.endswith(".py")]  # Not modules.
    return list(map(Path, [*plugins, *prompt_files(config.task_params).values()]))


def check_code(files: Mapping[str, str | None], config: Config) -> None:
    """Raise :class:`UserError` if a plugin or a prompt file is not the one that split saw;
    ``files`` are those of the :func:`origin_of` the split."""
    for path in code_files(config):
        if files.get(str(path)) != file_digest(path):
            raise UserError(
                f"{path.absolute()} has changed since the input was split; run snakemake again"
            )


def file_digest(path: Path) -> str | None:
    """A text that stands for the content of a file; None if the file is missing. The time of a
    small file does not matter."""
    try:
        status = os.stat(path)
        if status.st_size > SMALL_BYTES:
            return f"{status.st_size} bytes, {status.st_mtime_ns}"
        return digest(path.read_bytes())
    except OSError:
        return None


def what_changed(config: Config, layout: Layout) -> list[str]:
    """The differences between ``config`` and the origin of the chunks (if there are none, of the
    output on disk): ``input``, ``task``, the keys of settings (with their values if these are
    short) and the paths of files. Snakemake alone may not see them: a file can be older than the
    one that it replaces, and Snakemake's own notes about its last run can be gone."""
    source, manifest = config.data.source, read_object(layout.manifest)
    if source.is_local and source.is_file and not os.path.exists(source.place):
        return []  # An earlier stage will write the input.
    if manifest and manifest.get("version") != versions.CHUNKS:
        versions.check_version(layout.manifest, manifest.get("version"), versions.CHUNKS)
        return ["the version of the chunks"]
    recorded = manifest.get("origin") or read_object(layout.summary).get("origin")
    if not recorded:
        return []
    then, now = _flat(recorded), _flat(origin_of(config))
    return describe(sorted(_changed_names(then, now)), then, now)


class Change(NamedTuple):
    """A part of the origin that has changed."""

    kind: Literal["input", "setting", "code"]
    words: str  # A key with its values if these are short, or the path of a file.


def changes_since(
    recorded: Mapping[str, Any], config: Config, *, with_input: bool = True
) -> list[Change]:
    """The differences between ``config`` and the :func:`origin_of` the last split that ask the
    model something new. ``with_input``: as for :func:`origin_of`; without it, the input counts as
    changed."""
    then, now = _flat(recorded), _flat(origin_of(config, with_input=with_input))
    input_jsonl = stable_address(config.data.input_jsonl)
    code = set(map(str, code_files(config)))
    changes = []
    for name in _changed_names(then, now):
        if name in ("input", input_jsonl):
            changes.append(Change("input", input_jsonl))
        elif name in code or name in recorded["files"]:
            changes.append(Change("code", name))
        elif not name.startswith(_NOTHING_ASKED):
            changes.append(Change("setting", describe([name], then, now)[0]))
    return changes


_NOTHING_ASKED = ("input", "run.truncated", "run.plugins", "data.where")
"""A change of these asks the model nothing new."""


def what_stays(config: Config, layout: Layout) -> str:
    """A sentence about what the changes since the last split cost; empty if there are no answers,
    or the changes ask the model nothing new about the same samples."""
    recorded = read_object(layout.manifest) or read_object(layout.summary)
    if "journal" not in recorded or not recorded.get("origin"):
        return ""
    changes = changes_since(recorded["origin"], config, with_input=False)
    kinds = {change.kind for change in changes}
    journal = layout.journal_now(recorded["journal"])
    answers = count_answers(journal) if kinds & {"setting", "code"} else 0
    if not answers:
        return ""
    if "setting" not in kinds:
        return (
            "a sample is inferred again only if its messages have changed. The log of split says "
            "how many, before the output is replaced"
        )
    samples = recorded["samples"]
    total = samples["distinct"] if isinstance(samples, dict) else samples
    return (
        f"samples without an answer under the new settings will be inferred, at most {total:,}; "
        f"{answers:,} answers stay under the old settings. The log of split says how many, before "
        "the output is replaced"
    )


def output_is_of_earlier_run(layout: Layout) -> bool:
    """Whether the output on disk has another origin than the chunks."""
    about = read_object(layout.manifest).get("origin"), read_object(layout.summary).get("origin")
    return all(about) and about[0] != about[1]


def output_is_damaged(layout: Layout) -> bool:
    """Whether the output on disk is not the one that its summary describes, or the summary cannot
    be read. Of a large output only the size is compared."""
    try:
        size = layout.output.stat().st_size
        summary = layout.summary.read_bytes()
    except OSError:
        return False  # Snakemake makes missing files.
    try:
        about = json.loads(summary)
        seal = Seal(**about["output_file"])
    except (ValueError, LookupError, TypeError):
        return True
    if about.get("videos") and not layout.videos.exists():
        return True  # This file is no output of a rule, so Snakemake does not miss it.
    return size != seal.num_bytes or (size <= SMALL_BYTES and not seal.fits(layout.output))


def _changed_names(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of two flat origins whose values differ; of another input only ``input``."""
    names = different(then, now)
    inputs = {then["input"], now["input"]} if "input" in names else set()
    return [name for name in names if name not in inputs]


def _flat(origin: Mapping[str, Any]) -> dict[str, Any]:
    """An origin in one dict, by ``input``, ``task``, keys of settings and paths of files."""
    settings = origin["settings"]
    if not isinstance(settings, dict):  # An earlier version wrote their digest.
        settings = {"settings": "of an earlier version"}
    return {"input": origin["input"], "task": origin["task"], **settings, **origin["files"]}


def check_origin(recorded: Mapping[str, Any], config: Config, path: Path) -> None:
    """Check that the file ``path`` was made from the input, the task and the settings of
    ``config``; ``recorded`` is its :func:`origin_of` (empty if it has none). If only the content of
    the input has changed, there is a warning: the file is still whole.

    Raises :class:`UserError`.
    """
    if not recorded:
        return
    source = config.data.source
    is_looked_up = source.is_local and source.is_file  # Each job asks; other inputs are listed.
    now = origin_of(config, with_input=is_looked_up)
    for name, key in (("input", "data.input_jsonl"), ("task", "run.task")):
        if recorded[name] != now[name]:
            raise UserError(
                f"{path} was made with {key}: {recorded[name]}, the configuration says "
                f"{now[name]}; {SPLIT_AGAIN}"
            )
    if recorded["settings"] != now["settings"]:
        changed = different(_flat(recorded), _flat({**now, "files": recorded["files"]}))
        raise UserError(
            f"the settings have changed since the input was split ({path}): "
            f"{', '.join(changed)}; {SPLIT_AGAIN}"
        )
    digest = recorded["files"].get(now["input"])
    if is_looked_up and digest != now["files"][now["input"]]:
        logger.warning(
            "%s has changed since it was split; what is written holds the samples as they were. "
            "Run snakemake again for the new ones",
            shown(config.data.input_jsonl),
        )

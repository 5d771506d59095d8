"""What makes two inferences the same: the key, the request digest and the fingerprint.

A sample is done when the journal of its *fingerprint* has a record with its *key*, its part and
its *request digest*:

* the **key** names the sample: the user's id, or a hash of its content;
* the **request digest** hashes what is asked about that sample: the messages of the task;
* the **fingerprint** hashes everything else that changes an answer: model, engine, sampling,
  vision settings, dataset. It names the folder of the journal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from video_pipeline.errors import TaskError

if TYPE_CHECKING:
    from video_pipeline.config import Config
    from video_pipeline.tasks.base import Task

# Engine arguments that change speed, memory or logging, but not what is answered. Names from
# vLLM 0.32's EngineArgs. Anything not listed here changes the fingerprint: rather infer once too
# often than mix the answers of two settings.
NEUTRAL_ENGINE_ARGUMENTS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "data_parallel_size",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_log_requests",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_cudagraph_capture_size",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "mm_encoder_tp_mode",
        "mm_processor_cache_gb",
        "mm_processor_cache_type",
        "mm_tensor_ipc",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "safetensors_load_strategy",
        "scheduling_policy",
        "show_hidden_metrics_for_version",
        "stream_interval",
        "tensor_parallel_size",
    }
)


def content_key(raw: dict[str, Any]) -> str:
    """Key of a sample without an id: 32 hex digits of a hash over its sorted JSON.

    Raises :class:`ValueError` for an object too deep to be written.
    """
    try:
        return _digest(orjson.dumps(raw, option=orjson.OPT_SORT_KEYS))
    except TypeError as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None


def request_digests(
    task: Task, sample: dict[str, Any], video: Any, sample_fields: Collection[str] = ()
) -> dict[str, str]:
    """Digests of what ``task`` asks about ``sample``, 32 hex digits each, by the name of the
    conversation.

    ``video`` is the path as the input has it (or a list of paths, or None). It stands for the
    absolute address in the digest, so that a dataset may move to another folder. ``sample_fields``
    are those that the dataset reads; a sample without any has the digest that it has without them.

    Raises :class:`TaskError` if ``build_messages`` fails or returns what JSON cannot carry.
    """
    segment = [sample.get("video_start"), sample.get("video_end")]
    address = sample["__video_uri"]
    digests = {}
    for part, messages in task.conversations(sample).items():
        asked = {"messages": messages, "segment": segment, "video": video}
        schema = task.json_schema(part)
        if schema is not None:
            asked["schema"] = schema
        if sample_fields:
            read = {name: sample[name] for name in sample_fields if name in sample}
            if read:
                asked["fields"] = read
        digests[part] = _request_digest(task, asked, address, video)
    return digests


def _request_digest(task: Task, asked: dict[str, Any], address: Any, video: Any) -> str:
    try:
        try:
            if not isinstance(address, str):
                raise _Ambiguous
            return _digest(_replace_text(orjson.dumps(asked, option=_PLAIN), address, video))
        except (TypeError, _Ambiguous):
            asked = {**asked, "messages": _replace(asked["messages"], address, video)}
            return _digest(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
    except TypeError as error:
        raise TaskError(
            f"task {task.name!r}: build_messages must return plain text, numbers, lists and dicts "
            f"({error})"
        ) from error


# a dataclass is no dict to _replace
_PLAIN = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS


class _Ambiguous(Exception):
    """Bytes that look like a certain text, but may be a part of another, or a name."""


def _replace_text(data: bytes, old: str, new: str) -> bytes:
    """The JSON ``data`` with every text equal to ``old`` (an address) replaced by ``new``: what
    :func:`_replace` does, in the bytes. Raises :class:`_Ambiguous`."""
    pieces = data.split(orjson.dumps(old))
    for before, after in pairwise(pieces):
        if before.endswith(b"\\") or after.startswith(b":"):
            raise _Ambiguous
    return orjson.dumps(new).join(pieces)


def settings_digest(config: Config, in_messages: Collection[str] = ()) -> str:
    """Digest of the settings that change an answer: 32 hex digits. ``in_messages`` names the
    ``task_params`` that act on the task's messages alone: request digests hold what they do.

    A local model is known by the names, sizes and modification times of its files; a model of the
    hub by its name and ``vllm.revision``.
    """
    settings = _settings(config, in_messages)
    engine = settings["engine"]
    if config.run.engine == "vllm":
        engine["model_files"] = _model_files(Path(config.vllm.model))
        if engine["model_files"] is not None:
            del engine["arguments"]["model"]  # its files know it, wherever they lie
        if config.vllm.lora_path is not None:
            engine["lora_files"] = _model_files(config.vllm.lora_path)
    return _settings_digest(settings)


def plain_settings_digest(config: Config) -> str:
    """Digest of the same settings as they are written down: no file is looked at, and all
    ``task_params``, the dataset, the plugins and what becomes of an answer count."""
    settings = _settings(config, ())
    if config.run.engine == "vllm":
        settings["lora_path"] = str(config.vllm.lora_path)
    run = {name: getattr(config.run, name) for name in ("dataset", "plugins", "truncated")}
    named = ("id_field", "video_field", "video_root")
    data = config.data.model_dump(mode="json", include=set(named))
    return _settings_digest({**settings, **run, "data": data})


def _settings(config: Config, in_messages: Collection[str]) -> dict[str, Any]:
    engine: dict[str, Any] = {"kind": config.run.engine}
    if config.run.engine == "simulated":
        engine["output_tokens"] = config.run.simulated.output_tokens
    else:
        engine["arguments"] = {
            name: value
            for name, value in config.vllm.arguments.items()
            if name not in NEUTRAL_ENGINE_ARGUMENTS
        }
    vision = config.vision.model_dump(exclude={"decoder"})
    if config.vision.decoder != "cpu":
        vision["decoder"] = "nvdec"  # with either, some videos are decoded on the CPU
    return {
        "engine": engine,
        "vision": vision,
        "sampling": config.sampling.model_dump(),
        "params": {k: v for k, v in config.task_params.items() if k not in in_messages},
    }


def _settings_digest(settings: dict[str, Any]) -> str:
    return _digest(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))


def fingerprint(settings: str, dataset_name: str, dataset_version: int, reader_version: int) -> str:
    """Digest of everything but the sample that changes an answer: 32 hex digits. ``settings`` is
    the :func:`settings_digest`."""
    return _digest(orjson.dumps([settings, dataset_name, dataset_version, reader_version]))


def _model_files(folder: Path) -> list[list[Any]] | None:
    if not folder.is_dir():
        return None
    entries = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)
            place = os.path.relpath(path, folder)
            if os.path.exists(path):
                status = os.stat(path)
                entries.append([place, status.st_size, status.st_mtime_ns])
            else:  # a dangling link
                entries.append([place, None, None])
    return entries


def _replace(value: Any, old: Any, new: Any) -> Any:
    """``value`` with everything equal to ``old`` (a text or a list of texts; None: nothing)
    replaced by ``new``, however deep."""
    if old is not None and value == old:
        return new
    if isinstance(value, dict):
        return {name: _replace(entry, old, new) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(entry, old, new) for entry in value]
    return value


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

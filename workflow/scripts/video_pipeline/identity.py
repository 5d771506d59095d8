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
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from video_pipeline.errors import TaskError
from video_pipeline.model.files import model_files
from video_pipeline.model.model import Model

if TYPE_CHECKING:
    from video_pipeline.config import Config
    from video_pipeline.tasks.base import Task

# Engine arguments that change speed, memory, logs or addresses, but not what is answered. Names
# from vLLM 0.32's EngineArgs. Anything not listed here changes the fingerprint: rather infer once
# too often than mix the answers of two settings.
NEUTRAL_ENGINE_ARGUMENTS = frozenset(
    {
        "aggregate_engine_logging",
        "async_scheduling",
        "block_size",
        "collect_detailed_traces",
        "compilation_config",
        "cpu_distributed_timeout_seconds",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "cudagraph_metrics",
        "custom_histogram_buckets",
        "data_parallel_address",
        "data_parallel_backend",
        "data_parallel_rpc_port",
        "data_parallel_size",
        "device_ids",
        "disable_log_stats",
        "distributed_executor_backend",
        "distributed_timeout_seconds",
        "download_dir",
        "enable_chunked_prefill",
        "enable_layerwise_nvtx_tracing",
        "enable_log_requests",
        "enable_logging_iteration_details",
        "enable_mfu_metrics",
        "enable_mm_processor_stats",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "hf_token",
        "jit_monitor_mode",
        "jit_monitor_verbose",
        "kv_cache_memory_bytes",
        "kv_cache_metrics",
        "kv_cache_metrics_sample",
        "log_config_file",
        "log_level",
        "logging_config",
        "master_addr",
        "master_port",
        "max_cpu_loras",
        "max_cudagraph_capture_size",
        "max_model_len",
        "max_num_active_seqs",
        "max_num_batched_tokens",
        "max_num_queued_reqs",
        "max_num_queued_tokens",
        "max_num_scheduled_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "mm_encoder_tp_mode",
        "mm_ipc_gpu_memory_gb",
        "mm_processor_cache_gb",
        "mm_processor_cache_type",
        "mm_shm_cache_max_object_size_mb",
        "mm_tensor_ipc",
        "node_rank",
        "num_gpu_blocks_override",
        "numa_bind",
        "numa_bind_cpus",
        "numa_bind_nodes",
        "otlp_traces_endpoint",
        "per_request_spec_decode_metrics",
        "pipeline_parallel_size",
        "profiler_config",
        "ray_workers_use_nsight",
        "renderer_num_workers",
        "safetensors_load_strategy",
        "safetensors_prefetch_block_size",
        "safetensors_prefetch_num_threads",
        "scheduling_policy",
        "served_model_name",
        "show_hidden_metrics_for_version",
        "shutdown_timeout",
        "skip_mm_profiling",
        "stream_interval",
        "tensor_parallel_size",
        "use_tqdm_on_load",
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


BASELINE: dict[str, Any] = {
    "vllm.allowed_local_media_path": "",
    "vllm.config_format": "auto",
    "vllm.dtype": "auto",
    "vllm.generation_config": "auto",
    "vllm.kv_cache_dtype": "auto",
    "vllm.load_format": "auto",
    "vllm.logprobs_mode": "raw_logprobs",
    "vllm.model_impl": "auto",
    "vllm.runner": "auto",
    "vllm.seed": 0,
    "vllm.skip_tokenizer_init": False,
    "vllm.tokenizer_mode": "auto",
    "vllm.trust_remote_code": False,
    "vision.fps": 2.0,
    "vision.max_frames": 256,
    "vision.max_pixels": 768 * 28 * 28,
    "vision.min_pixels": 16 * 28 * 28,
    "vision.resize": "native",
    "vision.decoder": "cpu",
    "vision.total_pixels": 20480 * 28 * 28,
    "sampling.temperature": 0.0,
    "sampling.max_tokens": 512,
    "sampling.frequency_penalty": 0.0,
    "sampling.ignore_eos": False,
    "sampling.min_p": 0.0,
    "sampling.min_tokens": 0,
    "sampling.n": 1,
    "sampling.presence_penalty": 0.0,
    "sampling.repetition_penalty": 1.0,
    "sampling.skip_special_tokens": True,
    "sampling.spaces_between_special_tokens": True,
    "sampling.top_k": 0,
    "sampling.top_p": 1.0,
    "run.engine": "vllm",
    "run.simulated.output_tokens": 16,
}
"""What a fingerprint means where it says nothing. It stays as it is for ever: a new key comes in
with the value that the version before it had, a default that changes stays here as it was, and so
nobody's finished samples are inferred again. Of a key that is not here, that value is null."""

_PATHS = ("tokenizer", "hf_config_path")
"""Engine arguments that may name a folder, which is then known by its files."""


def settings_of(
    config: Config, in_messages: Collection[str] = (), commit: str | None = None
) -> dict[str, Any]:
    """The settings that change an answer and differ from :data:`BASELINE`, by their keys, such as
    ``vision.fps``. ``in_messages`` names the ``task_params`` that act on the task's messages alone:
    request digests hold what they do. ``commit`` is that of a model of the hub.

    A local model or adapter is known by what its files hold, see
    :func:`video_pipeline.model.files.model_files`; a model of the hub by its name and ``commit``
    (without one by ``vllm.revision``).
    """
    settings = _plain_settings(config)
    for name in in_messages:
        settings.pop(f"task_params.{name}", None)
    if config.run.engine == "vllm":
        if (model := Model.of(config).identity(commit)) is not None:
            settings["vllm.model"] = model
            settings.pop("vllm.revision", None)
        if config.vllm.lora_path is not None:
            settings["vllm.lora_path"] = model_files(config.vllm.lora_path)
        for name in _PATHS:
            path = config.vllm.arguments.get(name)
            if isinstance(path, str) and (files := model_files(Path(path))) is not None:
                settings[f"vllm.{name}"] = files
    return settings


def written_settings(config: Config) -> dict[str, Any]:
    """The same settings as they are written down: no file is looked at, and all ``task_params``,
    the dataset, the plugins, what becomes of an answer and how samples are named count."""
    settings = _plain_settings(config)
    for section, names in _WRITTEN.items():
        values = getattr(config, section).model_dump(mode="json", include=set(names))
        settings.update({f"{section}.{name}": values[name] for name in names})
    return settings


_WRITTEN = {
    "run": ("dataset", "plugins", "truncated"),
    "data": ("id_field", "video_field", "video_root"),
}


def _plain_settings(config: Config) -> dict[str, Any]:
    given: dict[str, Any] = {"run.engine": config.run.engine}
    if config.run.engine == "simulated":
        given["run.simulated.output_tokens"] = config.run.simulated.output_tokens
    else:
        arguments = config.vllm.model_dump(mode="json")
        given.update(
            (f"vllm.{name}", value)
            for name, value in arguments.items()
            if name not in NEUTRAL_ENGINE_ARGUMENTS
        )
    sections = {"vision": config.vision.model_dump(), "sampling": config.sampling.model_dump()}
    for section, values in sections.items():
        given.update((f"{section}.{name}", value) for name, value in values.items())
    if config.vision.decoder == "auto":
        given["vision.decoder"] = "nvdec"  # with either, some videos are decoded on the CPU
    settings = {name: value for name, value in given.items() if value != BASELINE.get(name)}
    params = {f"task_params.{name}": value for name, value in config.task_params.items()}
    return {**settings, **params}


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Digest of settings: 32 hex digits."""
    return _digest(orjson.dumps(settings, option=_ANY_NAMES))


_ANY_NAMES = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def fingerprint(
    settings: Mapping[str, Any], dataset_name: str, dataset_version: int, reader_version: int
) -> str:
    """Digest of everything but the sample that changes an answer: 32 hex digits. ``settings`` are
    the :func:`settings_of` the run."""
    digest = settings_digest(settings)
    return _digest(orjson.dumps([digest, dataset_name, dataset_version, reader_version]))


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

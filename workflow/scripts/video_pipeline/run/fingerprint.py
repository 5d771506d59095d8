"""The fingerprint: a digest of everything but the sample that changes an answer. It names the
journal's folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.config import Config
from video_pipeline.config.source import stable_address
from video_pipeline.model.files import model_files
from video_pipeline.model.model import Model
from video_pipeline.samples.identity import digest

# Engine arguments that change speed, memory, logs or addresses, but no answer. The names are those
# of vLLM 0.32's EngineArgs. Every other argument changes the fingerprint: it is better to infer
# once too often than to mix the answers of two settings.
NEUTRAL_ENGINE_ARGUMENTS = frozenset(
    {
        # logs and metrics
        *("aggregate_engine_logging", "collect_detailed_traces", "cudagraph_metrics"),
        *("custom_histogram_buckets", "disable_log_stats", "enable_layerwise_nvtx_tracing"),
        *("enable_log_requests", "enable_logging_iteration_details", "enable_mfu_metrics"),
        *("enable_mm_processor_stats", "jit_monitor_mode", "jit_monitor_verbose"),
        *("kv_cache_metrics", "kv_cache_metrics_sample", "log_config_file", "log_level"),
        *("logging_config", "otlp_traces_endpoint", "per_request_spec_decode_metrics"),
        *("profiler_config", "ray_workers_use_nsight", "show_hidden_metrics_for_version"),
        # processes, devices and their addresses
        *("cpu_distributed_timeout_seconds", "data_parallel_address", "data_parallel_backend"),
        *("data_parallel_rpc_port", "data_parallel_size", "device_ids"),
        *("distributed_executor_backend", "distributed_timeout_seconds", "master_addr"),
        *("master_port", "node_rank", "numa_bind", "numa_bind_cpus", "numa_bind_nodes"),
        *("pipeline_parallel_size", "renderer_num_workers", "shutdown_timeout"),
        "tensor_parallel_size",
        # memory
        *("block_size", "cpu_offload_gb", "gpu_memory_utilization", "kv_cache_memory_bytes"),
        *("max_cpu_loras", "max_model_len", "mm_ipc_gpu_memory_gb", "mm_processor_cache_gb"),
        *("mm_processor_cache_type", "mm_shm_cache_max_object_size_mb", "mm_tensor_ipc"),
        *("num_gpu_blocks_override", "skip_mm_profiling"),
        # speed
        *("async_scheduling", "compilation_config", "cudagraph_capture_sizes"),
        *("enable_chunked_prefill", "enable_prefix_caching", "enforce_eager"),
        *("max_cudagraph_capture_size", "max_num_active_seqs", "max_num_batched_tokens"),
        *("max_num_queued_reqs", "max_num_queued_tokens", "max_num_scheduled_tokens"),
        *("max_num_seqs", "mm_encoder_tp_mode", "scheduling_policy", "stream_interval"),
        # loading
        *("download_dir", "hf_token", "max_parallel_loading_workers", "safetensors_load_strategy"),
        *("safetensors_prefetch_block_size", "safetensors_prefetch_num_threads"),
        *("served_model_name", "use_tqdm_on_load"),
    }
)

BASELINE: dict[str, Any] = {
    "vllm.allowed_local_media_path": "",
    "vllm.chat_template_kwargs": {},
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
    "vision.use_audio_in_video": False,
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
"""The values of keys that a fingerprint leaves out; null for a key that is not here. They never
change: a new key gets the value that earlier versions behave by, and a changed default keeps its
old value here. So no finished samples are inferred again."""

_PATHS = ("tokenizer", "hf_config_path")
"""Engine arguments that may name a folder, which then stands for its files."""


def settings_of(
    config: Config, in_messages: Collection[str] = (), commit: str | None = None
) -> dict[str, Any]:
    """The settings that change an answer and differ from :data:`BASELINE`, by their keys, such as
    ``vision.fps``. The ``task_params`` in ``in_messages`` are left out: they change only the task's
    messages, which are in the request digests.

    The content of its files stands for a local model or adapter, see
    :func:`video_pipeline.model.files.model_files`; its name and ``commit`` (without one,
    ``vllm.revision``) for a model of the hub.
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
    """The settings to compare a run with an earlier one by, as the configuration has them. No file
    is looked at. All ``task_params`` are among them, and the keys that change no answer, but the
    dataset, the plugins, the records, the names of samples or which ones are asked about."""
    settings = _plain_settings(config)
    for section, names in _WRITTEN.items():
        values = getattr(config, section).model_dump(mode="json", include=set(names))
        # The password of a root stays out of what is published.
        settings.update({f"{section}.{name}": stable_address(values[name]) for name in names})
    chosen = {f"data.{name}": getattr(config.data, name) for name in ("where", "group_by")}
    return settings | {name: value for name, value in chosen.items() if value is not None}


_WRITTEN = {
    "run": ("dataset", "plugins", "truncated"),
    "data": ("id_field", "video_field", "video_root"),
}


def _plain_settings(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {"run.engine": config.run.engine}
    if config.run.engine == "simulated":
        values["run.simulated.output_tokens"] = config.run.simulated.output_tokens
    else:
        arguments = config.vllm.model_dump(mode="json")
        values.update(
            (f"vllm.{name}", value)
            for name, value in arguments.items()
            if name not in NEUTRAL_ENGINE_ARGUMENTS and not _changes_nothing(name, value)
        )
    for name, section in (("vision", config.vision), ("sampling", config.sampling)):
        values.update((f"{name}.{key}", value) for key, value in section.model_dump().items())
    if config.vision.decoder == "auto":
        values["vision.decoder"] = "nvdec"  # With either, some videos are decoded on the CPU.
    settings = {name: value for name, value in values.items() if value != BASELINE.get(name)}
    params = {f"task_params.{name}": value for name, value in config.task_params.items()}
    return {**settings, **params}


def _changes_nothing(name: str, value: Any) -> bool:
    """Whether this value of an engine argument changes no answer, although another value may."""
    if name != "limit_mm_per_prompt" or not isinstance(value, Mapping):
        return False
    # A count only refuses prompts. Frames and sizes may mean more to a model.
    return all(isinstance(limit, int) or set(limit) == {"count"} for limit in value.values())


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Digest of settings: 32 hex digits."""
    return digest(orjson.dumps(settings, option=_ANY_NAMES))


_ANY_NAMES = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def fingerprint(
    settings: Mapping[str, Any], dataset_name: str, dataset_version: int, reader_version: int
) -> str:
    """Digest of everything but the sample that changes an answer: 32 hex digits. ``settings`` are
    the :func:`settings_of` the run."""
    parts = [settings_digest(settings), dataset_name, dataset_version, reader_version]
    return digest(orjson.dumps(parts))

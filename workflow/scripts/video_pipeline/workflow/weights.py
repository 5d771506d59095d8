"""Fetches the weights of a model of the Hugging Face hub once, before a job takes a GPU.

huggingface_hub has a lock for each file, so jobs that share a cache would fetch each file only
once. But all of them would hold their GPUs meanwhile, the hub may refuse 64 jobs that ask for the
list of files at once, and its refusal would be known only then.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from fnmatch import filter as matching
from pathlib import Path

from video_pipeline.common.faults import failure_of, is_environment_fault
from video_pipeline.common.hub import ask_hub, hub_words
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.model.model import Model, download_command

logger = logging.getLogger(__name__)

_FORMATS = ("auto", "hf", "safetensors")
"""Values of ``vllm.load_format`` whose files are known here; vLLM fetches those of other values."""

_INDEX = "model.safetensors.index.json"

_PATTERNS = ("consolidated*.safetensors", "*.safetensors", "*.bin", "*.pt")
"""Patterns of files with weights, in vLLM's order: it takes the first that matches a file."""

_TOTAL = re.compile(r"-\d+-of-(\d+)\.")


def is_fetched(config: Config) -> bool:
    """Whether the rule ``fetch`` has weights to fetch: those of a model of the hub."""
    return (
        Model.of(config).is_on_hub
        and not config.vllm.model.endswith(".gguf")
        and config.vllm.arguments.get("load_format", "auto") in _FORMATS
        and not os.environ.get("VLLM_USE_MODELSCOPE")
    )


def fetch_weights(config: Config) -> Path:
    """Fetch the model's weights and processor, unless they are here; returns the folder of the
    weights. With ``HF_HUB_OFFLINE`` it only checks that they are here.

    Raises :class:`UserError` if they are not available, and :class:`EnvironmentFault` if the hub or
    the network is at fault.
    """
    from huggingface_hub import snapshot_download

    from video_pipeline.model.processor import PROCESSOR_FILES  # This imports much.

    model, revision = config.vllm.model, config.vllm.arguments.get("revision")
    cache = config.vllm.arguments.get("download_dir")  # Only the weights go there.

    def fetch() -> tuple[list[str], Path]:
        processor = Path(
            snapshot_download(model, revision=revision, allow_patterns=PROCESSOR_FILES)
        )
        names = weight_files(_names(model, revision, cache, processor), processor)
        folder = snapshot_download(model, revision=revision, cache_dir=cache, allow_patterns=names)
        return names, Path(folder)

    try:
        names, folder = ask_hub(fetch, model)
    except Exception as error:
        words = f"vllm.model: the hub does not give {model}: {hub_words(error)}"
        raise failure_of(error, f"{words}. {_advice(config, error)}") from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing or not names:
        first = missing[0] if missing else "weights"
        raise UserError(f"vllm.model: {folder} has no {first}. {_advice(config)}")
    logger.info("the weights of %s are in %s", model, folder)
    return folder


def weight_files(names: Iterable[str], folder: Path) -> list[str]:
    """The files with the weights that vLLM takes, among ``names``, all files of the model.
    ``folder`` has their index, if the model has one."""
    for pattern in _PATTERNS:
        weights = matching(list(names), pattern)
        if weights and pattern == "*.safetensors" and (folder / _INDEX).exists():
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            return sorted(set(index["weight_map"].values()))
        if weights:
            return sorted(weights)
    return []


def _names(model: str, revision: str | None, cache: str | None, processor: Path) -> list[str]:
    """The files of a model: all that the hub has, or those here if it does not answer. The folder
    ``processor`` has the index of the weights."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list_repo_files(model, revision=revision)
    except Exception as error:
        # An empty list: with None it would need every file of the model.
        folder = Path(
            snapshot_download(model, revision=revision, cache_dir=cache, allow_patterns=[])
        )
        names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        if is_environment_fault(error) and not _are_whole(weight_files(names, processor), folder):
            raise  # The files here are not enough, so the hub has to be asked again.
        return names


def _are_whole(weights: list[str], folder: Path) -> bool:
    """Whether all ``weights`` of a model are in its ``folder``: transformers writes the number of
    files into each name, as in ``model-00001-of-00004.safetensors``."""
    totals = {int(total) for name in weights for total in _TOTAL.findall(name)} or {1}
    return len(weights) >= max(totals) and all((folder / name).exists() for name in weights)


def _advice(config: Config, error: BaseException | None = None) -> str:
    """The next step for a user whose machine lacks the weights."""
    from huggingface_hub.errors import GatedRepoError

    model, revision = config.vllm.model, config.vllm.arguments.get("revision")
    if isinstance(error, GatedRepoError):
        return (
            f"The model is gated: accept its terms on https://huggingface.co/{model}, and put a "
            "token of yours into the environment variable HF_TOKEN"
        )
    cache = config.vllm.arguments.get("download_dir")
    place = ("--cache-dir", str(cache)) if cache else ()
    return (
        "If this machine has no network, run on one that has, with the same HF_HOME: "
        + download_command(model, revision, *place)
    )

"""Finds and loads the processor of a model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from video_pipeline.common.faults import failure_of, is_environment_fault
from video_pipeline.common.hub import ask_hub, hub_words
from video_pipeline.config import Config
from video_pipeline.errors import Failure
from video_pipeline.model.model import Model, download_command

SIMULATED_MODEL = "simulated"
"""Stands for the model if none is loaded. Its prompts are plain ChatML."""

PROCESSOR_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.ttf"]
"""The files of a model that are not weights. Ernie 4.5-VL has a font, to write times into frames.
"""


def dataset_model(config: Config) -> str:
    """The ``model`` of the datasets if no engine names it: a local folder, or
    :data:`SIMULATED_MODEL`. Raises what :func:`processor_folder` raises."""
    if config.run.engine == "simulated":
        return SIMULATED_MODEL
    return processor_folder(config.vllm.model, config.vllm.arguments.get("revision"))


def processor_folder(model: str, revision: str | None = None) -> str:
    """A local folder with the processor of ``model``: the model's own, or one that the Hugging Face
    hub gives (a few MB, no weights; fetched once).

    Raises:
        UserError: It is not available.
        EnvironmentFault: It is not available now, but may be later.
    """
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    try:
        return ask_hub(
            lambda: snapshot_download(model, revision=revision, allow_patterns=PROCESSOR_FILES),
            model,
        )
    except Exception as error:
        raise _no_processor(model, revision, error) from error


def local_folder(model: Model) -> Path | None:
    """The folder with the files of ``model``, if they are here. Asks no network."""
    if not model.is_on_hub:
        return Path(model.name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.name, revision=model.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _no_processor(model: str, revision: str | None, error: Exception) -> Failure:
    patterns = (f"'{pattern}'" for pattern in PROCESSOR_FILES)
    command = download_command(model, revision, "--include", *patterns)
    later = is_environment_fault(error)
    return failure_of(
        error,
        f"vllm.model: {model} is no folder here, and the hub does not give its processor: "
        f"{hub_words(error)}. {'Run the same command again later' if later else 'Fix the name'}; "
        "or fetch it on a machine with a network, to the same HF_HOME: "
        f"{command}; or name a local folder",
    )


@cache
def load_processor(model: str) -> Any:
    """The processor of ``model``, loaded once in a process. Raises :class:`OSError` or
    :class:`ValueError` if there is none."""
    from transformers import AutoProcessor
    from transformers.utils import logging

    # Its advice is on sampling and resizing, which are done already.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no types
    # False, not None: with None transformers asks at the terminal whether to run the code.
    return AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
        model, trust_remote_code=False
    )


def load_tokenizer(model: str) -> Any:
    """The tokenizer of ``model``, loaded once in a process."""
    processor = load_processor(model)
    return getattr(processor, "tokenizer", processor)  # A text model's processor is its tokenizer.

"""The commit of a model of the hub: resolved once, when the input is split for the first time, and
kept beside the journals. A name alone says nothing: its files change when somebody pushes.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.faults import failure_of
from video_pipeline.files import write_text
from video_pipeline.layout import Layout

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TIMEOUT_SECONDS = 30


def known_commit(config: Config, layout: Layout) -> str | None:
    """The commit that the journals of ``layout`` stand for. None of a model that has none (a
    folder, other storage than the hub), or where it was not resolved yet. Asks nobody."""
    if not _has_commit(config):
        return None
    revision = config.vllm.arguments.get("revision")
    if revision and _COMMIT.fullmatch(revision):
        return revision
    return _commits(layout).get(_name(config))


def resolve_commit(config: Config, layout: Layout) -> str | None:
    """:func:`known_commit`; where it is not known yet, that of the hub now (without a network, of
    the hub's cache here), which is written down.

    Raises :class:`UserError` where neither tells; :class:`EnvironmentFault` if the hub is at fault.
    """
    commit = known_commit(config, layout)
    if commit is not None or not _has_commit(config):
        return commit
    commit = _ask(config)
    commits = {**_commits(layout), _name(config): commit}
    write_text(layout.commits, json.dumps(commits, indent=2) + "\n")
    logger.info(
        "%s stays at commit %s, whatever is pushed to the hub; vllm.revision names another",
        config.vllm.model,
        commit,
    )
    return commit


def with_commit(config: Config, commit: str | None) -> Config:
    """``config`` with the model at ``commit``, if there is one."""
    if commit is None:
        return config
    arguments = config.vllm.arguments
    update = {"revision": commit}
    if arguments.get("tokenizer") and not arguments.get("tokenizer_revision"):
        # vLLM would look for the model's commit in the tokenizer's own repository
        update["tokenizer_revision"] = arguments.get("revision") or "main"
    vllm = config.vllm.model_copy(update=update)
    return config.model_copy(update={"vllm": vllm})


def is_on_hub(config: Config) -> bool:
    """Whether ``vllm.model`` names a model of the hub: it has the form of such a name, and nothing
    of that name is here."""
    model = config.vllm.model
    return (
        config.run.engine == "vllm"
        and _HUB_NAME.fullmatch(model) is not None
        and not Path(model).exists()
    )


def _has_commit(config: Config) -> bool:
    # with hf_config_path vLLM would look for the commit there, too
    return is_on_hub(config) and not config.vllm.arguments.get("hf_config_path")


def _name(config: Config) -> str:
    return f"{config.vllm.model}@{config.vllm.arguments.get('revision') or 'main'}"


def _commits(layout: Layout) -> dict[str, str]:
    try:
        return json.loads(layout.commits.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{layout.commits} is damaged: {error}. It says at which commit the models of the hub "
            "are taken; remove it to take them as they are now"
        ) from error


def _ask(config: Config) -> str:
    from huggingface_hub import HfApi

    model, revision = config.vllm.model, config.vllm.arguments.get("revision")
    try:
        return HfApi().model_info(model, revision=revision, timeout=_TIMEOUT_SECONDS).sha
    except Exception as error:  # what the hub's client raises differs between its versions
        commit = _in_cache(config)
        if commit is not None:
            return commit
        raise failure_of(
            error,
            f"vllm.model: {model} is no folder here, and the hub does not say at which commit "
            f"{revision or 'main'} is: {error}. Fix the name; or give the commit in vllm.revision; "
            f"or fetch the model to the same HF_HOME where there is a network: hf download {model}",
        ) from error


def _in_cache(config: Config) -> str | None:
    """What the hub's cache on this machine says."""
    from huggingface_hub import constants

    arguments = config.vllm.arguments
    for folder in filter(None, (arguments.get("download_dir"), constants.HF_HUB_CACHE)):
        name = f"models--{config.vllm.model.replace('/', '--')}"
        try:
            ref = Path(folder, name, "refs", arguments.get("revision") or "main")
            return ref.read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return None

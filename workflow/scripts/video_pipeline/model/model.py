"""The model of a run.

A model of the hub stays at one commit, because the files behind its name change when somebody
pushes. The commit is resolved when the input is split for the first time, and kept beside the
journals.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from video_pipeline.common.faults import failure_of, is_environment_fault
from video_pipeline.common.files import write_text
from video_pipeline.common.hub import ask_hub, hub_words
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.model.files import model_files

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TIMEOUT_SECONDS = 30


def is_path(name: str) -> bool:
    """Whether the ``name`` of a model can only be a path: names on the hub have one slash at most
    (a file of weights there may have two)."""
    if "://" in name:
        return False
    parts = name.split("/")
    return parts[0] in ("", ".", "..", "~") or (len(parts) > 2 and not name.endswith(".gguf"))


@dataclass(frozen=True)
class Model:
    """The model of a run.

    Attributes:
        name: Its name on the Hugging Face hub, or its path here.
        revision: Its branch, tag or commit on the hub.
        download_dir: The folder of its weights, if it is not the hub's cache.
        is_on_hub: Whether it is a model of the hub: its name has the form of such a name, and no
            file or folder here has that name.
        has_commit: Whether vLLM can load it at a commit.
    """

    name: str
    revision: str
    download_dir: str | None
    is_on_hub: bool
    has_commit: bool

    @classmethod
    def of(cls, config: Config) -> Model:
        """The model in ``config``. The simulated engine has none: it is never on the hub."""
        name, arguments = config.vllm.model, config.vllm.arguments
        is_on_hub = (
            config.run.engine == "vllm"
            and _HUB_NAME.fullmatch(name) is not None
            and not Path(name).exists()
        )
        return cls(
            name=name,
            revision=arguments.get("revision") or "main",
            download_dir=arguments.get("download_dir"),
            is_on_hub=is_on_hub,
            # With hf_config_path vLLM would look for the commit in that repository, too.
            has_commit=is_on_hub and not arguments.get("hf_config_path"),
        )

    def identity(self, commit: str | None) -> dict[str, str | None] | None:
        """The part of a fingerprint that stands for the model: the content of its files here, or
        its name and ``commit``. None if there is neither."""
        files = model_files(Path(self.name))
        if files is None and commit is None:
            return None
        return {**files} if files else {self.name: commit}

    def known_commit(self, path: Path) -> str | None:
        """The commit that was resolved and written to ``path``; None if the model has no commit, or
        it was not resolved yet. Asks no network."""
        if not self.has_commit:
            return None
        if _COMMIT.fullmatch(self.revision):
            return self.revision
        return _read_commits(path).get(self._revision_name)

    def resolve_commit(self, path: Path) -> str | None:
        """:meth:`known_commit`, or else the commit that the hub has now (without a network: the
        hub's cache on this machine), which is written to ``path``.

        Raises:
            UserError: Neither the hub nor the cache has the model.
            EnvironmentFault: The hub or the network is at fault.
        """
        commit = self.known_commit(path)
        if commit is not None or not self.has_commit:
            return commit
        commit = self._ask_hub()
        commits = {**_read_commits(path), self._revision_name: commit}
        write_text(path, json.dumps(commits, indent=2) + "\n")
        logger.info(
            "%s stays at commit %s, whatever is pushed to the hub; vllm.revision names another",
            self.name,
            commit,
        )
        return commit

    @property
    def _revision_name(self) -> str:
        return f"{self.name}@{self.revision}"

    def _ask_hub(self) -> str:
        from huggingface_hub import HfApi

        def ask() -> str:
            try:
                api = HfApi()
                info = api.model_info(self.name, revision=self.revision, timeout=_TIMEOUT_SECONDS)
                return str(info.sha)
            except Exception:
                commit = self._ask_cache()
                if commit is None:
                    raise
                return commit

        try:
            return ask_hub(ask, self.name)
        except Exception as error:
            later = is_environment_fault(error)
            raise failure_of(
                error,
                f"vllm.model: {self.name} is no folder here, and the hub does not say at which "
                f"commit {self.revision} is: {hub_words(error)}. "
                f"{'Run the same command again later' if later else 'Fix the name'}; or give the "
                "commit in vllm.revision; or fetch it to the same HF_HOME on a machine with a "
                "network: " + download_command(self.name),
            ) from error

    def _ask_cache(self) -> str | None:
        from huggingface_hub import constants

        for folder in filter(None, (self.download_dir, constants.HF_HUB_CACHE)):
            ref = Path(folder, f"models--{self.name.replace('/', '--')}", "refs", self.revision)
            try:
                return ref.read_text(encoding="utf-8").strip()
            except OSError:
                continue
        return None


def download_command(name: str, revision: str | None = None, *options: str) -> str:
    """The command that fetches a model of the hub; ``options`` follow its name."""
    version = ("--revision", revision) if revision else ()
    return " ".join(["hf download", name, *version, *options])


def with_commit(config: Config, commit: str | None) -> Config:
    """``config`` with the model at ``commit``, if there is one."""
    if commit is None:
        return config
    arguments = config.vllm.arguments
    update = {"revision": commit}
    if arguments.get("tokenizer") and not arguments.get("tokenizer_revision"):
        # Otherwise vLLM looks for the model's commit in the tokenizer's own repository.
        update["tokenizer_revision"] = arguments.get("revision") or "main"
    vllm = config.vllm.model_copy(update=update)
    return config.model_copy(update={"vllm": vllm})


def _read_commits(path: Path) -> dict[str, str]:
    """The commits that were resolved, by name and revision."""
    try:
        commits: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. It says at which commit the models of the hub "
            "are taken; remove it to take them as they are now"
        ) from error
    return commits

"""Finds the library of the workflow that is being parsed. This file stands alone, because Snakemake
fetches the files of a module from GitHub or GitLab one by one."""

from __future__ import annotations

import importlib.util
import os
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from snakemake.exceptions import WorkflowError
from snakemake.sourcecache import HostingProviderFile, LocalSourceFile

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

NEEDED = ("numpy", "orjson", "pydantic", "rich", "simpleeval")
"""Packages that the workflow needs in Snakemake's own environment, which may lack them."""


def own_source(workflow: Workflow) -> Path:
    """The folder with this version's scripts and library, which can be imported from then on. Call
    this while a file of ``workflow/rules`` is parsed.

    Raises :class:`WorkflowError` if the library is not available, or another copy of it is in use.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkflowError(
            f"the Python that runs Snakemake ({sys.executable}) lacks {', '.join(missing)}, which "
            f"video-pipeline needs: {sys.executable} -m pip install {' '.join(missing)}"
        )
    scripts = _scripts(workflow)
    sys.path.insert(0, str(scripts))
    import video_pipeline

    loaded = Path(video_pipeline.__file__).parent.parent
    if loaded.resolve() != scripts.resolve():
        raise WorkflowError(
            f"this workflow imports two copies of video-pipeline, {loaded} and {scripts}, and one "
            "process can hold only one of them: give all modules the same snakefile"
        )
    return scripts


def _scripts(workflow: Workflow) -> Path:
    snakefile = workflow.included_stack[-1]
    location = snakefile.get_path_or_uri(secret_free=True)
    if isinstance(snakefile, LocalSourceFile):
        return Path(os.path.abspath(location)).parents[1] / "scripts"
    if not isinstance(snakefile, HostingProviderFile):
        raise WorkflowError(
            f"{location}: video-pipeline can be imported from a folder of this machine, or with "
            "github(...) or gitlab(...), which bring its library along"
        )
    repository = snakefile.hosted_repo.repo
    commit = repository.git.rev_parse(f"{snakefile.ref}^{{commit}}")
    folder = Path(workflow.sourcecache.cache_path, "video-pipeline", commit)
    root = PurePosixPath(snakefile.path).parents[1]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
            archive, tree = Path(scratch, "source.tar"), Path(scratch, "source")
            repository.git.archive(commit, f"{root}/scripts", f"{root}/envs", output=str(archive))
            with tarfile.open(archive) as stream:
                stream.extractall(tree, filter="data")
            try:
                tree.rename(folder)
            except OSError:  # Another process was faster.
                if not folder.exists():
                    raise
    return folder / root / "scripts"

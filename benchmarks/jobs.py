"""Runs of the real command lines, ``split.py`` and ``infer.py``, and of helpers, as processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from video_pipeline.run.statistics import read_statistics

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow" / "scripts"
PLUGINS = Path(__file__).resolve().parent / "plugins"


class Job:
    """One rank of a run, in an empty folder of its own.

    Attributes:
        folder: The working directory; ``samples.jsonl`` and ``config.yaml`` lie in it.
    """

    def __init__(
        self, folder: Path, samples: Iterable[dict[str, Any]], settings: dict[str, Any]
    ) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        data = {
            "input_jsonl": "samples.jsonl",
            "output_jsonl": "results/out.jsonl",
            "id_field": "id",
            **settings.pop("data", {}),
        }
        with open(folder / "samples.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(sample) + "\n" for sample in samples)
        text = yaml.safe_dump({"data": data, **settings})
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        self._call("split.py")

    @property
    def journal(self) -> Path:
        """The folder of the job's journals."""
        return self.folder / "results" / ".journal"

    def infer(
        self, threads: int, watch: Callable[[subprocess.Popen], None] | None = None
    ) -> dict[str, Any]:
        """Run ``infer.py`` and return its statistics; ``watch`` is called every few ms."""
        self._call("infer.py", "--rank", "0", "--threads", str(threads), watch=watch)
        (folder,) = self.journal.glob("*/*/")
        statistics = read_statistics(folder)[-1]
        if statistics["failed"]:
            raise RuntimeError(f"{statistics['failed']} samples failed, see {self.folder}")
        return statistics

    def _call(self, script: str, *arguments: str, watch: Any = None) -> None:
        command = [str(SCRIPTS / script), "--config", "config.yaml", "--num-shards", "1"]
        call([*command, *arguments], self.folder, watch)


def call(
    arguments: list[str],
    folder: Path,
    watch: Callable[[subprocess.Popen], None] | None = None,
) -> None:
    """Run Python with ``arguments`` in ``folder``; its output goes to ``log.txt`` there."""
    log = folder / "log.txt"
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=stream, stderr=stream
        )
        try:
            while True:
                if watch is not None:
                    watch(process)
                try:
                    status = process.wait(0.02 if watch is not None else None)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(arguments)} failed, see {log}:\n{tail}")


def measure(module: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """Run ``python -m benchmarks.<module>`` in ``folder``. It reads ``settings`` from
    ``settings.json``, and writes ``result.json``, whose content is returned."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    call(["-m", f"benchmarks.{module}"], folder)
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def settings_of_this_process() -> dict[str, Any]:
    """The settings that :func:`measure` gave to this process."""
    return json.loads(Path("settings.json").read_text(encoding="utf-8"))


def hand_back(result: dict[str, Any]) -> None:
    """Give ``result`` back to :func:`measure`."""
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")

"""What the tests share: a small run in a folder of its own, and ways to count what it did."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import yaml
from video_pipeline.config import Config, load_config
from video_pipeline.infer.infer import infer
from video_pipeline.journal.format import attempt_prefix
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.layout import Layout
from video_pipeline.split.split import split
from warm_snakemake import WarmSnakemake

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = PROJECT / "workflow" / "scripts"
ABSENT = PROJECT / "tests" / "absent"  # modules that a run does not see
STAND_INS = PROJECT / "tests" / "stand_ins"  # modules that a run without videos gets

WARM = WarmSnakemake(os.environ, ABSENT)

# A task and a dataset that need no video. Each read leaves a line in reads.txt; the field `do` of a
# sample says how it misbehaves; `wait`: until there is a file `go`.
PLUGIN = '''\
"""A task and a dataset for tests."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from video_pipeline.data.base import BaseDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

HERE = Path(__file__).parent


def misbehave(do):
    if do == "raise":
        raise ValueError("no such clip")
    if do == "surrogate":
        raise ValueError("no such clip: caf\\udce9")
    if do == "silent":
        raise ValueError
    if do == "die":
        os._exit(7)
    if do == "die once" and not (HERE / "died").exists():
        (HERE / "died").touch()
        os._exit(7)
    if do == "vanish":
        os._exit(0)
    if do == "segfault":
        ctypes.string_at(0)
    if do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "devour":
        bytearray(10**11)
    if do == "exit":
        sys.exit(0)
    if do == "hang":
        time.sleep(600)
    while do == "wait" and not (HERE / "go").exists():
        time.sleep(0.05)
    if do == "storage" and not (HERE / "storage").exists():
        raise OSError("the storage is away")


@register_dataset("plain")
class Plain(BaseDataset):
    def __getitem__(self, i):
        sample = self.samples[i]
        with open(HERE / "reads.txt", "a") as stream:
            stream.write(sample["__key"] + "\\n")
        misbehave(sample.get("do"))
        item = {
            "__key": sample["__key"],
            "raw": sample,
            "llm_input": {"prompt": "x" * 40, "multi_modal_data": {}},
        }
        return {**item, **sample.get("returns", {})}


@register_task
class Ask(Task):
    name = "ask"
    dataset_name = "plain"

    def build_messages(self, sample):
        return [{"role": "user", "content": f"What happens? {sample.get('hint', '')}"}]

    def parse(self, generated_text, sample):
        return {"answer": generated_text.strip()}
'''


# As the windows of a video: the first second of each, and the rest.
EXPAND = """class Plain(BaseDataset):
    @classmethod
    def expand(cls, sample, params):
        from video_pipeline.samples.windows import windows

        misbehave(sample.get("do"))
        return windows({k: v for k, v in sample.items() if k[:2] != "__"}, [0.0, 1.0, 2.5])
"""


class Run:
    """A small run with the simulated engine, in a folder of its own.

    Attributes:
        folder: The working directory.
        settings: The configuration file's content; :meth:`configure` changes it.
        is_users: Whether it is run as users do: by a ``snakemake`` that imports its modules itself,
            and with torch, whether it needs torch or not.
    """

    is_users = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.settings: dict[str, Any] = {}
        self.write_plugin(PLUGIN)
        self.configure(
            data={
                "input_jsonl": "samples.jsonl",
                "output_jsonl": "results/out.jsonl",
                "id_field": "id",
                "num_shards": 1,
                "num_workers": 1,
            },
            run={"task": "ask", "plugins": ["plugin.py"], "engine": "simulated"},
            report={"samples": 0},  # no video is read again
        )

    # --- what the user writes -------------------------------------------------------------------

    def configure(self, **sections: dict[str, Any]) -> None:
        """Change keys of the configuration file."""
        for name, keys in sections.items():
            self.settings.setdefault(name, {}).update(keys)
        (self.folder / "my.yaml").write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    def write_samples(self, samples: Iterable[dict[str, Any]]) -> None:
        """Write the input."""
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (self.folder / "samples.jsonl").write_text(lines, encoding="utf-8")

    def write_plugin(self, text: str) -> None:
        """Write the plugin."""
        (self.folder / "plugin.py").write_text(text, encoding="utf-8")

    def edit_plugin(self, old: str, new: str) -> None:
        """Replace a piece of the plugin, which must be there."""
        path = self.folder / "plugin.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    @property
    def config(self) -> Config:
        """The configuration, as the workflow reads it."""
        return load_config(self.folder / "my.yaml")

    # --- running it -----------------------------------------------------------------------------

    def snakemake(
        self, *arguments: str, snakefile: Path = PROJECT / "Snakefile", succeeds: bool = True
    ) -> str:
        """Run Snakemake; returns what it printed. Fails unless it succeeds as expected."""
        if self.is_users or not WARM.serves(os.environ):
            return self._checked(self._snakemake(snakefile, arguments), succeeds)
        path = self.environment()["PYTHONPATH"].split(os.pathsep)
        words = self._arguments(snakefile, arguments)
        return self._expected(*WARM.run(words, self.folder, os.environ, path), succeeds)

    def without_messages(self) -> Path:
        """A Snakefile of the same workflow, of which Snakemake shows all of each job: its threads,
        its resources, its files."""
        snakefile = self.folder / "Snakefile"
        snakefile.write_text(
            f'include: "{PROJECT}/workflow/Snakefile"\n\n\n'
            "for one in workflow.rules:\n    one.message = None\n\n\n"
            "rule target:\n    input: rules.all.input\n"
        )
        return snakefile

    def start_snakemake(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake in the background."""
        return self._in_background(self._snakemake(PROJECT / "Snakefile", arguments))

    def _snakemake(self, snakefile: Path, arguments: Iterable[str]) -> list[str]:
        return [sys.executable, "-m", "snakemake", *self._arguments(snakefile, arguments)]

    def _arguments(self, snakefile: Path, arguments: Iterable[str]) -> list[str]:
        return [
            *("--snakefile", str(snakefile)),
            *("--directory", str(self.folder), "--configfile", str(self.folder / "my.yaml")),
            *("--cores", "2", *arguments),
        ]

    def script(self, name: str, *arguments: str, succeeds: bool = True) -> str:
        """Run one of ``workflow/scripts`` in the working directory."""
        return self._checked(self.command(name, *arguments), succeeds)

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of one of ``workflow/scripts``, on the configuration file."""
        return [sys.executable, str(SCRIPTS / name), "--config", "my.yaml", *arguments]

    def module(self, name: str, *arguments: str, succeeds: bool = True) -> str:
        """Run a module of the library as a command, on the configuration file."""
        command = [sys.executable, "-m", f"video_pipeline.{name}", *arguments]
        return self._checked([*command, "--configfile", "my.yaml"], succeeds)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one of ``workflow/scripts`` in the background."""
        return self._in_background(self.command(name, *arguments))

    def _in_background(self, command: list[str]) -> subprocess.Popen[str]:
        with open(self.folder / "background.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, text=True, env=self.environment()
            )

    def _checked(self, command: list[str], succeeds: bool) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
        )
        return self._expected(done.returncode, done.stdout, succeeds)

    def _expected(self, code: int, said: str, succeeds: bool) -> str:
        assert code == (0 if succeeds else 1), f"exit code {code}\n{said}"
        return said

    def environment(self) -> dict[str, str]:
        """The environment of a run: that of the tests, without the modules of ``tests/absent``."""
        path = filter(None, (str(ABSENT), *self.stand_ins, os.environ.get("PYTHONPATH")))
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    @property
    def stand_ins(self) -> list[str]:
        """Where its processes look first for modules. With the simulated engine and the dataset of
        :data:`PLUGIN` no process needs torch."""
        every = (self.settings, *self.settings.get("stages", ()))
        runs = [settings.get("run", {}) for settings in every]
        is_plain = all(run.get("task", "ask") == "ask" and "dataset" not in run for run in runs)
        is_simulated = runs[0].get("engine") == "simulated"
        return [str(STAND_INS)] if is_plain and is_simulated and not self.is_users else []

    # --- what it did ----------------------------------------------------------------------------

    @property
    def output(self) -> Path:
        """The consolidated output."""
        return self.folder / "results" / "out.jsonl"

    def records(self) -> list[dict[str, Any]]:
        """The records of the output."""
        return read_jsonl(self.output)

    def summary(self) -> dict[str, Any]:
        """The summary of the output."""
        return json.loads((self.folder / "results" / "out.summary.json").read_text())

    def journals(self) -> list[Path]:
        """The journal folders, one for each fingerprint."""
        return sorted((self.folder / "results" / ".journal" / "out").glob("*"))

    def answers(self) -> Counter[str]:
        """How often each sample was inferred, by the ok records of all journals."""
        return Counter(
            record["__key"]
            for path in (self.folder / "results" / ".journal" / "out").rglob("attempt.*.jsonl")
            for record in read_jsonl(path, torn=True)
            if "output_text" in record
        )

    def reads(self) -> Counter[str]:
        """How often each sample was read by the dataset."""
        path = self.folder / "reads.txt"
        return Counter(path.read_text().split("\n")[:-1] if path.exists() else [])

    def log(self, name: str) -> str:
        """The log of one rule."""
        return (self.folder / "logs" / "out" / f"{name}.log").read_text(encoding="utf-8")


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "finish_reason": "stop"}
ERROR = {"stage": "read", "type": "ValueError", "message": "no such clip"}


class Splitter:
    """Splits the samples of a run in this process.

    Attributes:
        manifest: What the last split wrote.
        chunks: The chunks that it wrote.
    """

    def __init__(self, run) -> None:
        self.run = run

    def __call__(
        self, entries=None, num_shards: int = 2, run_id: str = "", num_processes: int = 1
    ) -> Splitter:
        if entries is not None:
            self.run.write_samples(entries)
        config = self.run.config
        self.layout = Layout.of(config, num_shards)
        self.manifest = split(config, self.layout, run_id, num_processes)
        self.chunks = [
            list(self.manifest.open_chunk(self.layout, rank)) for rank in range(num_shards)
        ]
        return self

    def run_all(self) -> None:
        """Split into one chunk, infer and consolidate, with the plugin as it is now."""
        with forgetting_plugins():
            self(num_shards=1)
            infer(self.run.config, self.layout, 0, 1)
            consolidate(self.run.config, self.layout)

    @property
    def keys(self) -> list[list[str]]:
        """The keys of each chunk."""
        return [[entry.key for entry in chunk] for chunk in self.chunks]

    @property
    def pending(self) -> list[str]:
        """Keys without a finished record, in no order."""
        return sorted(e.key for chunk in self.chunks for e in chunk if not e.done)

    @property
    def order(self) -> list[str]:
        """The keys as consolidate would put them together, with those that are left out."""
        parts = [iter(chunk) for chunk in [*self.keys, [r["__key"] for r in self.left_out]]]
        return [next(parts[rank]) for rank in array("I", self.layout.order.read_bytes())]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """The records of samples that are not asked about."""
        return read_jsonl(self.layout.left_out)

    def finish(self, *finished: str, failed: tuple[str, ...] = ()) -> None:
        """Write records of these samples to the journal."""
        journal = Path(self.manifest.journal)
        for rank, chunk in enumerate(self.chunks):
            with JournalWriter(journal, attempt_prefix(self.manifest.split_id, rank)) as writer:
                for entry in chunk:
                    for question in entry.questions:
                        if entry.key in finished:
                            writer.answer(*question, "text", USAGE)
                        elif entry.key in failed:
                            writer.error(*question, ERROR)


def samples(count: int, **fields: Any) -> list[dict[str, Any]]:
    """``count`` samples with ids 0, 1, ..."""
    return [{"id": number, "path": f"{number}.mp4", **fields} for number in range(count)]


def keys(count: int) -> list[str]:
    """The keys of :func:`samples`."""
    return [str(number) for number in range(count)]


def rules_run(said: str) -> dict[str, int]:
    """How many jobs of each rule Snakemake ran or would run, by its table, without targets. The
    table of a run is only in its complete log."""
    if log := re.search(r"^Complete log\(s\): (.*)$", said, re.MULTILINE):
        said = Path(log[1]).read_text(encoding="utf-8")
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", said, re.MULTILINE | re.DOTALL)
    rows = dict(row.split() for row in table[1].splitlines()) if table else {}
    return {rule: int(number) for rule, number in rows.items() if rule not in ("all", "default")}


def read_jsonl(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; ``torn``: without a last line that is not whole."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert torn or lines[-1] == ""
    return [json.loads(line) for line in lines[:-1]]


@contextmanager
def forgetting_plugins() -> Iterator[None]:
    """What plugins register within the block is forgotten after it."""
    from video_pipeline.data import registry as datasets
    from video_pipeline.tasks import registry as tasks

    datasets.get_dataset("qwen_video")
    tasks.get_task("describe")
    registries = (datasets._DATASETS, tasks._TASKS)
    known = [dict(registry._classes) for registry in registries]
    try:
        yield
    finally:
        for registry, classes in zip(registries, known, strict=True):
            registry._classes = classes
        for name in [name for name in sys.modules if name.startswith("video_pipeline_plugin_")]:
            del sys.modules[name]


@contextmanager
def few_open_files(more: int) -> Iterator[None]:
    """Within the block this process may open ``more`` files beyond those that are open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = (number for number in count() if number not in taken)
    lowest = next(islice(free, more, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Wait until ``condition`` is true and return its value; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)
    return value


def marked_processes(mark: str) -> list[int]:
    """Process ids, by the job's mark in their environment."""
    return processes_with("VIDEO_PIPELINE_JOB", mark)


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of the processes that have this in their environment."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(variable) == value:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def lock_holders(path: Path) -> set[int]:
    """Ids of the processes that have a lock on this file, as the kernel lists them."""
    if not path.exists():
        return set()
    device, inode = path.stat().st_dev, path.stat().st_ino
    name = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    locks = (entry.split() for entry in Path("/proc/locks").read_text().splitlines())
    return {int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5] == name}

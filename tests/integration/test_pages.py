"""The pages are true: each command is run, each configuration and each example is used.

A machine for tests lacks GPUs, a cluster, the hub and a network. The simulated engine, a tiny
model under the name of the README's, and small programs stand in for them. ``NOT_RUN`` lists the
commands for which nothing can.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import PROJECT, Run, read_jsonl, rules_run, wait_until
from obstore.store import S3Store
from pages import PAGES, Block, blocks, clone, commands, moved, prose, run_in
from s3 import serving_s3
from video_pipeline.commands.main import COMMANDS, main
from video_pipeline.commands.preview import preview
from video_pipeline.config import Config, load_config
from video_pipeline.engine import simulated
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.layout import Layout
from video_pipeline.split.split import split
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing import tiny_model
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model

README = "README.md"
MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
LOCK, IS_LOCKED = (
    "flock /shared/test.lock sleep 60",
    "flock --nonblock /shared/test.lock true || echo locked",
)
RUN = "snakemake --cores all --resources gpu=8 --configfile my.yaml"
SHORT = "snakemake --cores all --resources gpu=1 --config input=videos/ model="

NOT_RUN = {
    "git clone https://github.com/OWNER/video-pipeline && cd video-pipeline": "a copy is made here",
    "git clone ... && cd video-pipeline": "a copy is made here",
    "pip install --no-deps -r envs/gpu.txt && pip install -e .": "test_install.py",
    "pip install 'scenedetect-headless>=0.7.2,<1'": "envs/dev.txt has it",
    "pip install snakemake-logger-plugin-rich": "is not installed here: tried by hand",
    f"{RUN} --logger rich": "needs the plugin above: tried by hand",
    f"{SHORT}{MODEL}": "test_readme.py, with real vLLM",
    f"{SHORT}MODEL": "the same, with a placeholder",
    "snakemake --workflow-profile profiles/mine --configfile my.yaml": "test_slurm.py",
    "make venv": "what runs this test needs it",
    "make demo": "test_vllm.py",
    "make test": "what runs this test",
    "make test-fast": "what runs this test",
    "make families": "runs tests",
    "make lint": "the continuous integration runs it",
    ".venv/bin/pip install pre-commit && .venv/bin/pre-commit install": (
        "pre-commit is not installed here"
    ),
    ".venv/bin/python -m pytest tests/unit/test_journal.py": "runs tests",
    '.venv/bin/python -m pytest -k "torn and line"': "runs tests",
    ".venv/bin/snakemake --directory .test --configfile .test/config/config.yaml --cores 2": (
        "test_catalog.py"
    ),
    "hf upload you/your-dataset results/output.describe.dataset --repo-type dataset": "the hub",
    "snakedeploy deploy-workflow https://github.com/OWNER/video-pipeline my-run --tag v0.1.0": (
        "test_modules.py runs what it writes"
    ),
    "apptainer build video-pipeline.sif workflow/envs/gpu.def": "needs root and a network",
    "docker build --target gpu --tag video-pipeline:gpu .": "needs docker and a network",
    f"{RUN} --sdm apptainer "
    '--apptainer-args "--nv --bind /data --bind /path/to/video-pipeline"': "test_deployment.py",
    "enroot import --output video-pipeline.sqsh dockerd://video-pipeline:gpu": "needs enroot",
    "srun --gpus 8 --container-image ./video-pipeline.sqsh "
    '--container-mounts "$PWD:$PWD,/data:/data" '
    f'--container-workdir "$PWD" {RUN}': "needs enroot",
    LOCK: "test_the_locks_are_checked",
    IS_LOCKED: "test_the_locks_are_checked",
}

# For each other command what it prints (a pattern), the file that it writes (a path), or a check
# of the folder in which it ran. Each runs in a copy of the finished run.
RANK_FILE = Path("results/output.describe.rank3.jsonl")
EXPECTED: dict[str, str | Path | Callable[[Path], None]] = {
    RUN: "Nothing to be done",
    "snakemake --cores all --resources gpu=8": "Nothing to be done",
    "snakemake -n --quiet host --configfile my.yaml": "Nothing to be done",
    "video-pipeline preview --configfile my.yaml --no-engine": "cat.mp4",
    "video-pipeline preview --video clip.mp4 --no-engine": Path("preview.png"),
    "video-pipeline preview my_plugin.py --task weather --video clip.mp4 --no-engine": (
        "What is the weather like"
    ),
    "video-pipeline plan --configfile my.yaml": lambda folder: has_planned(folder),
    "snakemake plan --cores all --configfile my.yaml": r"\nunreadable +1\b",
    "video-pipeline watch --configfile my.yaml": r"failed +│ +1 │",
    "video-pipeline retry --configfile my.yaml": r"1 failed sample\(s\) are open again",
    "video-pipeline retry --configfile my.yaml --stage read": r"1 failed sample\(s\) are open",
    "video-pipeline retry --configfile my.yaml --stage crash": "no failed samples to retry",
    "video-pipeline retry --configfile my.yaml --stage length": "no failed samples to retry",
    "video-pipeline journal stats --configfile my.yaml": "in use",
    "video-pipeline journal prune --configfile my.yaml": "can go",
    "video-pipeline samples clips -o samples.jsonl --probe": Path("samples.jsonl"),
    "video-pipeline samples s3://bucket/clips -o samples.jsonl": Path("samples.jsonl"),
    "video-pipeline scenes samples.jsonl -o samples.scenes.jsonl --configfile my.yaml": (
        Path("samples.scenes.jsonl")
    ),
    "snakemake partial --configfile my.yaml": lambda folder: has_partial(folder),
    "snakemake results/output.describe.rank3.jsonl --cores all --configfile my.yaml": RANK_FILE,
    "python workflow/scripts/infer.py --config results/output.describe.config.yaml "
    "--num-shards 8 --rank 3 --threads 8": RANK_FILE,
    "cp -r profiles/slurm profiles/mine": Path("profiles/mine/profile.yaml"),
    # The profile's gpu=8 is the number of shards so far, so nothing is left.
    "snakemake --workflow-profile profiles/mine --configfile my.yaml -n": "Nothing to be done",
    # test_recipes.py runs its jobs.
    "snakemake --cores all --resources gpu=1 --configfile examples/tags.yaml "
    "--config input=videos/": r"^infer +1$",
    "snakemake --report report.html --configfile my.yaml": Path("report.html"),
    "snakemake export --configfile my.yaml": lambda folder: run_python(folder, "read_parquet"),
    "python -m video_pipeline.testing.tiny_model --family gemma4 /tmp/tiny-gemma4": (
        Path("tmp/tiny-gemma4/config.json")
    ),
    "export HF_HOME=/shared/hf": "",
    "squeue --me -h -o '%i %j' | awk '$2 ~ /^video-pipeline/ {print $1}' | xargs -r scancel": (
        "^cancelled 7$"
    ),
}

# These are only planned (``-n``): their jobs would take longer than what they show is worth.
ONLY_PLANNED = (
    "snakemake --cores all --resources gpu=1 --configfile examples/tags.yaml "
    "--config input=videos/",
)

BEFORE = {
    "snakemake --workflow-profile profiles/mine --configfile my.yaml -n": (
        "cp -r profiles/slurm profiles/mine"
    ),
}

# --- commands ------------------------------------------------------------------------------------


PROGRAMS: dict[str, Callable[[], None]] = {
    "video-pipeline": main,
    "python -m video_pipeline.testing.tiny_model": tiny_model.main,
}


def has_partial(folder: Path) -> None:
    """The finished records are those of the output."""
    output = folder / "results/output.describe.jsonl"
    assert output.with_suffix(".partial.jsonl").read_bytes() == output.read_bytes()


def has_planned(folder: Path) -> None:
    """The lines of the page about the plan have the fields of the plan's own."""
    lines = values(blocks("json", "docs/plan.md")[0].text)
    planned = read_jsonl(folder / "results/output.describe.plan.jsonl")
    assert [line.keys() for line in lines] == [line.keys() for line in planned]


def run_python(folder: Path, mark: str) -> None:
    """Run the block of Python that has ``mark`` in ``folder``."""
    (block,) = (block for block in blocks("python") if mark in block.text)
    run_in(folder, f"{sys.executable} - <<'END'\n{block.text}\nEND\n")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    """The README's run in a copy of the repository: its second video is not there yet."""
    folder = tmp_path_factory.mktemp("first") / "checkout"
    clone(folder)
    (folder / "shared").mkdir()
    samples = next(block.text for block in blocks("json", README) if '"path"' in block.text)
    (folder / "samples.jsonl").write_text(samples)
    write_clip(folder / "videos/cat.mp4", width=64, height=64, fps=4, seconds=3)
    shutil.copytree(folder / "videos", folder / "clips")
    shutil.copy(folder / "videos/cat.mp4", folder / "clip.mp4")
    (folder / "my_plugin.py").write_text(plugin_of("weather"))
    write_tiny_model(folder / MODEL)
    for path, text in (
        (folder / "my.yaml", blocks("yaml", README)[0].text),
        (folder / "config/config.yaml", (PROJECT / "config/config.yaml").read_text()),
    ):
        settings = yaml.safe_load(text)
        settings["run"]["engine"] = "simulated"
        path.write_text(yaml.safe_dump(settings))
    run_in(folder, RUN)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_clip(path, width=64, height=64, fps=4, seconds=3)
    return path


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, clip) -> Iterator[S3Store]:
    with serving_s3(tmp_path_factory.mktemp("s3") / "log", "bucket") as store:
        store.put("clips/cat.mp4", clip.read_bytes())
        yield store


@pytest.fixture
def checkout(first_run, tmp_path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(first_run, tmp_path / "checkout", symlinks=True)


def test_every_command_is_run_or_listed():
    assert sorted(commands()) == sorted([*EXPECTED, *NOT_RUN])


@pytest.mark.parametrize("command", EXPECTED)
def test_a_command(command, checkout, request, monkeypatch, forget_plugins, capfd):
    if "s3://" in command:
        request.getfixturevalue("bucket")
    if command in BEFORE:
        run_in(checkout, BEFORE[command])
    expected = EXPECTED[command]
    if isinstance(expected, Path):
        (checkout / expected).unlink(missing_ok=True)
    if program := next((name for name in PROGRAMS if command.startswith(f"{name} ")), None):
        arguments = moved(checkout, command).removeprefix(program)
        monkeypatch.chdir(checkout)
        monkeypatch.setattr(sys, "argv", [program, *shlex.split(arguments)])
        PROGRAMS[program]()  # in this process, which has imported torch already
        printed = "".join(capfd.readouterr())
    else:
        printed = run_in(checkout, f"{command} -n" if command in ONLY_PLANNED else command)
    if isinstance(expected, str):
        assert re.search(expected, printed, re.MULTILINE), printed
    elif isinstance(expected, Path):
        assert (checkout / expected).exists()
    else:
        expected(checkout)


def test_a_failed_sample_is_answered_later(checkout):
    """The README's story: open it again, run again, write the page again."""
    output = checkout / "results/output.describe.jsonl"
    cat, long = read_jsonl(output)
    assert (cat["__status"], cat["input"]["title"]) == ("ok", "a cat")
    assert long["__error"]["stage"] == "read"
    write_clip(checkout / "videos/long.mp4", width=64, height=64, fps=2, seconds=100)
    run_in(checkout, "video-pipeline retry --configfile my.yaml --stage read")
    run_in(checkout, RUN.replace("gpu=8", "gpu=1"))  # a job is enough for it
    assert [record["__status"] for record in read_jsonl(output)] == ["ok", "ok"]
    page = checkout / "results/output.describe.report.html"
    page.unlink()
    assert f"{page}\n" in run_in(checkout, "video-pipeline report --configfile my.yaml")
    assert page.exists()


def test_the_locks_are_checked(tmp_path):
    (tmp_path / "shared").mkdir()
    lock = LOCK.replace("/shared", f"{tmp_path}/shared").split()
    with subprocess.Popen(lock, start_new_session=True) as first:
        try:
            wait_until(lambda: "locked" in run_in(tmp_path, IS_LOCKED), "the lock is held")
        finally:
            os.killpg(first.pid, 9)


def test_the_profile_for_other_clusters(checkout):
    """Without its executor, which is not installed here."""
    (block,) = (block for block in blocks("yaml") if "executor:" in block.text)
    settings = yaml.safe_load(block.text)
    kept = {key: value for key, value in settings.items() if "cluster-generic" not in str(key)}
    assert kept.pop("executor") == "cluster-generic"
    (checkout / "profiles/other").mkdir()
    (checkout / "profiles/other/profile.yaml").write_text(yaml.safe_dump(kept))
    command = "snakemake --workflow-profile profiles/other --configfile my.yaml -n"
    assert "Nothing to be done" in run_in(checkout, command)


def test_a_workflow_imports_this_one(tmp_path):
    """With a path in place of the address, which only the network has."""
    (block,) = (block for block in blocks("python") if "module captions:" in block.text)
    text, count = re.subn(r"github\(.*?\)", repr(str(PROJECT / "workflow/Snakefile")), block.text)
    assert count == 1
    captions = {"data": {"num_shards": 1}, "run": {"engine": "simulated"}}
    (tmp_path / "Snakefile").write_text(f"configfile: 'own.yaml'\n\n{text}")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"captions": captions}))
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/samples.jsonl").write_text('{"path": "a.mp4"}\n')
    planned = rules_run(run_in(tmp_path, f"{sys.executable} -m snakemake -n --cores 1"))
    assert {"captions_split": 1, "captions_infer": 1}.items() <= planned.items()


# --- configurations and plugins ------------------------------------------------------------------

SAMPLE = {"title": "a cat", "language": "English", "duration": 3, "height": 64, "question": "Who?"}


JSON_ANSWERS = {
    "judge": {"kind": "film", "people": 2},
    "structured_caption": {
        "subjects": [],
        "scene": "A kitchen.",
        "camera": {"shot_size": "wide", "angle": "low", "movement": "none"},
        "time_order": [],
    },
}


def plugins() -> list[Block]:
    """The blocks that register a task or a dataset."""
    return [block for block in blocks("python") if re.search("^@register_", block.text, re.M)]


def name_of(plugin: Block) -> str:
    """The task or dataset that it is about."""
    names = re.findall(r'^    name = "(\w+)"$', plugin.text, re.MULTILINE)
    return (names or re.findall(r'^@register_dataset\("(\w+)"\)', plugin.text, re.MULTILINE))[-1]


def plugin_of(name: str) -> str:
    (text,) = (block.text for block in plugins() if name_of(block) == name)
    return text


@pytest.mark.parametrize("plugin", [pytest.param(p, id=name_of(p)) for p in plugins()])
def test_a_plugin_shows_its_video(plugin, here: Run, clip, capsys):
    name = name_of(plugin)
    (here.folder / "own.py").write_text(plugin.text, encoding="utf-8")
    asks = {"task": name} if "(Task)" in plugin.text else {"task": "describe", "dataset": name}
    config = load_config({"run": {**asks, "plugins": ["own.py"], "engine": "simulated"}})
    preview(config, [{"path": str(clip), **SAMPLE}], Path("sheet.png"), with_engine=False)
    printed = capsys.readouterr().out
    if name == "my_dataset":
        assert "Q: Who?\nA:" in printed
        return
    assert "<|im_start|>user" in printed
    assert Path("sheet.png").stat().st_size > 0
    task = load_task(config)
    answer = json.dumps(JSON_ANSWERS[name]) if name in JSON_ANSWERS else "Rain."
    fields = task.parsed(answer, {"__key": "k"}, "mood")
    assert fields or name in ("how_it_ends", "colour")


def test_the_api_has_the_names():
    (block,) = blocks("python", "docs/api.md")
    exec(block.text, {})


def test_a_task_sets_the_sampling_of_a_sample():
    (block,) = (b for b in blocks("python") if b.text.startswith("def sampling"))
    names: dict = {}
    exec(block.text, names)
    assert names["sampling"](None, {"max_tokens": 7}, "") == {"max_tokens": 7}
    assert names["sampling"](None, {}, "") == {}


def answered(config: Config) -> list[dict]:
    """The records of a run in this process."""
    layout = Layout.of(config, 1)
    split(config, layout)
    infer(config, layout, 0, 1, plain=True)
    consolidate(config, layout)
    return read_jsonl(layout.output)


def configurations() -> list[Block]:
    """The blocks of YAML that are no profile of Snakemake."""
    return [block for block in blocks("yaml") if "executor:" not in block.text]


@pytest.mark.parametrize("block", configurations(), ids=str)
def test_a_configuration_runs(block, here: Run, clip, monkeypatch):
    """It is whole, but for the simulated engine, the input and what it names on this machine."""
    settings = yaml.safe_load(block.text)
    for section in (settings, *settings.get("stages", [])):
        if files := section.get("run", {}).get("plugins"):
            Path(files[0]).write_text(plugin_of(section["run"]["task"]))
    if settings.get("vision", {}).get("use_audio_in_video"):
        settings["run"]["dataset"] = "video"  # what an omni model gets
    if adapter := settings.get("vllm", {}).get("lora_path"):
        Path(adapter).mkdir(parents=True)
        (Path(adapter) / "adapter_config.json").write_text("{}")
    settings.setdefault("run", {})["engine"] = "simulated"
    settings.setdefault("data", {}).update(input_jsonl="samples.jsonl", num_workers=1)
    here.write_samples([{"path": str(clip), **SAMPLE}])
    for _, config in load_config(settings).by_stage():
        if config.run.task in JSON_ANSWERS:  # simulated words are no JSON
            answer = json.dumps(JSON_ANSWERS[config.run.task])
            monkeypatch.setattr(simulated, "simulated_text", lambda *_, text=answer: text)
        if config.vision.use_audio_in_video:
            split(config, Layout.of(config, 1))
            continue  # what the model hears is in test_vllm_sound.py
        (record,) = answered(config)
        assert record["__status"] in ("ok", "left_out"), record
        assert record["__task"] == config.run.task


def test_the_shipped_configurations_are_what_the_pages_say():
    stages = load_config(PROJECT / "config" / "stages.yaml").by_stage()
    assert [name for name, _ in stages] == ["caption", "prose"]
    task = load_task(load_config(PROJECT / "config" / "questions.yaml"))
    assert len(task.conversations({"__key": "k", "__video_uri": "a.mp4"})) == 3
    config = load_config(PROJECT / "config" / "thinking.yaml")
    assert config.vllm.chat_template_kwargs == {"enable_thinking": False}


def test_a_transcript_goes_into_the_prompt_if_there_is_one(here: Run, clip):
    here.write_plugin(plugin_of("with_transcript"))
    here.configure(run={"task": "with_transcript"})
    said = "Good evening. " * 40
    transcripts = {"said": {"transcript": said}, "null": {"transcript": None}, "missing": {}}
    here.write_samples([{"id": key, "path": str(clip), **t} for key, t in transcripts.items()])
    usage = {record["__key"]: record["__usage"] for record in answered(here.config)}
    tokens = {key: counts["prompt_tokens"] for key, counts in usage.items()}
    assert tokens["null"] == tokens["missing"]
    assert tokens["said"] - tokens["null"] >= len(said) // 4

    (settings,) = (yaml.safe_load(b.text) for b in configurations() if "transcript" in b.text)
    task = load_task(load_config(settings))
    for key, fields in transcripts.items():
        (_, user) = task.messages({"__key": key, "__video_uri": "a.mp4", **fields})
        text = user["content"][-1]["text"]
        assert ("Good evening" in text) == (key == "said")
        assert "None" not in text
        assert text.endswith("Describe it.")


# --- samples, records and names ------------------------------------------------------------------


def values(text: str) -> list[dict]:
    """The objects of a block, each of which may have several lines."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_the_records_of_the_readme_have_the_fields_of_records(first_run):
    ok, failed = values(blocks("json", README)[1].text)
    cat, long = read_jsonl(first_run / "results/output.describe.jsonl")
    for example, record in ((ok, cat), (failed, long)):
        assert example.keys() == record.keys()
    assert ok["__usage"].keys() == cat["__usage"].keys()
    assert failed["__error"].keys() == long["__error"].keys()


def test_members_and_rows_are_read(here: Run, clip, bucket):
    """The samples of the page about the input: one in a tar, one in a Parquet file in a store."""
    (block,) = blocks("json", "docs/input.md")
    with tarfile.open("shard-000.tar", "w") as tar:
        tar.add(clip, "clips/a.mp4")
    rows = pa.BufferOutputStream()
    pq.write_table(pa.table({"video": [b""] * 17 + [clip.read_bytes()]}), rows)
    bucket.put("part-0.parquet", rows.getvalue().to_pybytes())
    here.write_samples({"id": number, **sample} for number, sample in enumerate(values(block.text)))
    here.configure(run={"task": "describe"})
    records = answered(here.config)
    assert [record["__status"] for record in records] == ["ok", "ok"], records


def test_the_other_samples_and_records_are_tried_elsewhere():
    """Those of the README, the input and the plan are above, ``test_files_on_disk.py`` has those
    of the page about formats."""
    pages = Counter(block.page for block in blocks("json"))
    assert pages.keys() == {README, "docs/input.md", "docs/plan.md", "docs/formats.md"}
    assert (pages[README], pages["docs/input.md"], pages["docs/plan.md"]) == (2, 1, 1)


def test_each_block_says_what_it_is():
    """So none is passed over. A command that is only indented would be."""
    assert {block.language for block in blocks()} == {"bash", "json", "python", "yaml", ""}
    for page in PAGES:
        assert (
            re.findall(r"^    (?:snakemake|video-pipeline|python|pip|make) .*", prose(page), re.M)
            == []
        )


def test_commands_and_targets_that_are_named_exist():
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`make ([a-z-]+)", text):
            assert name in targets, f"{page}: make {name}"
        for name in re.findall(r"(?:`|^)video-pipeline ([a-z]+)", text, re.MULTILINE):
            assert name in COMMANDS, f"{page}: video-pipeline {name}"


def test_every_configuration_key_named_in_the_pages_exists():
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue  # it names earlier keys
        for section, key in re.findall(r"`(data|vision|run|report|plan)\.([a-z_]+)\b", prose(page)):
            known = Config.model_fields[section].annotation.model_fields
            assert key in known, f"{page}: {section}.{key}"

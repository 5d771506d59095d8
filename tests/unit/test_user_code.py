"""Mistakes in a user's tasks and datasets: each is named, with what to do, before a GPU is used."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import PROJECT, Run, Splitter, read_jsonl
from video_pipeline.commands.preview import preview
from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.errors import TaskError, UserError, user_code
from video_pipeline.infer.infer import infer
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.prompts import Prompt
from video_pipeline.testing.clips import write_clip

TASK = """\
import random
from pydantic import BaseModel
from torch.utils.data import Dataset
from video_pipeline.data.base import BaseDataset
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

class Model(BaseModel):
    kind: str

@register_task
class Mine(Task):
    name = "mine"
    dataset_name = "mine"
    CLASS

    def build_messages(self, sample):
        video = {"type": "video", "video": sample["__video_uri"]}
        return [{"role": "user", "content": [video, PART]}]

"""
DATASET = """
@register_dataset("mine")
class Its(QwenVideoDataset):
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=1.0)


def look(run: Run, clip: Path, plugin: str) -> None:
    """A preview of the task in ``plugin``, without an engine."""
    run.write_plugin(plugin)
    config = load_config({"run": {"task": "mine", "plugins": ["plugin.py"], "engine": "simulated"}})
    preview(config, [{"path": str(clip)}], Path("sheet.png"), with_engine=False)


def task(
    line: str = "", part: str = '{"type": "text", "text": "?"}', dataset: str = "    pass"
) -> str:
    return TASK.replace("CLASS", line).replace("PART", part) + DATASET + dataset


def test_nothing_is_wrong_with_the_task_itself(
    here: Run, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look(here, clip, task("output_schema = Model"))
    assert "4 pictures: sheet.png" in capsys.readouterr().out


INIT = "def __init__(self):\n        pass"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("output_schema = 'Model'", "expected a pydantic model .* got 'Model'"),
        ("output_schema = Model(kind='a')", r"the class, not an object of it.* Model\(kind='a'\)"),
        ("output_schema = Dataset", r"expected a pydantic model .*Dataset.>"),
        ("output_schema = {'type': 'objekt'}", r"not a JSON Schema, at \$.type: 'objekt'"),
        ("output_schema = {'enum': {1}}", "set is not JSON serializable"),
        ("schema = lambda self, part: {}[part]", r"KeyError: '' \(.*plugin.py, line 17\)"),
        ("in_messages = None", "in_messages must be a tuple of names, .* got None"),
        ("in_messages = ('prompt')", r"in_messages must be a tuple of names, such as \(\"fps\",\)"),
        (INIT, r"'mine': its __init__ failed: TypeError: .*super\(\).__init__\(params\)"),
    ],
)
def test_a_task_that_cannot_be(here: Run, clip: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(here, clip, task(line))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ('{"type": "vidoe", "vidoe": "a.mp4"}', "part of a message .* did you mean 'video'?"),
        ('"Why?"', "part of a message must be a dict .* got 'Why\\?'"),
        # A chat template would show the video and pass over the text.
        ('{**video, "text": "Why?"}', "must be a dict with exactly one of"),
        (
            '{"type": "text", "text": str(random.random())}',
            "messages, schema or sampling differ each time",
        ),
        ('{"type": "text", "text": Model(kind="a")}', "must return plain text"),
        ('{"type": "text", "text": sample.get("x")}', "must be a text, got None"),
        # In such a text special tokens would act.
        ('{"type": "text", "text": ["<|im_end|>"]}', r"must be a text, got \['<\|im_end"),
    ],
)
def test_messages_that_cannot_be(here: Run, clip: Path, part: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(here, clip, task(part=part))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("    def __init__(self, samples): ...", r"Its: its __init__ failed: .*\(\*\*kwargs\)"),
        ("    sample_fields = 'fps'", "Its: sample_fields must be a tuple"),
        ("    def expand(self, sample, params): ...", "Its: expand must be a classmethod"),
        ("    expand = classmethod(lambda *_: {})", r"Its: expand must return a list .* \{\}"),
        ("    expand = classmethod(lambda *_: [])", "the dataset made no sample of it"),
        ("    expand = classmethod(lambda *_: [{}[1]])", r"KeyError: 1 \(.*plugin.py, line 26\)"),
        ("    def visual(self, *_): return {}[1]", r"KeyError: 1 \(.*plugin.py, line 26\)"),
    ],
)
def test_a_dataset_that_cannot_be(here: Run, clip: Path, dataset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(here, clip, task(dataset=dataset))


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("import sys\nsys.exit(3)\n", "failed on import: SystemExit: 3 .*plugin.py, line 2"),
        ("class Mine:\n  def f(self)\n", r"SyntaxError: expected ':' \(plugin.py, line 2\)$"),
        (
            task().replace('("mine")\n', "\n"),
            r"plugin.py: register_dataset needs a name: .*\(.*plugin.py, line 24\)",
        ),
        (
            task(dataset="    pass").replace("(QwenVideoDataset)", "(BaseDataset)"),
            r"Its must define __getitem__ \(.*plugin.py, line 24\)",
        ),
        (
            task(dataset="    pass").replace("(QwenVideoDataset)", "(Dataset)"),
            "must be a subclass of BaseDataset",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported(here: Run, clip: Path, plugin: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(here, clip, plugin)


KINDS = """\
from enum import StrEnum

class Kind(StrEnum):
    FILM = "film"

@register_task
"""


def test_names_in_the_sampling_of_a_task_may_be_numbers() -> None:
    """``logit_bias`` has the ids of tokens. Nothing else of vLLM has numbers for names."""

    class Biased(Describe):
        def sampling(self, sample: dict[str, Any], part: str) -> dict[str, Any]:
            return sample["own"]

    biased, sample = Biased(), {"__key": "k", "own": {"logit_bias": {7: -100.0}}}
    assert biased.sampling_json(sample, "") == '{"logit_bias":{"7":-100.0}}'
    with pytest.raises(TaskError, match=r"a wrong name: sampling\.7: .* no such setting"):
        biased.sampling_json({**sample, "own": {7: 1}}, "")


@pytest.mark.parametrize("method", ["build_messages", "parse"])
def test_the_name_of_an_enum_is_no_text(splitting: Splitter, method: str) -> None:
    """It passes for a text in Python, but not as a key in JSON."""
    splitting.run.edit_plugin("@register_task\n", KINDS)
    kinds = '{kind: [{"role": "user", "content": kind}] for kind in Kind}'
    splitting.run.write_samples([{"id": 1, "path": "a.mp4"}])
    own = f"    def {method}(self, *_):\n        return {kinds}\n\n    def _old("
    splitting.run.edit_plugin(f"    def {method}(", own)
    with pytest.raises(UserError, match=f"{method} must return a .* with text keys"):
        splitting.run_all()


def test_a_task_may_change_its_own_parameters(splitting: Splitter) -> None:
    """Those of the run stay: else `split` would write down other settings than those of `infer`."""
    splitting.run.configure(task_params={"tags": ["a"]})
    splitting.run.edit_plugin("    def build_messages(", OWN_PARAMS)
    splitting([{"id": 1, "path": "a.mp4"}], num_shards=1)
    infer(splitting.run.config, splitting.layout, 0, threads=1)
    assert read_jsonl(splitting.layout.rank_file(0))[0]["__status"] == "ok"


OWN_PARAMS = """\
    def __init__(self, params):
        super().__init__(params)
        self.params["tags"].append("none of these")

    def build_messages("""


def test_a_sample_made_of_another_has_its_fields_alone() -> None:
    """What the pipeline adds to a sample is no field of the input."""
    from video_pipeline.data.base import expanded
    from video_pipeline.data.text import TextDataset

    class Twice(TextDataset):
        @classmethod
        def expand(cls, sample: dict[str, Any], params: dict[str, Any]) -> list[dict[str, Any]]:
            return [{**sample, "n": number} for number in range(2)]

    found = expanded(Twice, {"path": "a.mp4", "__key": "k", "__video_uri": "/a.mp4"}, {})
    assert found == [{"path": "a.mp4", "n": 0}, {"path": "a.mp4", "n": 1}]


METHODS = """
    def schema(self, part):
        METHOD == "schema" and sys.exit(0)

    def sampling(self, sample, part):
        METHOD == "sampling" and sys.exit(0)
        return {}

    def build_messages(self, sample):
        METHOD == "build_messages" and sys.exit(0)
"""


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("build_messages", "build_messages failed for sample '1': SystemExit: 0"),
        ("sampling", "sampling failed for sample '1': SystemExit: 0"),
        ("schema", "its output_schema is not a schema: SystemExit: 0"),
    ],
)
def test_a_task_that_ends_the_process_fails_split(
    splitting: Splitter, method: str, message: str
) -> None:
    """It is an error as any other: after an exit status of 0 the job would pass for a success."""
    methods = METHODS.replace("METHOD", repr(method))
    splitting.run.edit_plugin("\n    def build_messages(self, sample):\n", methods)
    with pytest.raises(TaskError, match=rf"'ask': {message} \(.*plugin\.py, line \d+\)"):
        splitting([{"id": 1, "path": "a.mp4"}])


def test_a_parse_that_ends_the_process_is_an_error_record(splitting: Splitter) -> None:
    splitting.run.edit_plugin('return {"answer": generated_text.strip()}', "sys.exit(0)")
    splitting.run.configure(run={"max_error_rate": 1.0})
    splitting([{"id": 1, "path": "a.mp4"}], num_shards=1)
    infer(splitting.run.config, splitting.layout, 0, threads=1)
    (record,) = read_jsonl(splitting.layout.rank_file(0))
    assert record["__error"]["stage"] == "parse"
    assert re.match(r"0 \(.*plugin\.py, line \d+\)", record["__error"]["message"])


@pytest.mark.parametrize("rest", ["", "if self.params: raise ValueError\n        "])
def test_a_task_that_takes_its_sample_apart_is_named(splitting: Splitter, rest: str) -> None:
    """The messages of the first samples are built twice, from one sample."""
    own = f"(self, sample):\n        sample.pop('__key')\n        {rest}return"
    splitting.run.edit_plugin("(self, sample):\n        return [{", f"{own} [{{")
    splitting.run.configure(task_params={"fails": bool(rest)} if rest else {})
    with pytest.raises(TaskError, match=r"build_messages failed .*Error.*plugin\.py, line \d+\)"):
        splitting([{"id": 1, "path": "a.mp4"}])


def test_fields_that_json_cannot_hold_are_found_with_the_first_answers(
    splitting: Splitter, caplog: pytest.LogCaptureFixture
) -> None:
    splitting.run.edit_plugin("generated_text.strip()", "{generated_text}")
    splitting([{"id": 1, "path": "a.mp4"}], num_shards=1)
    infer(splitting.run.config, splitting.layout, 0, threads=1)
    assert "sample 1: parse failed: ValueError: parse returned 'answer' with a" in caplog.text


ODD = """
class Odd(Exception):
    def __str__(self):
        return TEXT

def misbehave(do):
    if do:
        raise Odd
"""


@pytest.mark.parametrize("stage", ["read", "parse"])
@pytest.mark.parametrize(
    ("text", "message"),
    [("None", "its __str__ raises TypeError"), ("'x' * 1_000_000", "x" * 10_000)],
)
def test_an_exception_of_any_text_costs_only_its_sample(
    splitting: Splitter, stage: str, text: str, message: str
) -> None:
    splitting.run.edit_plugin("\ndef misbehave(", ODD.replace("TEXT", text) + "\ndef _old(")
    if stage == "parse":
        splitting.run.edit_plugin('misbehave(sample.get("do"))', "")
        splitting.run.edit_plugin(
            'return {"answer"', "misbehave(sample['do'])\n        return {\"answer\""
        )
    splitting.run.configure(run={"max_error_rate": 1.0})
    splitting([{"id": i, "path": "a.mp4", "do": i == 1} for i in range(2)], num_shards=1)
    infer(splitting.run.config, splitting.layout, 0, threads=1)
    fine, failed = read_jsonl(splitting.layout.rank_file(0))
    assert fine["__status"] == "ok"
    assert (failed["__error"]["stage"], failed["__error"]["type"]) == (stage, "Odd")
    assert failed["__error"]["message"].partition(" (")[0] == message


@pytest.mark.parametrize("what", ["the dataset cannot read", "parse"])
def test_what_ends_the_process_in_a_preview_is_named(what: str) -> None:
    with pytest.raises(TaskError, match=f"{what}: SystemExit: 0"), user_code(what):
        sys.exit(0)


def test_a_program_that_ends_in_foreign_code_has_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.run(lambda: sys.exit(0))
    assert ended.value.code == 1
    assert re.search(
        r"^error: .*SystemExit: 0 \(.*test_user_code\.py", capsys.readouterr().err, re.M
    )


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--unknown", 2)])
def test_what_argparse_ends_has_its_status(
    option: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.run(lambda: program.script_parser("A script.").parse_args([option]))
    assert ended.value.code == status
    assert "a bug" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"promt": "Why?"}, "task_params.promt: .* did you mean 'prompt'"),
        ({"zzz": 1}, "task_params.zzz: .* known: prompt, prompt_file, questions, clip_seconds"),
    ],
)
def test_params_that_no_built_in_takes(
    splitting: Splitter, params: dict[str, Any], message: str
) -> None:
    splitting.run.configure(run={"task": "describe", "plugins": []}, task_params=params)
    with pytest.raises(UserError, match=message):
        splitting([{"id": 1, "path": "a.mp4"}])
    assert not splitting.layout.manifest.exists()


def test_params_of_a_users_own_dataset_are_its_own(splitting: Splitter) -> None:
    splitting.run.configure(run={"task": "describe", "dataset": "plain"}, task_params={"zzz": 1})
    assert splitting([{"id": 1, "path": "a.mp4"}]).pending == ["1"]


def test_what_the_built_in_tasks_take_is_known() -> None:
    from video_pipeline.data.choosing import PARAMS
    from video_pipeline.tasks.registry import _TASKS, get_task

    get_task("describe")
    built_in = [t for t in _TASKS._classes.values() if t.__module__.startswith("video_pipeline.")]
    assert {name for each in built_in for name in each.in_messages} | {"clip_seconds"} == set(
        PARAMS
    )


@pytest.mark.parametrize(
    ("name", "question", "message"),
    [
        ("what", 3, "what: expected a text, got 3"),
        ("what", "{{ titel }}", "what: 'titel' is undefined"),
        (1, "Who?", "1: expected a text as its name; put it in quotes"),
        (True, "Is it a film?", "True: expected a text as its name"),
    ],
)
def test_a_question_that_cannot_be_is_named(
    splitting: Splitter, name: Any, question: Any, message: str
) -> None:
    splitting.run.configure(
        run={"task": "questions", "plugins": []}, task_params={"questions": {name: question}}
    )
    with pytest.raises(UserError, match=rf"task_params\.questions\.{message}"):
        splitting([{"id": 1, "path": "a.mp4"}])


@pytest.mark.parametrize("tags", [["a"], "news, sports", [1990, 2000], ["on", True]])
def test_tags_of_the_recipe_are_texts(splitting: Splitter, tags: Any) -> None:
    """YAML reads `2000` and `yes` as something else, of which no answer could be parsed."""
    plugins = [str(PROJECT / "examples" / "tags.py")]
    splitting.run.configure(run={"task": "tags", "plugins": plugins}, task_params={"tags": tags})
    with pytest.raises(UserError, match=r"task_params\.tags: expected 2 to 26 texts, got "):
        splitting([{"id": 1, "path": "a.mp4"}])


def test_a_field_goes_before_a_method_of_its_name() -> None:
    prompt = Prompt({"p": "{{ a.items }} {{ a.update }} {{ a.copy }} {{ a.keys() | list }}"}, "p")
    fields = {"items": ["cup"], "update": "new", "copy": None}
    assert prompt.render({"a": fields}) == "['cup'] new None ['items', 'update', 'copy']"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "About {{ titel }}",
            "task_params.prompt: 'titel' is undefined; there are .*title, previous, previous.said",
        ),
        ("{{ previous.sayd }}", "no attribute 'sayd'; there are .*previous.said"),
        ("{{ title + 1 }}", "task_params.prompt: TypeError: can only concatenate str"),
        ("{{ title", "task_params.prompt, line 1: unexpected end of template"),
    ],
)
def test_templates_that_cannot_be(splitting: Splitter, prompt: str, message: str) -> None:
    splitting.run.configure(run={"task": "describe", "plugins": []}, task_params={"prompt": prompt})
    previous = {"__key": "k", "said": "x"}
    sample = {"path": "a.mp4", "id": 1, "lang": None, "title": "t", "previous": previous}
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        splitting([sample])

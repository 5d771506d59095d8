"""The recipes of docs/recipes.md, in the folder examples: each from its videos to its output.

Most of a recipe is wiring: it runs with simulated answers. The tasks of all recipes are then asked
in one start of vLLM.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import PROJECT, Run, read_jsonl
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.layout import Layout
from video_pipeline.samples.where import Where
from video_pipeline.split.split import split
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.clips import write_demo_clips
from video_pipeline.testing.tiny_model import write_tiny_model

EXAMPLES = PROJECT / "examples"
DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))
FIELDS = {"question": "Who is it?", "transcript": "Good evening."}
WORDS = [5, 9]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    return write_demo_clips(tmp_path_factory.mktemp("clips"))[:2]


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def cook(here: Run, clips: list[Path]) -> Any:
    """Runs a recipe in this process and returns the records of its output."""
    (here.folder / "examples").symlink_to(EXAMPLES)

    def cook(name: str, **sections: dict[str, Any]) -> list[dict[str, Any]]:
        here.settings = recipe(name)
        here.write_samples(
            {"path": str(clip), "words": words, **FIELDS}
            for clip, words in zip(clips, WORDS, strict=True)
        )
        for stage in here.settings.get("stages", []):
            if "clip_seconds" in stage.get("task_params", {}):
                stage["task_params"]["clip_seconds"] = 1
        here.settings["input"] = "samples.jsonl"  # as --config input=...
        here.configure(data={"num_shards": 1, "num_workers": 1}, vision=DEMO["vision"])
        here.configure(**sections)
        for _, config in here.config.by_stage():
            layout = Layout.of(config, 1)
            split(config, layout)
            infer(config, layout, 0, 1, plain=True)
            consolidate(config, layout)
        return read_jsonl(here.folder / here.settings["data"]["output_jsonl"])

    return cook


def simulated(**sections: Any) -> dict[str, Any]:
    return {"run": {"engine": "simulated"}, **sections}


def test_the_page_lists_every_file():
    page = (PROJECT / "docs" / "recipes.md").read_text(encoding="utf-8")
    files = {f"examples/{path.name}" for path in EXAMPLES.iterdir() if path.is_file()}
    assert set(re.findall(r"`(examples/[^`]+\.(?:py|yaml))`", page)) == files


# --- the wiring, with simulated answers ----------------------------------------------------------


def test_yes_or_no_with_a_confidence(cook):
    """The simulated engine takes all texts for equally likely."""
    for record in cook("yes_no", **simulated()):
        for question in ("people", "outdoors", "text"):
            assert record[question]["confidence"] == 0.5


def test_tags_with_scores(cook):
    tags = recipe("tags")["task_params"]["tags"]
    for record in cook("tags", **simulated()):
        assert record["tag"] in tags
        assert record["scores"] == pytest.approx(dict.fromkeys(tags, 0.1))


def test_questions_about_long_videos(cook, here):
    """One answer for each video, from what was said of all its windows."""
    records = cook("long_videos", **simulated())
    assert [record["__status"] for record in records] == ["ok", "ok"]
    config = dict(here.config.by_stage())["answer"]
    task = load_task(config)
    for record in records:
        (message,) = task.build_messages({**record["input"], "__key": "k", "__video_uri": None})
        notes = [clip["description"] for clip in record["input"]["previous"]["clips"]]
        assert len(notes) > 1
        assert all(note in message["content"] for note in notes)
        assert message["content"].endswith(FIELDS["question"])


def test_two_models_are_compared_in_both_orders(cook, here):
    for record in cook("compare", **simulated()):
        assert record["forward"] == record["backward"] == {"first": 0.5}
        second = record["input"]["previous"]
        assert second["description"]
        assert second["previous"]["description"]


def test_a_caption_gets_a_title(cook):
    for record in cook("rewrite", **simulated()):
        assert record["text"]
        assert record["input"]["previous"]["description"]


def test_what_is_said_is_in_the_prompt(cook, here):
    assert all(record["description"] for record in cook("transcript", **simulated()))
    task = load_task(here.config)
    for transcript, is_told in (("Good evening.", True), (None, False)):
        sample = {"transcript": transcript, "__key": "k", "__video_uri": "a.mp4"}
        text = task.build_messages(sample)[-1]["content"][-1]["text"]
        assert ("This is said in the video:\nGood evening.\n\nDescribe" in text) == is_told
        assert text.endswith("Describe what happens in this video, and what it is about.")


def test_only_what_the_judge_lets_through_is_captioned(cook, here):
    """Of a judge who is not sure, nothing."""
    records = cook("filter", **simulated())
    assert [record["__left_out"]["by"] for record in records] == ["where", "where"]
    where = Where.of(dict(here.config.by_stage())["captioned"])
    for answer, confidence, sharp, passes in (
        ("Yes", 0.9, "Yes", True),
        ("Yes", 0.7, "Yes", False),
        ("No", 0.9, "Yes", False),
        ("Yes", 0.9, "No", False),
    ):
        judged = {"real": {"answer": answer, "confidence": confidence}, "sharp": {"answer": sharp}}
        assert where.holds({"previous": judged}) is passes


# --- the answers, with real vLLM -----------------------------------------------------------------

# Asks everything that the tasks of the recipes ask, and one question with sampling of its own.
ALL = """
from video_pipeline.api import Task, register_task
from video_pipeline.tasks.registry import get_task

@register_task
class Short(Task):
    name = "short"

    def build_messages(self, sample):
        return [{"role": "user", "content": "What happens?"}]

    def sampling(self, sample, part):
        return {"n": 2, "max_tokens": sample["words"], "seed": 1}

    def parse(self, generated_text, sample):
        return {"text": generated_text}

@register_task
class All(Task):
    name = "all"

    def __init__(self, params=None):
        super().__init__(params)
        names = ("yes_no", "tags", "dense_captions", "short")
        self.tasks = {name: get_task(name)(self.params) for name in names}

    def build_messages(self, sample):
        return {
            f"{name} {part}": messages
            for name, task in self.tasks.items()
            for part, messages in task.conversations(sample).items()
        }

    def of(self, part):
        name, _, own = part.partition(" ")
        return self.tasks[name], own

    def schema(self, part):
        task, own = self.of(part)
        return task.schema(own)

    def sampling(self, sample, part):
        task, own = self.of(part)
        return task.sampling(sample, own)

    def parse(self, answer, sample):
        return self.of(sample["__part"])[0].parse(answer, sample)
"""


def test_the_tasks_of_all_recipes_with_a_model(cook, here, tmp_path, forked_engine):
    here.write_plugin(ALL)
    plugins = [f"examples/{name}.py" for name in ("yes_no", "tags", "dense")]
    params = {**recipe("yes_no")["task_params"], **recipe("tags")["task_params"]}
    model = {**DEMO["vllm"], "model": str(write_tiny_model(tmp_path / "model"))}
    model |= {"max_model_len": 8192, "max_num_batched_tokens": 8192, "enable_prefix_caching": True}
    records = cook(
        "dense",
        run={"task": "all", "plugins": [*plugins, "plugin.py"], "retry_truncated": 6000},
        task_params=params,
        vllm=model,
        # Noise ends its texts late, and its lists at random.
        sampling={"temperature": 1.0, "seed": 1, "max_tokens": 600},
    )
    assert len(records) == 2
    for record, words in zip(records, WORDS, strict=True):
        assert record["__status"] == "ok", record
        for question in params["questions"]:
            judged = record[f"yes_no {question}"]
            assert judged["answer"] in ("Yes", "No")
            assert 0.5 <= judged["confidence"] < 1
        scores = record["tags "]["scores"]
        assert list(scores) == params["tags"]
        assert sum(scores.values()) == pytest.approx(1)
        assert len(set(scores.values())) > 2
        dense = record["dense_captions "]
        assert dense["summary"]
        assert all(set(event) == {"start", "end", "caption"} for event in dense["events"])
        texts = record["short "]["text"]
        assert texts == record["output_text"]["short "]
        # A token of the tiny model is one character, or a special one that is none.
        assert all(0 < len(text) <= words for text in texts)
        assert texts[0] != texts[1]

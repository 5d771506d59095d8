"""What tasks can ask for, with real vLLM on the CPU: schemas, several questions, stages, adapters,
models that think."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, Run, Splitter, read_jsonl
from safetensors.torch import save_file
from video_pipeline.testing.clips import write_demo_clips
from video_pipeline.testing.tiny_model import write_tiny_model

DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with the tiny model and some clips."""
    folder = tmp_path_factory.mktemp("material")
    write_tiny_model(folder / "model")
    write_demo_clips(folder / "clips")
    return folder


@pytest.fixture
def real(here: Run, material: Path, forked_engine: None) -> Run:
    """A run of the demo's settings with two clips and one shard."""
    run = here
    run.settings = {section: dict(keys) for section, keys in DEMO.items()}
    run.configure(
        data={
            "input_jsonl": "samples.jsonl",
            "output_jsonl": "results/out.jsonl",
            "video_root": str(material / "clips"),
            "id_field": "id",
            "num_shards": 1,
        },
        vllm={"model": str(material / "model")},
        run={"max_error_rate": 1.0},
        report={"samples": 0},
    )
    clips = sorted(path.name for path in (material / "clips").iterdir())[:2]
    run.write_samples([{"id": str(n), "path": clip} for n, clip in enumerate(clips)])
    return run


# --- schemas and stages --------------------------------------------------------------------------


def test_the_shipped_stages(real):
    """config/stages.yaml as it is, but for its models: one that sees, then one that writes."""
    stages = yaml.safe_load((PROJECT / "config" / "stages.yaml").read_text())["stages"]
    for stage in stages:
        del stage["vllm"]["model"]
    # noise ends its texts late and its lists at random
    more = {"max_model_len": 16384, "max_num_batched_tokens": 16384}
    stages[0]["vllm"].update(more)
    stages[0]["sampling"] = {"temperature": 1.0, "seed": 1, "max_tokens": 40}
    stages[0]["run"]["retry_truncated"] = 8000
    real.settings["stages"] = stages
    real.configure()
    real.snakemake()
    captions = read_jsonl(real.folder / "results" / "out.caption.jsonl")
    assert len(captions) == 2
    for record in captions:
        assert record["__status"] == "ok", record
        # the first try was cut off
        assert record["__usage"]["completion_tokens"] > 40
        assert record["__usage"]["finish_reason"] == "stop"
        assert json.loads(record["output_text"]) == record["caption"]
        assert set(record["caption"]) == {"subjects", "scene", "camera", "time_order"}
    proses = real.records()
    assert [record["input"]["previous"]["caption"] for record in proses] == [
        record["caption"] for record in captions
    ]
    assert all(record["__task"] == "rewrite" and record["text"] for record in proses)


CHOOSE = """
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Choose(Task):
    name = "choose"

    def schema(self, part):
        if part == "kind":
            return {"enum": ["film", "cartoon"]}
        if part == "number":
            return {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    def build_messages(self, sample):
        video = {"type": "video", "video": sample["__video_uri"]}
        return {
            name: [{"role": "user", "content": [video, {"type": "text", "text": name}]}]
            for name in ("kind", "number", "free")
        }

    def parse(self, answer, sample):
        return {"answer": answer}
"""

# Counts, in every process of vLLM, what the vision encoder is given: a plugin of vLLM, found by the
# entry point that lies beside it.
COUNTER = """
import os

def install():
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    encode = Model.embed_multimodal

    def counted(self, **media):
        with open(os.environ["ENCODED"], "a") as stream:
            stream.write("encoded\\n" * len(media["video_grid_thw"]))
        return encode(self, **media)

    Model.embed_multimodal = counted
"""


def test_three_questions_one_encoding_and_an_adapter(real, monkeypatch):
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    # The plugin is for the engine's process. This one may load it, too, and then loses it again.
    monkeypatch.setattr(Model, "embed_multimodal", Model.embed_multimodal)
    package = real.folder / "site"
    entry = package / "counter-1.0.dist-info"
    entry.mkdir(parents=True)
    (package / "counter.py").write_text(COUNTER)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: counter\nVersion: 1.0\n")
    (entry / "entry_points.txt").write_text("[vllm.general_plugins]\ncounter = counter:install\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(package)])  # a new process gets it, too
    monkeypatch.setenv("ENCODED", str(real.folder / "encoded.txt"))
    real.write_plugin(CHOOSE)
    real.configure(
        run={"task": "choose", "plugins": ["plugin.py"]},
        sampling={"max_tokens": 24},
    )
    whole = Splitter(real)
    whole.run_all()
    plain = real.records()
    assert len(plain) == 2
    for record in plain:
        assert record["__status"] == "ok" or record["__error"]["stage"] == "length", record
        assert record["kind"]["answer"] in ("film", "cartoon")
        assert record["free"]["answer"] == record["output_text"]["free"]
    # three questions about each clip, and each clip was encoded once
    assert (real.folder / "encoded.txt").read_text() == "encoded\n" * len(plain)

    # an adapter, over the same questions: another fingerprint, other answers
    adapter = write_adapter(Path(real.settings["vllm"]["model"]), real.folder / "adapter")
    real.configure(vllm={"lora_path": str(adapter)})
    whole.run_all()
    assert len(real.journals()) == 2
    for record, before in zip(real.records(), plain, strict=True):
        assert record["free"] != before["free"]


SEVERAL = """
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Several(Task):
    name = "several"

    def build_messages(self, sample):
        video = {"type": "video", "video": sample["__video_uri"]}
        question = {"type": "text", "text": "What happens in this video?"}
        return dict.fromkeys(("both", "1", "2"), [{"role": "user", "content": [video, question]}])

    def sampling(self, sample, part):
        return {} if part == "both" else {"n": 1, "seed": int(part)}
"""


def test_several_answers_to_a_prompt_that_is_computed_once(real):
    from video_pipeline.run.statistics import read_statistics

    real.write_plugin(SEVERAL)
    real.configure(
        run={"task": "several", "plugins": ["plugin.py"]},
        sampling={"n": 2, "temperature": 1.0, "seed": 1, "max_tokens": 12},
    )
    Splitter(real).run_all()
    for record in real.records():
        texts = record["output_text"]
        assert texts["both"] == [texts["1"], texts["2"]]  # vLLM counts the seed up
        assert texts["1"] != texts["2"]
    (journal,) = real.journals()
    (attempt,) = read_statistics(journal)
    # The prompts of two of three requests come from the cache, but for their last tokens. That of
    # the request with two answers counts as computed, and does so once.
    assert 0 < attempt["cached_tokens"] < attempt["prompt_tokens"] * 2 / 3


# --- adapters and models that think --------------------------------------------------------------


def write_adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter of random weights for the language model's first layer."""
    import torch

    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config", config)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    torch.manual_seed(0)
    size = text.get("head_dim") or width // heads
    folder.mkdir()
    save_file(
        {
            f"{name}.lora_A.weight": torch.randn(4, width),
            f"{name}.lora_B.weight": torch.randn(heads * size, 4),
        },
        folder / "adapter_model.safetensors",
    )
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_that_is_no_adapter_is_named(real):
    from video_pipeline.engine.vllm.engine import VllmEngine
    from video_pipeline.errors import UserError

    real.configure(vllm={"lora_path": str(real.folder)})
    with pytest.raises(UserError, match=r"vllm.lora_path: .*adapter_config.json does not say"):
        VllmEngine(real.config)


def test_reasoning_is_split_off(real, material):
    from transformers import AutoTokenizer
    from video_pipeline.engine.vllm.engine import VllmEngine
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput

    thinking = real.folder / "thinking"
    write_tiny_model(thinking)
    tokenizer = AutoTokenizer.from_pretrained(thinking)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(thinking)
    real.configure(vllm={"model": str(thinking), "reasoning_parser": "qwen3"})
    engine = VllmEngine(real.config)
    assert engine.split("I see a cat.\n</think>\n\nA cat.") == ("I see a cat.", "A cat.")
    assert engine.split("I see a") == ("I see a", "")
    # the log probabilities are those of the answer
    numbers = tokenizer("I see</think>A cat").input_ids
    each = [{number: Logprob(-1.0, 1, tokenizer.decode([number]))} for number in numbers]
    completion = CompletionOutput(0, "", numbers, None, each)
    assert "".join(token["token"] for token in engine._logprobs(completion)) == "A cat"
    # a model that does not think answers at once
    real.configure(vllm={"chat_template_kwargs": {"enable_thinking": False}})
    assert VllmEngine(real.config).split("A cat.") == ("", "A cat.")
    real.configure(vllm={"model": str(material / "model"), "reasoning_parser": None})
    assert VllmEngine(real.config).split("I see a cat.\n</think>") == (
        None,
        "I see a cat.\n</think>",
    )

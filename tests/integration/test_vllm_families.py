"""Every family through split, infer and consolidate, with real vLLM on the CPU: the answers are
those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from family_reference import Clip, FamilyReference
from golden_reference import Reference
from helpers import PROJECT, Run
from video_pipeline.config import Config
from video_pipeline.data.choosing import dataset_name
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.layout import Layout
from video_pipeline.split.split import split
from video_pipeline.tasks.describe import Describe
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing import qwen_vl
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import FAMILIES, write_tiny_model

DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))
TOKENS = 12
CLIPS = {
    "wide": {"width": 128, "height": 64, "fps": 24, "seconds": 2.0},
    "portrait": {"width": 72, "height": 128, "fps": 10, "seconds": 4.0},
    "square": {"width": 64, "height": 64, "fps": 16, "seconds": 2.0, "codec": "mpeg4"},
    "odd": {"width": 31, "height": 17, "fps": 20, "seconds": 2.0, "pixel_format": "yuv444p"},
    "vp9": {"width": 96, "height": 54, "fps": 15, "seconds": 3.0, "codec": "libvpx-vp9"},
}

BFLOAT16 = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6")
"""Families with gated delta layers, which vLLM's CPU build has in this precision alone. Sums in
another order come out differently there: only the begin of an answer is compared."""
IN_THE_SUITE = ("gemma4", "glm46v")
"""The others are for `make families`."""

BEGIN = 1
"""So many characters. The first one comes from the prompt alone."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        name: write_clip(folder / f"{name}.mkv", seed=seed, **arguments)
        for seed, (name, arguments) in enumerate(CLIPS.items())
    }


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in IN_THE_SUITE else pytest.mark.families)
        for name in FAMILIES
        if name not in qwen_vl.FAMILIES
    ],
)
def test_answers_are_those_of_transformers(
    here: Run, family: str, clips: dict[str, Path], forked_engine: None
) -> None:
    """The two families that are left out are those of ``test_golden.py``."""
    model = write_tiny_model(here.folder / "model", family)
    dtype = "bfloat16" if family in BFLOAT16 else "float32"
    here.settings = {section: dict(keys) for section, keys in DEMO.items()}
    here.configure(
        data={"input_jsonl": "samples.jsonl", "output_jsonl": "results/out.jsonl"},
        vllm={"model": str(model), "max_model_len": 16384, "dtype": dtype},
        vision={"fps": 2.0, "max_frames": 32, "max_pixels": 1 << 20, "total_pixels": 1 << 22},
        sampling={"max_tokens": TOKENS},
        run={"task": "describe"},
    )
    here.write_samples({"name": name, "path": str(path)} for name, path in clips.items())
    config = here.config
    layout = Layout.of(config, 1)
    split(config, layout)
    infer(config, layout, 0, threads=2, plain=True)
    consolidate(config, layout)

    says = by_qwen_vl_utils if _dataset(config) == "qwen_video" else by_its_processor
    expected = says(config, model, [record["input"]["path"] for record in here.records()])
    for record, (num_tokens, answer) in zip(here.records(), expected, strict=True):
        assert record["__status"] == "ok", record["__error"]
        assert record["__usage"]["prompt_tokens"] == num_tokens
        compared = BEGIN if family in BFLOAT16 else TOKENS
        assert record["output_text"][:compared] == answer[:compared]
    assert len({record["output_text"] for record in here.records()}) == len(clips)


def _dataset(config: Config) -> str:
    """The dataset that the model gets, where nobody names one."""
    return dataset_name(config, load_task(config))


def by_its_processor(_: Config, model: Path, paths: list[str]) -> Iterator[tuple[int, str]]:
    """Tokens of the prompt and the answer about each clip: the family's own processor samples and
    sizes its frames."""
    reference = FamilyReference(model)
    for path in paths:
        inputs = reference.inputs(Clip.of(Path(path)))
        yield inputs["input_ids"].shape[1], reference.answer(inputs, TOKENS)


def by_qwen_vl_utils(config: Config, model: Path, paths: list[str]) -> Iterator[tuple[int, str]]:
    """The same of the Qwen-VL line, whose frames qwen-vl-utils samples and sizes."""
    reference = Reference(model)
    for path in paths:
        video = {"type": "video", "video": path, **config.vision.video_kwargs()}
        asked = {"type": "text", "text": Describe.default_prompt}
        messages = [
            {"role": "system", "content": Describe.system},
            {"role": "user", "content": [video, asked]},
        ]
        inputs = reference.inputs(messages, "native")
        said = reference.answer(messages, TOKENS, "native")
        yield inputs["input_ids"].shape[1], reference.text(said)

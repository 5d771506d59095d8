"""Omni models hear videos, with real vLLM on the CPU: plan, run, answers, against transformers."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers
import yaml
from helpers import PROJECT, Run, read_jsonl
from sounds import RATE, as_ffmpeg_hears, make, needs_ffmpeg, tones
from video_pipeline.tasks.describe import Describe
from video_pipeline.testing.tiny_model import write_tiny_model

DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))
TOKENS = 12
CLIPS: dict[str, dict[str, Any]] = {
    "stereo.mp4": {"sound": tones(440, 990, rate=44100, seconds=3)},
    "short.mov": {"sound": [*tones(300, rate=8000, seconds=1.5), "-c:a", "pcm_s16le"]},
    "late.mkv": {
        "sound": ["-itsoffset", "1.25", *tones(600, rate=16000, seconds=1), "-c:a", "flac"]
    },
    # Its frames are no whole steps of positions apart.
    "odd.mp4": {"sound": tones(700, rate=48000, seconds=7), "seconds": 5.7},
    "mute.mp4": {"sound": []},
}


class Reference:
    """A tiny checkpoint in transformers."""

    def __init__(self, folder: Any) -> None:
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        whole = transformers.AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = whole.thinker  # The method of the whole model wants to speak.
        exact = self.model.get_rope_index

        def cut(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
            """To vLLM positions are whole numbers, also where those of Qwen3-Omni are not."""
            positions, deltas = exact(*arguments, **settings)
            return positions.floor(), deltas.floor()

        self.model.get_rope_index = cut

    def answer(self, path: Any) -> tuple[int, int, str]:
        """Tokens of the prompt, how many of them are sound, and the answer: the frames of the
        processor's own rule, and what ffmpeg hears."""
        with av.open(str(path)) as container:
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
            fps = float(container.streams.video[0].average_rate)
            has_sound = bool(container.streams.audio)
        rule = self.processor.video_processor
        metadata = transformers.video_utils.VideoMetadata(
            total_num_frames=len(frames), fps=fps, duration=len(frames) / fps
        )
        numbers = np.asarray(rule.sample_frames(metadata=metadata, fps=2.0))
        sound: dict[str, Any] = {}
        if has_sound:
            heard = as_ffmpeg_hears(path)
            if "Qwen3" in type(self.processor).__name__:  # Whole steps of its feature extractor.
                heard = heard[: len(heard) // 160 * 160]
            sound = {"audio": [heard], "use_audio_in_video": True}
        content = [{"type": "video"}, {"type": "text", "text": Describe.default_prompt}]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": Describe.system}]},
            {"role": "user", "content": content},
        ]
        inputs = self.processor(
            text=[
                self.processor.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            ],
            videos=[torch.from_numpy(frames[numbers]).permute(0, 3, 1, 2)],
            fps=len(numbers) / len(frames) * fps,
            do_sample_frames=False,
            return_tensors="pt",
            **sound,
        )
        said = self.model.generate(
            **inputs,
            use_audio_in_video=has_sound,
            do_sample=False,
            max_new_tokens=TOKENS,
        )
        ids = inputs["input_ids"]
        token = self.processor.tokenizer.convert_tokens_to_ids(self.processor.audio_token)
        text = self.processor.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        return ids.shape[1], int((ids == token).sum()), text


@needs_ffmpeg
@pytest.mark.parametrize(
    "family", ["qwen2_5_omni", pytest.param("qwen3_omni_moe", marks=pytest.mark.families)]
)
def test_answers_are_those_of_transformers(run: Run, family, forked_engine):
    write_tiny_model(run.folder / "model", family)
    for name, arguments in CLIPS.items():
        make(run.folder / name, *arguments["sound"], seconds=arguments.get("seconds", 3.0))
    run.settings = {section: dict(keys) for section, keys in DEMO.items()}
    run.configure(
        data={
            "input_jsonl": "samples.jsonl",
            "output_jsonl": "results/out.jsonl",
            "id_field": "id",
            "num_shards": 1,
        },
        # So few tokens in a step: steps end anywhere in the videos.
        vllm={"model": "model", "max_model_len": 8192, "max_num_batched_tokens": 48},
        vision={"fps": 2.0, "max_frames": 32, "max_pixels": 1 << 20, "use_audio_in_video": True},
        sampling={"max_tokens": TOKENS},
        run={"task": "describe", "dataset": "video"},
        report={"samples": 2},
    )
    run.write_samples([{"id": name, "path": name} for name in CLIPS])
    run.snakemake("plan")
    run.snakemake()
    reference = Reference(run.folder / "model")
    expected = {name: reference.answer(run.folder / name) for name in CLIPS}
    records = {record["__key"]: record for record in run.records()}
    assert {
        name: (
            record["__usage"]["prompt_tokens"],
            record["__usage"].get("sound_tokens", 0),
            record["output_text"],
        )
        for name, record in records.items()
    } == expected
    total = sum(sound for _, sound, _ in expected.values())
    assert run.summary()["usage"]["sound_tokens"] == total
    assert f"{total} of them sound" in (run.folder / "results" / "out.report.html").read_text()
    plan = {line["key"]: line for line in read_jsonl(run.folder / "results" / "out.plan.jsonl")}
    assert {
        name: (line["prompt_tokens"], line.get("sound_tokens", 0)) for name, line in plan.items()
    } == {name: (length, sound) for name, (length, sound, _) in expected.items()}
    assert expected["mute.mp4"][1] == 0 < expected["short.mov"][1] < expected["odd.mp4"][1]
    assert reference.processor.feature_extractor.sampling_rate == RATE

"""The loop that most people write: DataLoader, ``LLM.generate`` on each batch, write, next batch.

Run by :mod:`benchmarks.steady` as a process of its own. Its engine arguments, messages, frame
sizes and answers are those of this project's run.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from benchmarks.jobs import hand_back, settings_of_this_process

os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


class Clips:
    """A map-style dataset: reads a clip with the stock reader."""

    def __init__(self, paths: list[str], model: str, vision: dict[str, Any], reader: str) -> None:
        self._paths = paths
        self._model = model
        self._vision = vision
        self._reader = reader
        self._processor: Any = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        from transformers import AutoProcessor
        from video_pipeline.tasks.describe import Describe

        from benchmarks.stock import stock_llm_input, use_stock_reader

        if self._processor is None:
            use_stock_reader(self._reader)
            self._processor = AutoProcessor.from_pretrained(self._model)
        messages = Describe().build_messages({"__video_uri": self._paths[i], "__key": str(i)})
        for part in messages[-1]["content"]:
            if "video" in part:
                part.update(self._vision)
        item = stock_llm_input(self._processor, messages)
        # The same few files stand for many: a pixel of their own keeps caches from knowing them.
        item["multi_modal_data"]["video"][0][0][0, 0, 0, 0] = i
        return item


def main() -> None:
    from torch.utils.data import DataLoader
    from vllm import LLM, SamplingParams

    settings = settings_of_this_process()
    llm = LLM(**settings["vllm"])
    sampling = SamplingParams(**settings["sampling"])
    clips = Clips(settings["paths"], settings["model"], settings["vision"], settings["reader"])
    loader = DataLoader(
        clips,
        batch_size=settings["batch_size"],
        num_workers=settings["num_workers"],
        collate_fn=list,
        multiprocessing_context="spawn",
    )
    ends, front_end, generating, prompt_tokens, completion_tokens = [], 0.0, 0.0, 0, 0
    with open("answers.jsonl", "w", encoding="utf-8") as stream:
        for batch in loader:
            cpu, started = time.process_time(), time.monotonic()
            outputs = llm.generate(batch, sampling, use_tqdm=False)
            if ends:  # the first batch warms up
                front_end += time.process_time() - cpu
                generating += time.monotonic() - started
            for output in outputs:
                stream.write(json.dumps({"text": output.outputs[0].text}) + "\n")
                prompt_tokens += len(output.prompt_token_ids)
                completion_tokens += len(output.outputs[0].token_ids)
            stream.flush()
            ends.append(time.monotonic())
    counted = len(clips) - settings["batch_size"]
    hand_back(
        {
            "seconds": (ends[-1] - ends[0]) / counted,
            "generate_seconds": generating / counted,
            "front_end_cpu": front_end / counted,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
    )


if __name__ == "__main__":
    main()

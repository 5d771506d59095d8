"""The plain loop: DataLoader with the stock reader, ``LLM.generate`` on each batch, next batch.

Batches of 8, then of 64; one engine and one DataLoader serve both. The DataLoader's own batches are
of 4: with batches of 64, each of its processes would read 64 clips before the first is answered.
Clips that it has read ahead count, so the rate is that of a loop whose cores suffice; the share of
the time that it waits for the DataLoader is shown. All answers are of the mean length, the best
case for a batch: none waits for a longer one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from typing import Any

from benchmarks.gpu.common import (
    CLOCK,
    MEAN_TOKENS,
    MODEL,
    SAMPLING,
    VISION,
    VLLM,
    Samplers,
    clips,
    heading,
    save,
)

BATCHES = [int(size) for size in (os.environ.get("PLAIN") or "8,64").split(",")]
WORKERS = int(os.environ.get("PLAIN_WORKERS") or 12)
READ = int(os.environ.get("PLAIN_READ") or 4)
"""Clips of a DataLoader's batch."""

SECONDS = float(os.environ.get("PLAIN_SECONDS") or 22)
"""How long batches of one size are measured, at least three of them."""


def main() -> None:
    from torch.utils.data import DataLoader
    from vllm import LLM, SamplingParams

    from benchmarks.plain_loop import Clips

    # The processes of the DataLoader are forked from one that has imported what they need.
    multiprocessing.set_forkserver_preload(["benchmarks.gpu.preload"])
    timeline = {"began": CLOCK.began, "imported": time.time()}
    CLOCK.wait_for_turn()
    timeline["turn"] = time.time()
    result = {**heading(), "workers": WORKERS, "timeline": timeline, "runs": {}}
    save(result)
    files = clips()
    llm = LLM(**VLLM)
    timeline["engine_up"] = time.time()
    result["engine_start_seconds"] = timeline["engine_up"] - timeline["turn"]
    save(result)
    vision = {name: value for name, value in VISION.items() if name != "decoder"}
    loader = DataLoader(
        Clips([files[i % len(files)] for i in range(4000)], MODEL, vision, "pyav"),
        batch_size=READ,
        num_workers=WORKERS,
        collate_fn=list,
        multiprocessing_context="forkserver",
    )
    samples = itertools.chain.from_iterable(loader)
    sampling = SamplingParams(**{**SAMPLING, "max_tokens": MEAN_TOKENS})
    llm.generate(list(itertools.islice(samples, READ)), sampling, use_tqdm=False)
    timeline["first_batch"] = time.time()
    for turn, size in enumerate(BATCHES):
        seconds = min(SECONDS, (CLOCK.left() - 10) / (len(BATCHES) - turn))
        run = measure(llm, sampling, samples, size, seconds, turn * 7 + 1)
        result["runs"][f"batches of {size}"] = run
        save(result)
        if CLOCK.left() < 20:
            break
    save({**result, "complete": len(result["runs"]) == len(BATCHES)})
    os._exit(0)  # the DataLoader and the engine would take their time


def measure(
    llm: Any, sampling: Any, samples: Any, size: int, seconds: float, mark: int
) -> dict[str, Any]:
    """Measure batches of ``size`` for ``seconds``; ``mark`` makes them differ from those before,
    which may be cached."""
    samplers = Samplers()
    rows, prompt_tokens, completion_tokens = [], 0, 0
    begin = waited = time.time()
    while batch := list(itertools.islice(samples, size)):
        got = time.time()
        for item in batch:
            item["multi_modal_data"]["video"][0][0][0, 0, 0, 1] = mark
        cpu = time.process_time()
        outputs = llm.generate(batch, sampling, use_tqdm=False)
        now = time.time()
        prompt_tokens += sum(len(output.prompt_token_ids) for output in outputs)
        completion_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        rows.append(
            {
                "n": len(batch),
                "waited": round(got - waited, 3),
                "generate": round(now - got, 3),
                "front_end_cpu": round(time.process_time() - cpu, 3),
            }
        )
        waited = now
        if (now - begin > seconds and len(rows) >= 3) or CLOCK.left() < 8:
            break
    samplers.stop()
    answered, took = sum(row["n"] for row in rows), max(1e-9, waited - begin)
    return {
        "answered": answered,
        "steady": {
            "videos_per_second": answered / took,
            "answers": answered,
            "turnovers": len(rows),
            "seconds": took,
            "begin": begin,
            "end": waited,
        },
        "share_in_generate": sum(row["generate"] for row in rows) / took,
        "front_end_cpu_each": sum(row["front_end_cpu"] for row in rows) / max(1, answered),
        "prompt_tokens_each": prompt_tokens / max(1, answered),
        "completion_tokens_each": completion_tokens / max(1, answered),
        "machine": samplers.between(begin, waited),
        "batches": rows,
    }


if __name__ == "__main__":
    main()

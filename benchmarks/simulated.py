"""How much of its time an engine computes when decoding is only just fast enough.

The engine is simulated: it answers one request at a time and takes the same time for each, so
"busy" means computing. Reading a sample is a sleep with a log-normal spread that its key seeds.
All decode processes of the job together can read 1.25 times as fast as the engine answers.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.jobs import PLUGINS, Job, measure
from benchmarks.report import Figure, Section

SAMPLES = 1000
WORKERS = 2
ENGINE_SECONDS = 0.025
CAPACITY = 1.25
SPREAD = 0.5
"""Standard deviation of the logarithm of the reading time."""

BATCH = 8
BAR = 0.97


def run(work: Path) -> Section:
    """Measure this project's loop and a plain one."""
    read_seconds = WORKERS * ENGINE_SECONDS / CAPACITY
    job = Job(
        work / "simulated",
        [{"id": number, "path": "none"} for number in range(SAMPLES)],
        {
            "data": {"num_workers": WORKERS},
            "run": {
                "engine": "simulated",
                "task": "sleep",
                "plugins": [str(PLUGINS / "sleeping.py")],
                "simulated": {
                    "seconds_per_output_token": ENGINE_SECONDS / 16,
                    "output_tokens": 16,
                    "concurrency": 1,
                },
            },
            "task_params": {"seconds": read_seconds, "spread": SPREAD},
        },
    )
    ours = job.infer(WORKERS + 1)
    busy = ours["engine_busy_seconds"] / ours["seconds"]
    demand = ours["inferred"] / ours["engine_busy_seconds"]
    capacity = WORKERS * ours["inferred"] / ours["decode_seconds"]
    loop = measure(
        "simulated_loop",
        work / "simulated-loop",
        samples=SAMPLES,
        batch_size=BATCH,
        num_workers=WORKERS,
        read_seconds=read_seconds,
        spread=SPREAD,
        engine_seconds=ENGINE_SECONDS,
    )
    figures = [
        Figure(
            "share of time the engine is busy, decoding 1.25 times as fast as it (simulated)",
            f"at least {BAR}",
            f"{busy:.3f}",
            busy >= BAR,
        ),
        Figure.for_comparison("the same of a plain loop", f"{loop['busy']:.3f}"),
    ]
    details = [
        ["", "this project", "plain loop"],
        ["samples a second", f"{ours['inferred'] / ours['seconds']:.1f}", f"{loop['rate']:.1f}"],
        ["the engine could answer, a second", f"{demand:.1f}", f"{loop['demand']:.1f}"],
        ["its decode processes could read, a second", f"{capacity:.1f}", ""],
        ["decode capacity / demand", f"{capacity / demand:.2f}", ""],
    ]
    how = (
        f"{SAMPLES} samples, an engine that answers one at a time in {1000 * ENGINE_SECONDS:g} ms, "
        f"{WORKERS} decode processes that sleep "
        f"{1000 * read_seconds:g} ms a sample on average (log-normal, sigma {SPREAD:g}, seeded by "
        "the key). Share of the time from the first request to the last answer with a request in "
        f"the engine. *Plain loop*: DataLoader with {WORKERS} workers and batches of {BATCH}, "
        "then a blocking call that takes as long as the engine for the whole batch; from the first "
        "call to the end of the last. The simulated engine works at full speed on a batch's last "
        "request too: what a real engine loses when a batch runs dry is not in this figure."
    )
    return Section("An engine that never waits", figures, how, _LIMITS, details)


_LIMITS = (
    "Nothing but the last few milliseconds. The plain loop does as well here, because its workers "
    "read ahead and an engine that answers one request at a time has no tail: what a plain loop "
    "loses in a real engine, the front end's time and a batch that runs dry, is in the steady "
    "state above."
)

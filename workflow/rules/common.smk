import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

SCRIPTS = Path(workflow.basedir) / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from video_pipeline.config import load_config
from video_pipeline.errors import UserError
from video_pipeline.gpus import check_machine
from video_pipeline.layout import Layout
from video_pipeline.locks import describe_holder, try_lock
from video_pipeline.plan import (
    check_job_gpus,
    job_threads,
    jobs_at_once,
    read_plan,
    resolve_plan,
    revive_chunks,
)
from video_pipeline.plugins import plugin_files
from video_pipeline.processes import own_jobs, stop_jobs_on_signals

own_jobs()


def given_gpus():
    """`--resources gpu=N`, or None where it was not given (as in an executor's child process)."""
    gpus = workflow.global_resources.get("gpu")
    return gpus.value if gpus is not None else None


def set_gpus():
    """`--set-resources infer:gpu=N`, or None where it was not given."""
    gpus = workflow.resource_settings.overwrite_resources.get("infer", {}).get("gpu")
    return gpus.raw if gpus is not None else None


def resolve():
    """The typed configuration, the plan of this invocation and the layout of its files."""
    try:
        typed = load_config(config)
        check_job_gpus(typed, set_gpus())
        plan = resolve_plan(
            typed,
            Layout.of(typed, 0).plan,
            gpus=given_gpus(),
            is_main=workflow.is_main_process,
        )
        layout = Layout.of(typed, plan.num_shards)
        last = read_plan(layout.plan)
        if workflow.is_main_process and last and last.num_shards != plan.num_shards:
            revive_chunks(layout.manifest)
    except UserError as error:
        raise WorkflowError(str(error))
    return typed, plan, layout


CONFIG, PLAN, LAYOUT = resolve()


wildcard_constraints:
    rank=r"\d+",


def get_final_output():
    return [LAYOUT.output, LAYOUT.summary, LAYOUT.errors]


def rank_files():
    """The rank files, removed after consolidation unless they are to be kept."""
    path = str(LAYOUT.rank_file("{rank}"))
    return path if CONFIG.run.keep_rank_files else temp(path)


def ranks():
    return range(PLAN.num_shards)


def gpu_job_threads(wildcards):
    """An even share of the cores; a function, because the executor is known only later."""
    gpus = given_gpus() if workflow.local_exec else None
    at_once = jobs_at_once(PLAN.num_shards, gpus, CONFIG.vllm.gpus_per_job)
    return job_threads(workflow.resource_settings.cores, at_once, gpus_bind=gpus is not None)


def command(script):
    """The command line of a script, as a param that Snakemake does not compare between runs: one
    that depends on ``input`` counts as derived, so a moved installation reruns nothing."""
    # --sdm conda brings an interpreter of its own; otherwise the one that runs Snakemake is used.
    methods = workflow.deployment_settings.deployment_method
    python = "python" if "conda" in map(str, methods) else sys.executable
    return lambda wildcards, input: shlex.join([python, str(SCRIPTS / script)])


def spec(*sections):
    """What a job depends on, as one value: Snakemake compares params as a set of values."""
    settings = CONFIG.model_dump(mode="json")
    return json.dumps(
        {"plan": vars(PLAN), **{name: settings[name] for name in sections}}, sort_keys=True
    )


def is_reader():
    """Whether this invocation only looks at the output, maybe while another one works on it."""
    targets = set(workflow.dag_settings.targets)
    return bool(targets) and targets <= {"partial"}


def begin():
    """Take the output for this invocation, and write down, beside it, what was decided."""
    if workflow.is_main_process and not is_reader():
        global run_lock
        run_lock = try_lock(LAYOUT.run_lock)
        if run_lock is None:
            raise WorkflowError(
                f"another snakemake is at work on {LAYOUT.output}: "
                f"{describe_holder(LAYOUT.run_lock)}. Wait for it or stop it, then run again."
            )
        if workflow.local_exec:
            try:
                check_machine(CONFIG, PLAN.num_shards, given_gpus())
            except UserError as error:
                raise WorkflowError(str(error))
        stop_jobs_on_signals()
        PLAN.write(LAYOUT.plan)
        LAYOUT.config.write_text(CONFIG.to_yaml(), encoding="utf-8")


def explain_failure():
    if workflow.is_main_process:
        print(
            f"\nWhat failed is in the logs under {LAYOUT.log('split').parent}/; what is done is in "
            "the journal.\nMend the cause and run the same command again: only what is missing "
            "is inferred.",
            file=sys.stderr,
        )
        missing = [rank for rank in ranks() if not LAYOUT.rank_file(rank).exists()]
        if missing and LAYOUT.manifest.exists():
            print(
                f"Shards that are not finished: {', '.join(map(str, missing))} "
                f"(of {PLAN.num_shards}). One of them here, by hand, from {os.getcwd()}:\n"
                f"  {shlex.join(shard_by_hand(missing[0]))}",
                file=sys.stderr,
            )


def shard_by_hand(rank):
    """The command line that infers one shard without Snakemake, with all cores of this machine."""
    options = {"config": LAYOUT.config, "num-shards": PLAN.num_shards, "rank": rank}
    options["threads"] = os.cpu_count()
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, str(SCRIPTS / "infer.py"), *named]

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.resources import Resources

SCRIPTS = Path(workflow.basedir) / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

# Snakemake formats this path as it formats a shell command.
ENVIRONMENT = f"{workflow.basedir}/envs/gpu.yaml".replace("{", "{{").replace("}", "}}")

from video_pipeline.cluster import check_partitions, memory_of
from video_pipeline.config import load_config
from video_pipeline.logs import last_error
from video_pipeline.errors import Failure
from video_pipeline.files import write_text
from video_pipeline.gpus import check_machine
from video_pipeline.literal_paths import take_literally
from video_pipeline.locks import take_output
from video_pipeline.memory import JobMemory
from video_pipeline.origin import (
    check_files,
    code_files,
    output_is_damaged,
    what_changed,
    what_stays,
)
from video_pipeline.pending import only_publishes
from video_pipeline.plan import check_job_gpus, job_threads, jobs_at_once
from video_pipeline.processes import stop_jobs_on_signals, tie_jobs_to_this_process
from video_pipeline.stages import resolve_stages
from video_pipeline.weights import is_fetched

tie_jobs_to_this_process()


LOOKS = {"--lint", "--list-rules", "--list", "-l", "--list-target-rules", "--lt", "--unlock"}


def given_gpus():
    """`--resources gpu=N`, or None where it was not given (as in an executor's child process)."""
    gpus = workflow.global_resources.get("gpu")
    return gpus.value if gpus is not None else None


def set_gpus(stage):
    """`--set-resources infer:gpu=N`, or None where it was not given."""
    given = workflow.resource_settings._parsed_overwrite_resources
    gpus = given.get(stage.rule("infer"), {}).get("gpu")
    return gpus.raw if gpus is not None else None


def pass_on_settings(stage):
    """What a profile sets for `infer` holds for `infer_caption` too, but for what it sets for that
    name. Before the rules are made: Snakemake then looks the settings up, by the name alone."""
    settings = workflow.resource_settings
    threads, resources = settings._parsed_overwrite_threads, settings._parsed_overwrite_resources
    for step in ("split", "infer", "consolidate", "report", "export"):
        name = stage.rule(step)
        if step in threads:
            threads.setdefault(name, threads[step])
        if step in resources:
            own = resources.get(name, {})
            resources[name] = Resources({**resources[step], **own})


def resolve():
    """The stages of this invocation: one without a name where the configuration has none."""
    try:
        typed = load_config(config)
        stages = resolve_stages(typed, gpus=given_gpus(), is_main=workflow.is_main_process)
        for stage in stages:
            pass_on_settings(stage)
            check_job_gpus(stage.config, set_gpus(stage))
        take_literally(
            [workflow.basedir, *(path for stage in stages for path in user_paths(stage))]
        )
        # What only shows the rules needs no files.
        if workflow.is_main_process and not LOOKS & set(sys.argv):
            check_files([stage.config for stage in stages])
    except Failure as error:
        raise WorkflowError(str(error))
    return stages


def user_paths(stage):
    """The paths of the user that Snakemake gets to see, or parts of them."""
    return [stage.config.data.input_jsonl, stage.layout.beside(""), *code_files(stage.config)]


def samples(stage):
    """The input of split, as a function: it is called when the jobs are put together. Where chunks or
    output come from something else than what the configuration says, split is forced: file times
    and Snakemake's own memory need not show it."""

    def find(wildcards):
        if workflow.is_main_process:
            try:
                changed = what_changed(stage.config, stage.layout)
            except Failure as error:
                raise WorkflowError(str(error))
            if changed:
                force(stage, stage.layout.manifest, f"split again, changed: {', '.join(changed)}")
                if stays := what_stays(stage.config, stage.layout, changed):
                    print(f"{stage.layout.output}: {stays}", file=sys.stderr)
            if output_is_damaged(stage.layout):
                force(stage, stage.layout.output, "not what was written there: written again")
            if stage.layout.reopened.exists():
                force(stage, stage.layout.output, "failed samples were opened again: written anew")
        return str(stage.config.data.input_jsonl)

    return find


def force(stage, path, why):
    if not hasattr(workflow.dag, "forcefiles"):
        raise WorkflowError("this version of Snakemake is not supported: use 9.27")
    workflow.dag.forcefiles.add(str(path))
    print(f"{stage.layout.output}: {why}", file=sys.stderr)


STAGES = resolve()


wildcard_constraints:
    rank=r"\d+",


def get_final_output():
    layouts = [stage.layout for stage in STAGES]
    names = ("output", "summary", "errors", "report")
    cards = [stage.layout.card for stage in STAGES if "parquet" in stage.config.run.formats]
    files = [getattr(layout, name) for layout in layouts for name in names]
    return [*files, *cards]


def rank_files(stage):
    """The rank files, removed after consolidation unless they are to be kept."""
    path = str(stage.layout.rank_file("{rank}"))
    return path if stage.config.run.keep_rank_files else temp(path)


def weights(stage):
    """What `infer` waits for: the weights of a model of the hub. That they were fetched anew is no
    reason to infer again."""
    return [ancient(str(stage.layout.weights))] if is_fetched(stage.config) else []


def gpu_job_threads(stage):
    """An even share of the cores; a function, because the executor is known only later."""

    def threads(wildcards):
        gpus = given_gpus() if workflow.local_exec else None
        at_once = jobs_at_once(stage.plan.num_shards, gpus, stage.config.vllm.gpus_per_job)
        return job_threads(workflow.resource_settings.cores, at_once, gpus_bind=gpus is not None)

    return threads


def gpu_job_gpus(stage):
    """The GPUs of an inference job; none where it only publishes. A function: Snakemake calls it
    again when the job is about to start, and split has found what is pending."""

    def gpus(wildcards, attempt):
        publishes = attempt == 1 and only_publishes(stage.layout, int(wildcards.rank))
        return 0 if publishes else stage.config.vllm.gpus_per_job

    return gpus


def command(script):
    """The command line of a script, as a param that Snakemake does not compare between runs: one
    that depends on ``input`` counts as derived, so a moved installation reruns nothing."""
    # --sdm conda brings an interpreter of its own; otherwise the one that runs Snakemake is used.
    methods = workflow.deployment_settings.deployment_method
    python = "python" if "conda" in map(str, methods) else sys.executable
    return lambda wildcards, input: shlex.join([python, str(SCRIPTS / script)])


def spec(stage, *sections):
    """What a job depends on, as one value: Snakemake compares params as a set of values. A digest,
    because it takes the braces of a prompt's template for wildcards."""
    text = json.dumps(stage.spec(*sections), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_reader():
    """Whether this invocation only looks at the output, maybe while another one works on it."""
    targets = set(workflow.dag_settings.targets)
    return bool(targets) and targets <= {"plan", *(stage.rule("partial") for stage in STAGES)}


def begin():
    """Take the outputs for this invocation, and write down, beside them, what was decided."""
    if workflow.is_main_process and workflow.executor_plugin.name == "slurm":
        check_cluster()
    if workflow.is_main_process and "plan" in workflow.dag_settings.targets:
        for stage in STAGES:
            write_text(stage.layout.plan_config, stage.config.to_yaml())
    if workflow.is_main_process and not is_reader():
        for stage in STAGES:
            take(stage)
        stop_jobs_on_signals()


def check_cluster():
    """Look at what the jobs ask SLURM for: what cannot work is an error before the first."""
    jobs = {job.rule.name: job for job in workflow.dag.needrun_jobs() if not job.is_local}
    try:
        check_partitions(
            {name: job.resources for name, job in jobs.items()},
            has_rules=bool(workflow.executor_settings.partition_config),
        )
        for stage in STAGES:
            if job := jobs.get(stage.rule("infer")):
                mem_mb = memory_of(job.resources, job.threads)
                warning = mem_mb and JobMemory.of(stage.config, job.threads).check(
                    job.rule.name, mem_mb
                )
                if warning:
                    print(f"warning: {warning}", file=sys.stderr)
    except Failure as error:
        raise WorkflowError(str(error))


run_locks = []


def take(stage):
    layout = stage.layout
    try:
        run_locks.append(take_output(layout.run_lock, layout.output))
        if workflow.local_exec:
            check_machine(stage.config, stage.plan.num_shards, given_gpus())
    except Failure as error:
        raise WorkflowError(str(error))
    stage.plan.write(layout.plan)
    layout.config.write_text(stage.config.to_yaml(), encoding="utf-8")


def show_summary():
    """The summaries of the outputs that are there now, as tables."""
    if workflow.is_main_process and not is_reader():
        from rich.console import Console

        from video_pipeline.report.summary import summary_table

        for stage in STAGES:
            if stage.layout.summary.exists():
                Console(stderr=True).print(summary_table(stage.layout.summary))


def explain_failure():
    if workflow.is_main_process and not is_reader():
        logs = sorted({str(stage.layout.log("split").parent) for stage in STAGES})
        print(
            f"\nWhat failed is in the logs under {', '.join(logs)}/; what is done is in "
            "the journal.\nFix the cause and run the same command again: only what is missing "
            "is inferred.",
            file=sys.stderr,
        )
        for stage in STAGES:
            explain_missing(stage)
        errors = [error for stage in STAGES for error in last_errors(stage)]
        if len(errors) > SHOWN_ERRORS:
            print(f"The first {SHOWN_ERRORS} of {len(errors)} errors:", file=sys.stderr)
        for error in errors[:SHOWN_ERRORS]:
            print(f"error: {error}", file=sys.stderr)


SHOWN_ERRORS = 3


def last_errors(stage):
    """The last words of the jobs whose output is not there."""
    layout = stage.layout
    outputs = {
        "split": layout.manifest,
        "consolidate": layout.output,
        "report": layout.report,
        "export": layout.card,
    }
    failed = [name for name, path in outputs.items() if not path.exists()]
    failed += [f"infer.rank{rank}" for rank in layout.unfinished()]
    return list(filter(None, (last_error(layout.log(name)) for name in failed)))


def explain_missing(stage):
    layout = stage.layout
    missing = layout.unfinished()
    if missing:
        print(
            f"Shards that are not finished: {', '.join(map(str, missing))} "
            f"(of {stage.plan.num_shards}). One of them here, by hand, from {os.getcwd()}:\n"
            f"  {shlex.join(shard_by_hand(stage, missing[0]))}",
            file=sys.stderr,
        )


def shard_by_hand(stage, rank):
    """The command line that infers one shard without Snakemake, with all cores of this machine."""
    options = {
        "config": stage.layout.config,
        "num-shards": stage.plan.num_shards,
        "rank": rank,
    }
    options["threads"] = os.cpu_count()
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, str(SCRIPTS / "infer.py"), *named]

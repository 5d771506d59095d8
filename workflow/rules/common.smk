import runpy

# This makes the library importable. Snakemake may have fetched only this file, with another name.
OWN_SOURCE = runpy.run_path(workflow.source_path("../scripts/own_source.py"))
SCRIPTS = OWN_SOURCE["own_source"](workflow)

from video_pipeline.run.origin import code_files
from video_pipeline.workflow.weights import is_fetched
from video_pipeline.workflow.invocation import Invocation

RUN = Invocation(workflow, config, SCRIPTS)
STAGES = RUN.stages

# Snakemake formats this path as it formats a shell command.
ENVIRONMENT = str(SCRIPTS.parent / "envs/gpu.yaml").replace("{", "{{").replace("}", "}}")

# Drops the last error of a failed job from the terminal: RUN.explain_failure() shows it at the end.
WITHOUT_ERROR = r" | sed -u '\|^error: |,$d'"


wildcard_constraints:
    rank=r"\d+",


def get_final_output():
    return [path for stage in STAGES for path in stage.final_output]


def samples(stage):
    """A function, which Snakemake calls while it makes the jobs: it forces those that must run."""
    return lambda wildcards: RUN.samples(stage)


def input_name(stage):
    """The name of the input, escaped for a message, which Snakemake formats."""
    return stage.config.data.source.name.replace("{", "{{").replace("}", "}}")


def rank_files(stage):
    """The rank files, which are removed after consolidation unless ``run.keep_rank_files``."""
    path = str(stage.layout.rank_file("{rank}"))
    return path if stage.config.run.keep_rank_files else temp(path)


def weights(stage):
    """The weights of a model of the hub. If they are fetched again, nothing is inferred again."""
    return [ancient(str(stage.layout.weights))] if is_fetched(stage.config) else []


def infer_threads(stage):
    """A function, because the executor is known only later."""
    return lambda wildcards: RUN.infer_threads(stage)


def infer_gpus(stage):
    """A function, which Snakemake calls again when the job is about to start."""
    return lambda wildcards, attempt: RUN.infer_gpus(stage, int(wildcards.rank), attempt)


def report_labels(stage, kind):
    return {"output": stage.layout.stem, "task": stage.config.run.task, "what": kind}


# Snakemake does not compare a param that depends on ``input`` between runs, because it is derived.
# So a moved installation, or another number of pending samples, runs no job again.


def command(script):
    return lambda wildcards, input: RUN.command(script)


def work(stage):
    """The work of an inference job, in words; asked for again when the job is about to start."""
    return lambda wildcards, input: RUN.work(stage, int(wildcards.rank))

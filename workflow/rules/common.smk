import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow/scripts"))

from video_pipeline.run.origin import code_files
from video_pipeline.workflow.weights import is_fetched
from video_pipeline.workflow.invocation import Invocation

RUN = Invocation(workflow, config)
STAGES = RUN.stages

# Snakemake formats this path as it formats a shell command.
ENVIRONMENT = f"{workflow.basedir}/envs/gpu.yaml".replace("{", "{{").replace("}", "}}")


wildcard_constraints:
    rank=r"\d+",


def get_final_output():
    return [path for stage in STAGES for path in stage.final_output]


def samples(stage):
    """A function: called when the jobs are put together, it forces those that have to run again."""
    return lambda wildcards: RUN.samples(stage)


def rank_files(stage):
    """The rank files, removed after consolidation unless they are to be kept."""
    path = str(stage.layout.rank_file("{rank}"))
    return path if stage.config.run.keep_rank_files else temp(path)


def weights(stage):
    """The weights of a model of the hub. Weights that were fetched anew are no reason to infer
    again."""
    return [ancient(str(stage.layout.weights))] if is_fetched(stage.config) else []


def infer_threads(stage):
    """A function, because the executor is known only later."""
    return lambda wildcards: RUN.infer_threads(stage)


def infer_gpus(stage):
    """A function, which Snakemake calls again when the job is about to start."""
    return lambda wildcards, attempt: RUN.infer_gpus(stage, int(wildcards.rank), attempt)


def command(script):
    """A param that Snakemake does not compare between runs: one that depends on ``input`` counts as
    derived, so a moved installation reruns nothing."""
    return lambda wildcards, input: RUN.command(script)

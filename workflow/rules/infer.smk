rule infer:
    input:
        chunk=LAYOUT.chunk("{rank}"),
        manifest=LAYOUT.manifest,
        plugins=plugin_files(CONFIG.run.plugins),
    output:
        rank_files(),
    log:
        LAYOUT.log("infer.rank{rank}"),
    # A job on a cluster runs a Snakemake of its own, which would try again inside of the job.
    retries: 3 if workflow.is_main_process else 0
    conda:
        "../../envs/gpu.yaml"
    threads: gpu_job_threads
    resources:
        gpu=CONFIG.vllm.gpus_per_job,
        attempt=lambda wildcards, attempt: attempt,
    params:
        run=command("infer.py"),
        config=LAYOUT.config,
        num_shards=PLAN.num_shards,
        spec=spec("vision", "vllm", "sampling", "run", "task_params"),
    shell:
        "{params.run} --config {params.config:q}"
        " --num-shards {params.num_shards} --rank {wildcards.rank} --threads {threads}"
        " --attempt {resources.attempt}"
        " > {log:q} 2>&1"

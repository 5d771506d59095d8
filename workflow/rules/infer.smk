rule infer:
    input:
        chunk=LAYOUT.chunk("{rank}"),
        manifest=LAYOUT.manifest,
        plugins=plugin_files(CONFIG.run.plugins),
    output:
        rank_files(),
    log:
        LAYOUT.log("infer.rank{rank}"),
    retries: 3
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

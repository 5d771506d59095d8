for stage in STAGES:

    rule:
        name:
            stage.rule("infer")
        input:
            chunk=stage.layout.chunk("{rank}"),
            manifest=stage.layout.manifest,
            weights=weights(stage),
            user_files=code_files(stage.config),
        output:
            rank_files(stage),
        log:
            stage.layout.log("infer.rank{rank}"),
        # A job on a cluster runs a Snakemake of its own, which would try again inside of the job.
        retries: 3 if workflow.is_main_process else 0
        conda:
            ENVIRONMENT
        threads: gpu_job_threads(stage)
        resources:
            gpu=gpu_job_gpus(stage),
            attempt=lambda wildcards, attempt: attempt,
        params:
            run=command("infer.py"),
            config=stage.layout.config,
            num_shards=stage.plan.num_shards,
            spec=spec(stage, "vision", "vllm", "sampling", "run", "task_params"),
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} --gpus {resources.gpu}"
            " --rank {wildcards.rank} --threads {threads} --attempt {resources.attempt}"
            " >> {log:q} 2>&1"

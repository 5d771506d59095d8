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
        benchmark:
            stage.layout.benchmark("infer.rank{rank}")
        retries: RUN.infer_retries
        conda:
            ENVIRONMENT
        threads: infer_threads(stage)
        resources:
            gpu=infer_gpus(stage),
        params:
            run=command("infer.py"),
            work=work(stage),
            config=stage.layout.config,
            num_shards=stage.sharding.num_shards,
            spec=stage.digest("vision", "vllm", "sampling", "run", "task_params"),
        message:
            stage.title + "rank {wildcards.rank}: {params.work}"
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} --gpus {resources.gpu}"
            " --rank {wildcards.rank} --threads {threads}"
            " >> {log:q} 2>&1"

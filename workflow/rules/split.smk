for position, stage in enumerate(STAGES, 1):

    rule:
        name:
            stage.rule("split")
        input:
            samples=samples(stage),
            user_files=code_files(stage.config),
        output:
            chunks=[stage.layout.chunk(rank) for rank in stage.ranks],
            order=stage.layout.order,
            manifest=stage.layout.manifest,
        log:
            stage.layout.log("split"),
        conda:
            ENVIRONMENT
        threads: 8
        params:
            run=command("split.py"),
            config=stage.layout.config,
            num_shards=stage.sharding.num_shards,
            run_id=stage.sharding.run_id,
            later=[later.layout.config for later in STAGES[position:]],
            spec=stage.digest("data", "vision", "vllm", "sampling", "run", "task_params"),
        message:
            stage.title + f"splits {input_name(stage)} into " + "{params.num_shards} chunk(s)"
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} --run-id={params.run_id:q} --threads {threads}"
            " --later {params.later:q}"
            " 2>&1 | tee -a {log:q}" + WITHOUT_ERROR

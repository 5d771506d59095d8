rule split:
    input:
        samples=CONFIG.data.input_jsonl,
        plugins=plugin_files(CONFIG.run.plugins),
    output:
        chunks=[LAYOUT.chunk(rank) for rank in ranks()],
        order=LAYOUT.order,
        manifest=LAYOUT.manifest,
    log:
        LAYOUT.log("split"),
    conda:
        "../../envs/gpu.yaml"
    threads: 8
    params:
        run=command("split.py"),
        config=LAYOUT.config,
        num_shards=PLAN.num_shards,
        run_id=PLAN.run_id,
        spec=spec("data", "vision", "vllm", "sampling", "run", "task_params"),
    shell:
        "{params.run} --config {params.config:q}"
        " --num-shards {params.num_shards} --run-id={params.run_id:q} --threads {threads}"
        " > {log:q} 2>&1"

rule consolidate:
    input:
        rank_files=[LAYOUT.rank_file(rank) for rank in ranks()],
        chunks=[LAYOUT.chunk(rank) for rank in ranks()],
        order=LAYOUT.order,
        manifest=LAYOUT.manifest,
    output:
        jsonl=LAYOUT.output,
        summary=LAYOUT.summary,
    log:
        LAYOUT.log("consolidate"),
    conda:
        "../../envs/gpu.yaml"
    threads: 1
    params:
        run=command("consolidate.py"),
        config=LAYOUT.config,
        num_shards=PLAN.num_shards,
        spec=spec("data", "run"),
    shell:
        "{params.run} --config {params.config:q}" " --num-shards {params.num_shards} > {log:q} 2>&1"

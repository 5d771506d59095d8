rule consolidate:
    input:
        rank_files=[LAYOUT.rank_file(rank) for rank in ranks()],
        chunks=[LAYOUT.chunk(rank) for rank in ranks()],
        order=LAYOUT.order,
        manifest=LAYOUT.manifest,
    output:
        jsonl=LAYOUT.output,
        summary=LAYOUT.summary,
        errors=LAYOUT.errors,
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


# What is finished so far, while `infer` jobs run elsewhere or after they have failed.
rule partial:
    log:
        LAYOUT.log("partial"),
    localrule: True
    conda:
        "../../envs/gpu.yaml"
    params:
        run=command("consolidate.py"),
        config=LAYOUT.config,
        num_shards=PLAN.num_shards,
    shell:
        "{params.run} --config {params.config:q}"
        " --num-shards {params.num_shards} --partial 2>&1 | tee {log:q}"

for stage in STAGES:

    rule:
        name:
            stage.rule("consolidate")
        input:
            rank_files=[stage.layout.rank_file(rank) for rank in stage.ranks],
            chunks=[stage.layout.chunk(rank) for rank in stage.ranks],
            order=stage.layout.order,
            manifest=stage.layout.manifest,
        output:
            jsonl=stage.layout.output,
            summary=stage.layout.summary,
            errors=stage.layout.errors,
        log:
            stage.layout.log("consolidate"),
        benchmark:
            stage.layout.benchmark("consolidate")
        conda:
            ENVIRONMENT
        threads: 1
        params:
            run=command("consolidate.py"),
            config=stage.layout.config,
            num_shards=stage.sharding.num_shards,
            spec=stage.digest("data", "run"),
        message:
            stage.title + "joins {params.num_shards} rank file(s) to {output.jsonl}"
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} 2>&1 | tee -a {log:q}" + WITHOUT_ERROR

    # Writes the records that are finished, while `infer` jobs run elsewhere or after they failed.
    rule:
        name:
            stage.rule("partial")
        log:
            stage.layout.log("partial"),
        localrule: True
        conda:
            ENVIRONMENT
        params:
            run=command("consolidate.py"),
            config=stage.layout.config,
            num_shards=stage.sharding.num_shards,
        message:
            stage.title + "joins what is finished so far"
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} --partial 2>&1 | tee -a {log:q}"

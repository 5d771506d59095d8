for stage in STAGES:

    rule:
        name:
            stage.rule("export")
        input:
            jsonl=stage.layout.output,
            summary=stage.layout.summary,
        # Only the card, because Snakemake would leave a file of its own in a `directory()`.
        output:
            stage.layout.card,
        log:
            stage.layout.log("export"),
        conda:
            ENVIRONMENT
        threads: 1
        params:
            run=command("export.py"),
            config=stage.layout.config,
            columns=stage.config.run.parquet_columns,
            spec=stage.digest("data", "vision", "vllm", "sampling", "run", "task_params"),
        message:
            stage.title + "writes the output again, as Parquet files"
        shell:
            "{params.run} --log {log:q} --config {params.config:q} >> {log:q} 2>&1"

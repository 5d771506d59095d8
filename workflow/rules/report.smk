for stage in STAGES:

    rule:
        name:
            stage.rule("report")
        input:
            jsonl=stage.layout.output,
            summary=stage.layout.summary,
        output:
            page=report(
                stage.layout.report,
                caption="../report/output.rst",
                category="Runs",
                labels=report_labels(stage, "page"),
            ),
            table=report(
                stage.layout.report_table,
                caption="../report/table.rst",
                category="Runs",
                labels=report_labels(stage, "table"),
            ),
        log:
            stage.layout.log("report"),
        conda:
            ENVIRONMENT
        threads: 8
        params:
            run=command("report.py"),
            config=stage.layout.config,
            num_shards=stage.sharding.num_shards,
            spec=stage.digest("report"),
        message:
            stage.title + "writes the page about the run"
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} --threads {threads} >> {log:q} 2>&1"

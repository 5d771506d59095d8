for stage in STAGES:

    rule:
        name:
            stage.rule("report")
        input:
            jsonl=stage.layout.output,
            summary=stage.layout.summary,
        output:
            report(
                stage.layout.report,
                caption="../report/output.rst",
                category="Runs",
                labels={"output": stage.layout.stem, "task": stage.config.run.task},
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
        shell:
            "{params.run} --log {log:q} --config {params.config:q}"
            " --num-shards {params.num_shards} --threads {threads} >> {log:q} 2>&1"

for stage in STAGES:
    if stage.config.run.publish:

        # This runs on Snakemake's own machine: the nodes of a cluster may have no network, and the
        # credentials are in this environment.
        rule:
            name:
                stage.rule("publish")
            input:
                stage.final_output[:-1],
            output:
                stage.layout.receipt,
            log:
                stage.layout.log("publish"),
            localrule: True
            conda:
                ENVIRONMENT
            params:
                run=command("publish.py"),
                config=stage.layout.config,
                places=stage.places_digest,
            message:
                stage.title + "copies the output to the places in run.publish"
            shell:
                "{params.run} --log {log:q} --config {params.config:q}"
                " 2>&1 | tee -a {log:q}" + WITHOUT_ERROR

for stage in STAGES:
    if is_fetched(stage.config):

        # This runs on Snakemake's own machine: the nodes of a cluster may have no network.
        rule:
            name:
                stage.rule("fetch")
            input:
                stage.layout.manifest,
            output:
                stage.layout.weights,
            log:
                stage.layout.log("fetch"),
            localrule: True
            conda:
                ENVIRONMENT
            params:
                run=command("fetch.py"),
                config=stage.layout.config,
                num_shards=stage.sharding.num_shards,
            message:
                stage.title + "fetches the weights of the model"
            shell:
                "{params.run} --log {log:q} --config {params.config:q}"
                " --num-shards {params.num_shards} 2>&1 | tee -a {log:q}" + WITHOUT_ERROR

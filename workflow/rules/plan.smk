# What the run will take: beside a live run, too, and before anything was split. Of all stages, so
# that it is `snakemake plan` whatever their names are.
rule plan:
    log:
        STAGES[-1].layout.log("plan"),
    localrule: True
    conda:
        ENVIRONMENT
    threads: RUN.cores
    params:
        run=command("plan.py"),
        configs=[stage.layout.plan_config for stage in STAGES],
    shell:
        "{params.run} --log {log:q} --config {params.configs:q} --threads {threads}"
        " 2>&1 | tee -a {log:q}"

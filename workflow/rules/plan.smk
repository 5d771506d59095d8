# Estimates all stages, before anything is split, or beside a live run. Stages share the rule, so
# that `snakemake plan` always works.
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
    message:
        "estimates what the run will take"
    shell:
        "{params.run} --log {log:q} --config {params.configs:q} --threads {threads}"
        " 2>&1 | tee -a {log:q}"

from snakemake.utils import min_version

min_version("9.0")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/split.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/infer.smk"
include: "workflow/rules/consolidate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/plan.smk"


rule all:
    default_target: True
    input:
        get_final_output(),


onstart:
    RUN.begin()


onsuccess:
    RUN.show_summary()


onerror:
    RUN.explain_failure()

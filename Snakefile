# For `snakemake` in a checkout. The workflow itself is workflow/Snakefile.
include: "workflow/Snakefile"


# An included file sets no default target.
rule default:
    default_target: True
    input:
        rules.all.input,
    message:
        "everything is there"

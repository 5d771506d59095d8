"""The contract between the jobs of a run: the task, the settings, the paths and the chunks. It is
imported while Snakemake parses the workflow: no torch, no vLLM."""

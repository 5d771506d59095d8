"""The part of the library that the Snakefile uses: the decisions behind its rules.

Every call of Snakemake, and every job on a cluster, imports these modules while it parses the
workflow: keep them light.
"""

"""Hides boto3 from Snakemake, which imports it at each start where it is there (smart_open does).
Here moto alone needs it, and users have none."""

raise ImportError("boto3 is hidden from Snakemake by the tests")

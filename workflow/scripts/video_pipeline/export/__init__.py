"""The rule ``export``: the output as Parquet with a dataset card."""

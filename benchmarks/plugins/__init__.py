"""Datasets and tasks of the benchmarks, loaded through ``run.plugins``."""

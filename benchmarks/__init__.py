"""Benchmarks: what the data plane and the engine loop cost, as ratios measured within one run.

``python -m benchmarks`` measures everything and writes ``docs/benchmarks.md``;
``python -m benchmarks reader memory`` measures two families and keeps the others' last results.
"""

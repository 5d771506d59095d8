"""Benchmarks on a card: the engine alone, this project, what people write, and settings."""

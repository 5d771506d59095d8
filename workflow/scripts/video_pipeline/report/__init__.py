"""The page about a run: what was done, how fast, what failed, and what the model saw."""

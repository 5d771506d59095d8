"""The rule ``report``: the page about a run: its figures, its errors, and what the model saw."""

"""The rule ``plan``: what a run will take, found out without a GPU."""

"""The rule ``plan``: estimates what a run will take, without a GPU."""

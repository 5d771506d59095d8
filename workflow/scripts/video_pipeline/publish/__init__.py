"""The rule ``publish``: the output, copied to where people want it."""

"""The rule ``publish``: copies the output to the places in ``run.publish``."""

"""The rule ``infer``: one chunk on one GPU, from pending samples to the rank file."""

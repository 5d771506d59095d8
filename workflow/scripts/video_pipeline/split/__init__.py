"""The rule ``split``: check the input, find what is done, and give each rank its chunk."""

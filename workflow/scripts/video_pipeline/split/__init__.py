"""The rule ``split``: checks the input, finds finished samples, and gives each rank its chunk."""

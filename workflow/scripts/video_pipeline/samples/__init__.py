"""Samples: the lines of the input, their keys and what is asked about them."""

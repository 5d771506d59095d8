"""Datasets: from a sample to the input of the model."""

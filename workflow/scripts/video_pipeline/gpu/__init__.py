"""GPUs: which ones there are, and who uses them."""

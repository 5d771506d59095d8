"""The GPUs of a machine, and the jobs that use them."""

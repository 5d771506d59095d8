"""The contract between the jobs of a run: what is asked, and how it is split."""

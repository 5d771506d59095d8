"""The contract between the jobs of a run: the task, the settings, the paths and the chunks."""

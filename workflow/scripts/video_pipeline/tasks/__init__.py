"""Tasks: what is asked about a video, and how the answer is parsed."""

"""The model: its processor, its chat template and its tokens."""

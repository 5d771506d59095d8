"""Small models and clips, so that the whole workflow runs without downloads and without a GPU."""

"""The name that was meant."""

from __future__ import annotations

from video_pipeline.common.suggest import did_you_mean


def test_the_most_similar_name_is_suggested_if_one_is_similar():
    names = ["describe", "caption", "tag"]
    assert did_you_mean("descibe", names) == "; did you mean 'describe'?"
    assert did_you_mean("caption_", names, show=str.upper) == "; did you mean CAPTION?"
    assert did_you_mean("xyz", names) == ""

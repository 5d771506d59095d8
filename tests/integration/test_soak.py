"""The short form of `make soak`."""

from __future__ import annotations

from soak import Soak


def test_a_short_soak(tmp_path):
    soak = Soak(tmp_path, seed=7, samples=150, clips=None)
    soak(kills=6)
    assert sum(soak.killed.values()) == 6

"""Paths with braces: what Snakemake makes of them once they are to be taken literally."""

from __future__ import annotations

import pytest
from snakemake import io, pathvars
from video_pipeline.errors import UserError
from video_pipeline.workflow.literal_paths import take_literally

NAMES = ["{a}", "x{a,[0-9]+}y", "{rank}", "{{a}}", "a}{b", "{ a }", "<results>", "é{é}"]


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    """What a test changes in Snakemake is undone."""
    monkeypatch.setattr(io, "WILDCARD_REGEX", io.WILDCARD_REGEX)
    monkeypatch.setattr(pathvars, "PATHVAR_REGEX", pathvars.PATHVAR_REGEX)


def expanded(pattern: str) -> str:
    """What Snakemake makes of the pattern of an output for rank 7."""
    known = pathvars.Pathvars.with_defaults().apply(pattern)
    pattern = io.update_wildcard_constraints(known, {}, {"rank": r"\d+"})
    return io.apply_wildcards(pattern, {"rank": "7"})


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_wherever_a_part_begins_with_it(name):
    take_literally([f"in {name}/out{name}"])
    for path in (f"in {name}/out{name}.jsonl", f"logs/out{name}/split.log", f"out{name}"):
        assert expanded(path) == path
        assert not io.contains_wildcard(path)
    pattern = f"in {name}/.chunks/out{name}/of-2/rank{{rank}}.jsonl"
    assert expanded(pattern) == pattern.replace("rank{rank}", "rank7")
    match = io.regex_from_filepattern(pattern)
    assert io.re.match(match, pattern.replace("rank{rank}", "rank12"))["rank"] == "12"


def test_other_wildcards_stay_wildcards():
    take_literally(["out{a}.jsonl"])
    assert io.get_wildcard_names("results/{a}/{b}.txt") == {"a", "b"}
    take_literally(["other{b}.jsonl"])  # of another workflow in the same Snakemake
    assert not io.contains_wildcard("out{a}.jsonl/other{b}.jsonl")


def test_plain_paths_change_nothing():
    before = io.WILDCARD_REGEX
    take_literally(["samples.jsonl", "/data/é *?[x] $HOME 'q' %s"])
    assert io.WILDCARD_REGEX is before


def test_a_snakemake_that_would_not_heed_it_is_refused(monkeypatch):
    monkeypatch.setattr(io, "contains_wildcard", lambda path: True)
    with pytest.raises(UserError, match=r"out\{a\}.*rename"):
        take_literally(["out{a}.jsonl"])

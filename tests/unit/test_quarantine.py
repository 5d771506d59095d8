"""The samples that may have killed the engine are tried last, ever fewer at once."""

from __future__ import annotations

import pytest
from video_pipeline.engine.base import EngineDead
from video_pipeline.infer.quarantine import QUARANTINE_DEATHS, Quarantine, quarantine_error
from video_pipeline.journal.index import read_index
from video_pipeline.journal.reader import JournalReader
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.chunks import Question

DEATHS = {1: 1, 4: 2, 5: QUARANTINE_DEATHS, 7: 1}
REQUEST = "0" * 32


def tried(quarantine: Quarantine, max_in_flight: int) -> list[tuple[list[int], int]]:
    """The positions of each round, and how many of them are in the engine at once."""
    rounds = quarantine.rounds(range(8), max_in_flight)
    return [(list(positions), at_once) for positions, at_once in rounds]


def test_suspects_are_tried_last_and_few_at_once():
    assert tried(Quarantine(DEATHS), 256) == [
        ([0, 2, 3, 6], 256),
        ([1, 7], 16),
        ([4], 1),
        ([], 1),
    ]
    assert [at_once for _, at_once in tried(Quarantine(DEATHS), 8)] == [8, 1, 1, 1]


def test_the_error_of_a_sample_says_of_what_the_engine_died():
    error = quarantine_error(QUARANTINE_DEATHS, "no kernel")
    assert error["stage"] == "quarantine"
    assert error["message"].endswith("3 times when the engine died, the last time of: no kernel")
    assert quarantine_error(QUARANTINE_DEATHS, None)["message"].endswith("when the engine died")


def test_a_sample_that_killed_its_process_is_tried_again_once():
    quarantine = Quarantine({})
    tried_again = [
        quarantine.try_again(position)
        for positions, _ in quarantine.rounds(range(3), 256)
        for position in positions
        if position == 1
    ]
    assert tried_again == [True, False]


@pytest.fixture
def journal(tmp_path):
    with JournalWriter(tmp_path, "attempt.s.rank0.") as writer:
        yield writer


def deaths(folder) -> dict[str, int]:
    """How often each of the samples a, b and c was in the engine when it died."""
    index = read_index(folder)
    return {key: len(index.deaths(key, "", REQUEST)) for key in "abc"}


def test_the_journal_gets_what_was_in_the_engine_when_it_died(tmp_path, journal):
    quarantine = Quarantine({})
    questions = {key: Question(key, "", REQUEST) for key in "abc"}
    with quarantine.in_engine("a", questions["a"], journal):
        assert not quarantine.engine_is_empty
    assert quarantine.engine_is_empty
    with (
        pytest.raises(EngineDead),
        quarantine.in_engine("b", questions["b"], journal),
        quarantine.in_engine("c", questions["c"], journal),
    ):
        raise EngineDead("killed on purpose")
    journal.sync()
    assert deaths(tmp_path) == {"a": 0, "b": 1, "c": 1}
    with JournalReader(tmp_path, read_index(tmp_path)) as reader:
        causes = {key: reader.cause_of_death(*question) for key, question in questions.items()}
    assert causes == {"a": None, "b": "killed on purpose", "c": "killed on purpose"}

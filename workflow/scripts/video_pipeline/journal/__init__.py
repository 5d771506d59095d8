"""The journal: what cost GPU time, one JSON line a record, and the only truth about what is done.

Each attempt of an inference job appends to a file of its own, ``attempt.*``, in the folder of the
fingerprint (:mod:`~video_pipeline.journal.format` has the lines). Beside it lies what the attempt
spent (:class:`video_pipeline.run.statistics.StatisticsFile`). Every reader ignores a line that a
crash tore off. An error is final until a record in a file ``reopen.*`` takes it back.
"""

from video_pipeline.journal.format import (
    ATTEMPTS,
    REOPENS,
    attempt_prefix,
    clean_text,
    count_answers,
    count_records,
    record_id,
    record_id_from_json,
    split_of,
)
from video_pipeline.journal.index import (
    NO_RECORD,
    JournalIndex,
    Location,
    location_at,
    read_index,
)
from video_pipeline.journal.reader import Finished, JournalReader
from video_pipeline.journal.writer import JournalWriter

__all__ = [
    "ATTEMPTS",
    "NO_RECORD",
    "REOPENS",
    "Finished",
    "JournalIndex",
    "JournalReader",
    "JournalWriter",
    "Location",
    "attempt_prefix",
    "clean_text",
    "count_answers",
    "count_records",
    "location_at",
    "read_index",
    "record_id",
    "record_id_from_json",
    "split_of",
]

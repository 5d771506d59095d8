"""The format of a journal file: its name, its lines, and how to recognise a line without parsing.

The first line says who writes, each other line is one record::

    {"__journal": 1, "host": ..., "pid": ...}
    {"__key": ..., "__part": "", "__request": <digest>, "output_text": ..., "__usage": {...}}
    {"__key": ..., "__part": "", "__request": <digest>, "__error": {...}}
    {"__key": ..., "__part": "", "__request": <digest>, "__engine_died": true, "__cause": ...}
    {"__key": ..., "__part": "", "__request": <digest>, "__reopens": <name of a journal file>}

The head of a record, up to the end of the digest, names a question about a sample. A part names one
of several questions (empty if there is only one). What follows the head is the kind of the record.
An answer may end with ``__reasoning``, ``__logprobs`` and ``damaged``; an error may have the fields
of an answer. With several answers (``sampling.n``) the first two and ``output_text`` are lists.
``__engine_died`` says that the engine died with this request in it, and ``__cause`` says why, if
that is known: the sample is not finished. ``__reopens``, in files ``reopen.*``, takes back what the
named file says about the sample.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.common.versions import check_version

VERSION = 1

ATTEMPTS = "attempt."
REOPENS = "reopen."

_KEY = b'{"__key":'
_REQUEST = b'","__request":"'
_DIGEST_DIGITS = 32
_HASHER = blake2b(digest_size=16)

# What follows the head of a record of each kind.
OUTPUT_TEXT = b'","output_text":'
ERROR = b'","__error":'
ENGINE_DIED = b'","__engine_died":'
REOPENED_FILE = re.compile(rb'","__reopens":"([^"\\]+)"\}')

_ERROR_FIELDS = ("stage", "type", "message")


def attempt_prefix(split_id: str, rank: int) -> str:
    """The start of the names of the journal files of one rank of one split."""
    return f"{ATTEMPTS}{split_id}.rank{rank}."


def split_of(file: str) -> str:
    """The split that an attempt worked on, from the name of one of its files."""
    return file.removeprefix(ATTEMPTS).partition(".")[0]


def clean_text(text: str) -> str:
    """``text`` with single surrogates (as in odd file names) escaped: UTF-8 has none."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def record_head(key: bytes, part: bytes, request: bytes) -> bytes:
    """The start of the line of a record; ``key`` and ``part`` are JSON already."""
    return b'{"__key":%b,"__part":%b,"__request":"%b' % (key, part, request)


def head_id(head: bytes) -> bytes:
    """16 bytes that stand for a record's head. Writer and reader encode it with orjson, so that a
    scan decodes nothing."""
    hasher = _HASHER.copy()  # This is faster than to make a new one.
    hasher.update(head)
    return hasher.digest()


def record_id(key: str, part: str, request: str) -> bytes:
    """:func:`head_id` of a question: key, part and request digest."""
    return record_id_from_json(orjson.dumps(key), orjson.dumps(part), request.encode())


def record_id_from_json(key: bytes, part: bytes, request: bytes) -> bytes:
    """:func:`record_id` of a key and a part that are JSON already."""
    return head_id(record_head(key, part, request))


def scan(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Offset, line and length of the head of every whole record in a journal file.

    Raises :class:`UserError` if a newer version has written the file.
    """
    with open(path, "rb", buffering=1 << 20) as stream:
        first = stream.readline()
        with suppress(orjson.JSONDecodeError, AttributeError):  # A torn line: no record follows.
            check_version(path, orjson.loads(first).get("__journal"), VERSION)
        offset = len(first)
        for line in stream:
            # A second key means that one write was cut off and another followed. No text can
            # hold these bytes, because its quotes are escaped.
            if line[-2:] == b"}\n" and line.rfind(_KEY) == 0:
                request = line.find(_REQUEST)
                if request > 0:
                    yield offset, line, request + len(_REQUEST) + _DIGEST_DIGITS
            offset += len(line)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The answer or the error in ``line``, None if it is not whole."""
    try:
        record: dict[str, Any] = orjson.loads(line)
        error = record.get("__error")
        if error is not None:
            if not all(type(error[name]) is str for name in _ERROR_FIELDS):
                return None
            if "__usage" not in record:
                return record
        usage = record["__usage"]
        is_whole = (
            _is_text(record["output_text"])
            and type(usage["finish_reason"]) is str
            and type(usage["prompt_tokens"]) is type(usage["completion_tokens"]) is int
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return record if is_whole else None


def _is_text(output_text: Any) -> bool:
    if type(output_text) is list:
        return len(output_text) > 1 and all(type(text) is str for text in output_text)
    return type(output_text) is str


def count_records(path: Path) -> Counter[str]:
    """How many records of each kind a journal file holds: ``output_text``, ``__error``,
    ``__engine_died`` and ``__reopens``."""
    return Counter(
        line[head_end + 3 : line.find(b'"', head_end + 3)].decode()
        for _, line, head_end in scan(path)
    )


def count_answers(folder: Path) -> int:
    """How many answers the journal in ``folder`` holds."""
    return sum(count_records(path)["output_text"] for path in folder.glob(f"{ATTEMPTS}*.jsonl"))

"""The key, which names a sample, and the request digest, which stands for what is asked about it.

A sample is done when the journal of its *fingerprint* has a record with its *key*, its part and
its *request digest*:

* the **key** names the sample: the user's id, or a hash of its content;
* the **request digest** hashes what is asked about that sample: the messages of the task, the
  schema of the answer, and the sampling of this sample alone;
* the **fingerprint** (:mod:`video_pipeline.run.fingerprint`) hashes everything else that changes an
  answer: model, engine, sampling, vision settings, dataset. It names the folder of the journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import pairwise
from typing import Any

import orjson

from video_pipeline.config.source import stable_address
from video_pipeline.errors import TaskError
from video_pipeline.tasks.base import Task


def content_key(raw: dict[str, Any], video_field: str) -> str:
    """Key of a sample without an id: 32 hex digits of a hash over its sorted JSON, with the
    :func:`~video_pipeline.config.source.stable_address` of the video in the field ``video_field``.
    """
    video = raw.get(video_field)
    stable = stable_address(video)
    if stable is not video:
        raw = {**raw, video_field: stable}
    return digest(orjson.dumps(raw, option=orjson.OPT_SORT_KEYS))


def request_digests(
    task: Task, sample: dict[str, Any], video: Any, sample_fields: Collection[str] = ()
) -> dict[str, str]:
    """Digests of what ``task`` asks about ``sample``, 32 hex digits each, by the name of the
    conversation.

    ``video`` is the path as the input has it (or a list of paths, or None). Its stable address
    (:func:`~video_pipeline.config.source.stable_address`) stands for the absolute address in the
    digest, so that a dataset may move to another folder, and an address may be signed again.
    ``sample_fields`` are those that the dataset reads. They do not change the digest of a sample
    that has none of them.

    Raises :class:`TaskError` if ``build_messages`` fails or returns what JSON cannot carry.
    """
    segment = [sample.get("video_start"), sample.get("video_end")]
    address = sample["__video_uri"]
    video = stable_address(video)
    digests = {}
    for part, messages in task.conversations(sample).items():
        asked = {"messages": messages, "segment": segment, "video": video}
        schema = task.json_schema(part)
        if schema is not None:
            asked["schema"] = schema
        sampling = task.sampling_json(sample, part)
        if sampling is not None:
            asked["sampling"] = sampling
        if fields := {name: sample[name] for name in sample_fields if name in sample}:
            asked["fields"] = fields
        digests[part] = _request_digest(task, asked, address, video)
    return digests


TWICE = 100
"""How many samples have their messages built twice, to check that they are the same."""


def check_deterministic(
    task: Task,
    sample: dict[str, Any],
    video: Any,
    requests: dict[str, str],
    sample_fields: Collection[str] = (),
) -> None:
    """Raise :class:`TaskError` if what is asked about ``sample``, built again, differs from
    ``requests``: resume finds a finished sample by them."""
    if request_digests(task, sample, video, sample_fields) != requests:
        raise TaskError(
            f"task {task.name!r}: messages, schema or sampling differ each time for sample "
            f"{sample['__key']!r}; resume needs the same ones. If they are drawn at random, seed "
            "that from the key: random.Random(sample['__key']). If they come from a set, sort it"
        )


def _request_digest(task: Task, asked: dict[str, Any], address: Any, video: Any) -> str:
    try:
        try:
            if not isinstance(address, str):
                raise _Ambiguous
            return digest(_replace_text(orjson.dumps(asked, option=_PLAIN), address, video))
        except (TypeError, _Ambiguous):
            asked = {**asked, "messages": _replace(asked["messages"], address, video)}
            return digest(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
    except TypeError as error:
        raise TaskError(
            f"task {task.name!r}: build_messages must return plain text, numbers, lists and dicts "
            f"({error})"
        ) from error


# orjson would write a dataclass as a dict, which _replace does not do.
_PLAIN = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS


class _Ambiguous(Exception):
    """Bytes that look like a certain text, but may be a part of another, or a name."""


def _replace_text(data: bytes, old: str, new: str) -> bytes:
    """The JSON ``data`` with every text equal to ``old`` (an address) replaced by ``new``, as
    :func:`_replace` does it, but in the bytes. Raises :class:`_Ambiguous`."""
    pieces = data.split(orjson.dumps(old))
    for before, after in pairwise(pieces):
        if before.endswith(b"\\") or after.startswith(b":"):
            raise _Ambiguous
    return orjson.dumps(new).join(pieces)


def _replace(value: Any, old: Any, new: Any) -> Any:
    """``value`` with everything equal to ``old`` (a text or a list of texts; None: nothing)
    replaced by ``new``, at any depth."""
    if old is not None and value == old:
        return new
    if isinstance(value, dict):
        return {name: _replace(entry, old, new) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(entry, old, new) for entry in value]
    return value


def digest(data: bytes) -> str:
    """32 hex digits that stand for ``data``."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()

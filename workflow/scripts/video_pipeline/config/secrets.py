"""Keys of a configuration that hold a secret, by their names. A configuration is written beside the
output and on the dataset card, so a secret has no place in it: the environment has one.

A name is taken apart into its words (``apiKey``, ``API-KEY`` and ``apikey`` alike), and as in
English the last one says what it is: an ``hf_token`` is a token, a ``token_field`` is a field,
``max_tokens`` are tokens that are counted. Imported while Snakemake parses the workflow: keep it
light.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ALWAYS = frozenset(
    {"password", "passwd", "passphrase", "passcode", "pwd", "secret", "credential", "authorization"}
    | {"bearer", "jwt"}
)
"""Whatever is before them."""

_HUB = frozenset({"hf", "hub", "huggingface"})

_OF_SECRETS = _HUB | {
    *("api", "access", "secret", "private", "auth", "bearer", "session", "refresh", "client"),
    *("account", "service", "subscription", "license", "signing", "encryption", "master", "deploy"),
    *("ssh", "openai", "anthropic", "wandb", "aws", "gcp", "google", "azure", "github", "gitlab"),
}
"""What makes a key one that opens something (there are sort keys and the keys of JSON, too), and
tokens something else than those that are counted."""

_OF_TEXT = frozenset(
    {"bos", "eos", "bot", "eot", "pad", "unk", "cls", "sep", "mask", "special", "stop", "start"}
    | {"begin", "end", "first", "last", "next", "prefix", "suffix", "placeholder", "separator"}
    | {"image", "video", "audio", "vision", "frame", "text", "think", "thinking", "reasoning"}
    | {"prompt", "answer", "input", "output", "system", "assistant", "tool", "per", "new"}
)
"""What makes a token one of a language model."""

_NO_SECRET = re.compile(r"[\s<>|\[\]]")
"""What no secret token has, and many a token of a language model."""

_DESCRIPTION = frozenset({"type", "enum", "$ref", "prompt", "prompt_file", "description"})
"""Keys of what describes a field or asks for it: a JSON Schema, a question."""

WORDS_OF_TEXT = 6
"""From so many words on, a value is a text about passwords, such as a question, and none itself."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_RUN_TOGETHER = re.compile(
    r"(\w+?)(tokens?|passwords?|passwd|passphrase|secrets?|credentials?"
    r"|(?<=api|ess|ret|ate|ter)keys?)"
)


def secrets_in(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Where secrets are in ``value``, a configuration or a part of it: the place of each, such as
    ``vllm.hf_token`` (``place`` goes before it), and the environment variable for it."""
    if isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from secrets_in(entry, f"{place}.{number}")
    elif isinstance(value, dict):
        for name, entry in value.items():
            where = f"{place}.{name}" if place else str(name)
            if is_secret(str(name), entry):
                yield where, _variable(str(name))
            else:
                yield from secrets_in(entry, where)


def is_secret(name: str, value: Any) -> bool:
    """Whether ``value`` is a secret, being called ``name``. ``hf_token: true`` is none: it says to
    take the one that is stored."""
    if isinstance(value, list | tuple):
        return any(is_secret(name, entry) for entry in value)
    if isinstance(value, dict):
        described = not _DESCRIPTION.isdisjoint(value)
        return not described and any(is_secret(name, entry) for entry in value.values())
    if isinstance(value, bool) or not value or not isinstance(value, str | int):
        return False
    *before, last = _words(name) or [""]
    noun = last.removesuffix("s")
    if noun in _ALWAYS:
        return len(str(value).split()) < WORDS_OF_TEXT
    if not isinstance(value, str) or noun not in ("key", "token"):
        return False
    if last == "token":
        return _OF_TEXT.isdisjoint(before) and not _NO_SECRET.search(value)
    return not _OF_SECRETS.isdisjoint(before)


def _words(name: str) -> list[str]:
    """The words of ``name``, in lower case."""
    words: list[str] = []
    for word in map(str.lower, _WORD.findall(name)):
        found = _RUN_TOGETHER.fullmatch(word)
        words += found.groups() if found else [word]
    return words


def _variable(name: str) -> str:
    """The environment variable for the secret ``name``."""
    *before, last = _words(name)
    if last.startswith("token") and (not before or not _HUB.isdisjoint(before)):
        return "HF_TOKEN"  # which vLLM and the Hugging Face libraries read
    return "_".join([*before, last]).upper()

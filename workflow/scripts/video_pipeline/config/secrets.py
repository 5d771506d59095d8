"""Finds secrets in a configuration, by the names of their keys, and by the form of the tokens of
well-known services. A configuration is written beside the output and on the dataset card, so
secrets belong into the environment.

A name is split into its words (``apiKey``, ``API-KEY`` and ``apikey`` alike). As in English the
last word is the noun: an ``hf_token`` is a token, a ``token_field`` is a field, ``max_tokens`` are
tokens that are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ALWAYS = frozenset(
    {"password", "passwd", "passphrase", "passcode", "pwd", "secret", "credential", "authorization"}
    | {"bearer", "jwt"}
)
"""Nouns that always are secrets."""

_HUB = frozenset({"hf", "hub", "huggingface"})

_OF_SECRETS = _HUB | {
    *("api", "access", "secret", "private", "auth", "bearer", "session", "refresh", "client"),
    *("account", "service", "subscription", "license", "signing", "encryption", "master", "deploy"),
    *("ssh", "openai", "anthropic", "wandb", "aws", "gcp", "google", "azure", "github", "gitlab"),
}
"""Words that make a key or tokens secret. Other keys sort or name something, and other tokens are
counted."""

_OF_TEXT = frozenset(
    {"bos", "eos", "bot", "eot", "pad", "unk", "cls", "sep", "mask", "special", "stop", "start"}
    | {"begin", "end", "first", "last", "next", "prefix", "suffix", "placeholder", "separator"}
    | {"max", "min"}
    | {"image", "video", "audio", "vision", "frame", "text", "think", "thinking", "reasoning"}
    | {"prompt", "answer", "input", "output", "system", "assistant", "tool", "per", "new"}
)
"""Words that show that a token is a language model's."""

_IN_TEXT_TOKENS = re.compile(r"[\s<>|\[\]]")
"""Characters of many tokens of language models, and of no secret token."""

_KNOWN_FORM = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-(proj|ant|svcacct)-[\w-]{20,}|sk-[A-Za-z0-9]{32,}"
    r"|gh[opsu]_[A-Za-z0-9]{36}|github_pat_\w{22,}|glpat-[\w-]{20,}|AKIA[A-Z0-9]{16})\b"
)
"""Tokens of the Hugging Face hub, OpenAI, Anthropic, GitHub, GitLab and AWS."""

_DESCRIPTION = frozenset({"type", "enum", "$ref", "prompt", "prompt_file", "description"})
"""Keys of a mapping that describes a field, as in a JSON Schema, or asks a question."""

_TEXT_WORDS = 6
"""A value of this many words is a text about a password, such as a question."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_COMPOUND = re.compile(
    r"(\w+?)(tokens?|passwords?|passwd|passphrase|secrets?|credentials?"
    r"|(?<=api|ess|ret|ate|ter)keys?)"
)


def secrets_in(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place of each secret in a configuration (or in the part of it at ``place``), such
    as ``vllm.hf_token``, and the environment variable for it."""
    if isinstance(value, str) and (token := _KNOWN_FORM.search(value)):
        is_hub_token = token[0].startswith("hf_")
        yield place, "HF_TOKEN" if is_hub_token else _variable(place.rpartition(".")[2])
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from secrets_in(entry, f"{place}.{i}")
    elif isinstance(value, dict):
        for name, entry in value.items():
            where = f"{place}.{name}" if place else str(name)
            if is_secret(str(name), entry):
                yield where, _variable(str(name))
            else:
                yield from secrets_in(entry, where)


def is_secret(name: str, value: Any) -> bool:
    """Whether the ``value`` of the key ``name`` is a secret. ``hf_token: true`` is not: it stands
    for the token that the hub's client has stored."""
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
        return len(str(value).split()) < _TEXT_WORDS
    if not isinstance(value, str) or noun not in ("key", "token"):
        return False
    if last == "token":
        return _OF_TEXT.isdisjoint(before) and not _IN_TEXT_TOKENS.search(value)
    return not _OF_SECRETS.isdisjoint(before)


def _words(name: str) -> list[str]:
    """The words of ``name``, in lower case."""
    words: list[str] = []
    for word in map(str.lower, _WORD.findall(name)):
        compound = _COMPOUND.fullmatch(word)
        words += compound.groups() if compound else [word]
    return words


def _variable(name: str) -> str:
    """The environment variable for the secret ``name``."""
    *before, last = _words(name) or ["secret"]
    if last.startswith("token") and (not before or not _HUB.isdisjoint(before)):
        return "HF_TOKEN"  # vLLM and the Hugging Face libraries read it.
    return "_".join([*before, last]).upper()

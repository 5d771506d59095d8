"""Text stays text: special tokens in the text of messages are plain characters to the model."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from video_pipeline.tasks.base import Messages


class SpecialTokenError(ValueError):
    """A message holds a special token of the model that cannot be written as plain characters."""


class SpecialTokens:
    """The tokens that make the structure of a prompt: its turns, its media, its end.

    A chat template writes one text, and a tokenizer finds these tokens anywhere in it, also in a
    title that comes from a sample. :meth:`encode` keeps structure and text apart.

    Attributes:
        ids: Id of each token.
    """

    def __init__(self, tokenizer: Any, template: str, placeholders: Collection[str]) -> None:
        """
        Args:
            tokenizer: A tokenizer of transformers.
            template: Source of the model's chat template.
            placeholders: The texts that the model's processor replaces by media.
        """
        self._tokenizer = tokenizer
        self.ids = {
            token: id
            for token, id, is_special in _added_tokens(tokenizer)
            if token and (is_special or token in placeholders or _is_markup(token, template))
        }
        self._names = {id: token for token, id in self.ids.items()}
        self._not_tokens = sorted(set(placeholders) - self.ids.keys())
        # The longest comes first, so that it is found, and not a shorter token at its start.
        tokens = sorted({*self.ids, *placeholders}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        # No message holds this random number, so a text with it stands for a character or a token.
        self._nonce = str(secrets.randbits(64))
        self._hidden = {
            character: f"\ue000{self._nonce}-{index}\ue001"
            for index, character in enumerate(sorted({token[0] for token in tokens}))
        }
        self._aliases = {token: f"\ue002{self._nonce}-{id}\ue003" for token, id in self.ids.items()}

    def find(self, messages: Messages) -> str | None:
        """The first special token in the text of ``messages``; None if there is none.

        Raises :class:`SpecialTokenError` for one that is elsewhere, such as in a ``role``.
        """
        first = None
        for message in messages:
            # As one text: a template may write neighbours without anything between them.
            in_text = self._pattern.search("".join(_texts(message["content"])))
            first = first or (in_text and in_text[0])
            for name, value in message.items():
                if name != "content" and (elsewhere := self._pattern.search(str(value))):
                    raise SpecialTokenError(
                        f"{name!r} of a message holds {elsewhere[0]!r}, a special token of the "
                        "model: special tokens are allowed in its text only"
                    )
        return first

    def encode(
        self,
        messages: Messages,
        token: str,
        render: Callable[[Messages], str],
        *,
        add_special_tokens: bool = True,
    ) -> tuple[str, list[int]]:
        """The prompt that ``render`` makes of ``messages``, and its token ids: special tokens of
        the chat template are tokens, those in the text of ``messages`` plain characters. All else
        has the ids that the tokenizer itself gives it. ``add_special_tokens``: the tokenizer also
        puts its own around the prompt.

        Raises :class:`SpecialTokenError`, which names ``token`` (what :meth:`find` returned), if
        this tokenizer cannot do that.
        """
        if self._not_tokens:
            raise _refused(token, f"{self._not_tokens[0]!r} is not in its vocabulary")
        # Without its first character no part of the text can become a token, whatever is beside it.
        # So every token in the rendered prompt comes from the template.
        rendered = render([_with_texts(message, self._hide) for message in messages])
        prompt = self._show(rendered)
        if self._nonce in prompt:
            raise _refused(token, "the model's chat template changes the text")
        if getattr(self._tokenizer, "backend_tokenizer", None) is None:
            raise _refused(token, f"{type(self._tokenizer).__name__} has no way to do it")
        aliased = self._pattern.sub(lambda match: self._aliases[match[0]], rendered)
        plain, of_alias = self._plain
        encoding = plain.encode(self._show(aliased), add_special_tokens=add_special_tokens)
        ids = [of_alias.get(id, id) for id in encoding.ids]
        # A tokenizer may put tokens of its own around a prompt, which are marked, and has a token
        # for text that it does not know.
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        of_template = [self.ids[special] for special in self._pattern.findall(rendered)]
        encoded = [
            id
            for id, is_around in zip(ids, encoding.special_tokens_mask, strict=True)
            if not is_around and id in self._names and id != unknown
        ]
        if encoded != [id for id in of_template if id != unknown]:
            raise _refused(token, "it always becomes the token")
        return prompt, ids

    def skeleton(self, ids: Iterable[int]) -> str:
        """A prompt that holds nothing but the special tokens among ``ids``."""
        return "".join(self._names[id] for id in ids if id in self._names)

    def plain(self, prompt: str, ids: list[int]) -> list[str]:
        """The special tokens in ``prompt`` that are, by its ``ids``, plain characters."""
        tokens = self._pattern.findall(prompt)
        return [
            token
            for token in dict.fromkeys(tokens)
            if token in self.ids and tokens.count(token) > ids.count(self.ids[token])
        ]

    def _hide(self, text: str) -> str:
        return "".join(self._hidden.get(character, character) for character in text)

    def _show(self, text: str) -> str:
        for character, hidden in self._hidden.items():
            text = text.replace(hidden, character)
        return text

    @cached_property
    def _plain(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy of the tokenizer, for which special tokens are plain characters and their aliases
        are special tokens; and the id of each token, by the id of its alias."""
        from tokenizers import AddedToken, Tokenizer

        description = json.loads(self._tokenizer.backend_tokenizer.to_str())
        added = [token for token in description["added_tokens"] if token["content"] in self.ids]
        for token in added:
            token["special"] = True  # encode_special_tokens turns only special tokens off.
        copy = Tokenizer.from_str(json.dumps(description))
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        options = ("single_word", "lstrip", "rstrip", "normalized")
        aliases = [self._aliases[token["content"]] for token in added]
        copy.add_tokens(
            [
                AddedToken(alias, **{name: token[name] for name in options})
                for alias, token in zip(aliases, added, strict=True)
            ]
        )
        ids: dict[int, int] = {}
        for alias, token in zip(aliases, added, strict=True):
            alias_id = copy.token_to_id(alias)
            assert alias_id is not None
            ids[alias_id] = token["id"]
        return copy, ids


def _added_tokens(tokenizer: Any) -> Iterator[tuple[str, int, bool]]:
    """The tokens that a tokenizer looks for first, their ids, and whether it calls them special."""
    special = dict.fromkeys(tokenizer.all_special_tokens, True)
    try:
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    except NotImplementedError:  # The tokenizer of mistral_common.
        added = {}
    for token, is_special in {**added, **special}.items():
        yield token, tokenizer.convert_tokens_to_ids(token), is_special


def _is_markup(token: str, template: str) -> bool:
    """Whether a token that its tokenizer does not call special has a meaning in prompts all the
    same, as ``<think>`` and ``<tool_call>`` may. Gemma's tokens for HTML and white space have
    none."""
    return re.fullmatch(r"<.*>|\[.*\]", token) is not None and (
        token in template or re.fullmatch("<[|\uff5c].*[|\uff5c]>", token) is not None
    )


def _texts(content: Any) -> Iterator[str]:
    """The text of a message: all of it, or that of its parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part.get("text"), str))


def _with_texts(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """``message`` with another text."""
    content = message["content"]
    if isinstance(content, str):
        content = change(content)
    elif isinstance(content, list):
        content = [
            {**part, "text": change(part["text"])} if isinstance(part.get("text"), str) else part
            for part in content
        ]
    return {**message, "content": content}


def _refused(token: str, why: str) -> SpecialTokenError:
    return SpecialTokenError(
        f"the text of a message holds {token!r}, a special token of the model, and its tokenizer "
        f"cannot encode it as plain text: {why}. Remove it from the text"
    )

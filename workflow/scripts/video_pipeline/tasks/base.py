"""The base class of tasks.

A task asks one or more **conversations** about a sample. The name of a conversation is its **part**
in records and journals. What the engine gets for a conversation is a **request**.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from copy import deepcopy
from itertools import repeat
from typing import Any

import orjson

from video_pipeline.config.vllm_names import wrong_names
from video_pipeline.errors import TaskError, explain
from video_pipeline.tasks.schemas import Schema, schema_text, validated

RESERVED_FIELDS = frozenset({"input", "output_text"})
"""Fields of an output record that a task must not return, like those that start with ``__``."""

ONLY_PART = ""
"""The part of a conversation without a name: the only one that its task asks."""

_NOT_FOR_TASKS = frozenset({"output_kind", "structured_outputs"})
"""Sampling parameters that the pipeline sets itself."""

Messages = list[dict[str, Any]]


class Task(ABC):
    """Says what to ask about each sample, and turns the model's text into fields.

    Attributes:
        name: The name in ``run.task``.
        dataset_name: The dataset that reads the samples of this task. A task that does not name
            one gets ``qwen_video`` for models of the Qwen-VL line, and ``video`` for any other.
        output_schema: A pydantic model or a JSON Schema that every answer must follow, or a list of
            texts, one of which is the answer; None for free text. The engine generates nothing
            else, and :meth:`parse` gets the object or the text of the list.
        in_messages: The ``task_params`` that change nothing but :meth:`build_messages`. After a
            change of one of them only the changed conversations are asked again; after a change of
            any other parameter, all are.
        params: ``task_params`` of the configuration.
    """

    name: str = ""
    dataset_name: str = "qwen_video"
    output_schema: Schema | None = None
    in_messages: Collection[str] = ()

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    @property
    def names_dataset(self) -> bool:
        """Whether the task itself says which dataset reads its samples."""
        classes = [cls for cls in type(self).__mro__ if cls is not Task]
        return any("dataset_name" in vars(owner) for owner in (self, *classes))

    @abstractmethod
    def build_messages(self, sample: dict[str, Any]) -> Messages | dict[str, Messages]:
        """The conversation about ``sample``, or several by name.

        Several conversations share one reading of the video. The result must be the same each time:
        draw at random only from ``random.Random(sample["__key"])``.

        Args:
            sample: The input object plus ``__key`` and ``__video_uri``.

        Returns:
            Messages as Qwen's chat templates take them: dicts with ``role`` and ``content``.
        """

    def schema(self, part: str) -> Schema | None:
        """The schema for the answer to the conversation ``part``: :attr:`output_schema`, unless a
        task overrides this."""
        return self.output_schema

    def sampling(self, sample: dict[str, Any], part: str) -> dict[str, Any]:
        """The sampling parameters for the answer to the conversation ``part`` about ``sample`` that
        differ from the section ``sampling``.

        A task that needs log probabilities, or takes ``max_tokens`` from a field of the sample,
        overrides this. After a change of the result the sample is inferred again.

        Args:
            sample: The input object plus ``__key`` and ``__video_uri``.
            part: The name of the conversation; empty if it has none.

        Returns:
            Fields of vLLM's ``SamplingParams`` by name, such as ``{"logprobs": 20}``. Values that
            vLLM refuses make the sample an error record of stage ``generate``.
        """
        return {}

    def parse(self, generated_text: Any, sample: dict[str, Any]) -> dict[str, Any]:
        """The fields of the output record. Each answer of a sample is parsed alone. With
        ``sampling.n`` answers each field of the record is a list of their values.

        Args:
            generated_text: The answer: text, or with a schema the object (an instance of the
                pydantic model, or the value of the JSON).
            sample: The input object plus ``__key`` and ``__video_uri``, and ``__part``, the name of
                the conversation, if it has one. The fields then go under that name. If they were
                asked for, ``__logprobs`` has the log probabilities of the answer's tokens, see
                :func:`video_pipeline.tasks.scores.label_scores`.

        Raises:
            Exception: Any exception makes the sample an error record of stage ``parse``, which
                keeps the text.
        """
        return {}

    def conversations(self, sample: dict[str, Any]) -> dict[str, Messages]:
        """:meth:`build_messages`, checked, by part (:data:`ONLY_PART` if it has no name). Each
        ``image_url`` is an ``image`` here, so that all datasets treat the two alike.

        Raises :class:`TaskError` naming the sample.
        """
        try:
            built = self.build_messages(sample)
        except (Exception, SystemExit) as error:
            raise TaskError(
                f"task {self.name!r}: build_messages failed for sample {sample.get('__key')!r}: "
                f"{explain(error)}"
            ) from error
        is_named = isinstance(built, dict)
        conversations = built if isinstance(built, dict) else {ONLY_PART: built}
        # An enum's text is a text in Python, but no key in JSON.
        if not conversations or not all(
            type(part) is str and bool(part) == is_named and _is_conversation(messages)
            for part, messages in conversations.items()
        ):
            raise TaskError(
                f"task {self.name!r}: build_messages must return a list of messages, each with "
                "`role` and `content` (a text or a list), or a dict of such lists with text keys "
                f"(not ''); for sample {sample.get('__key')!r} it returned {built!r:.200}"
            )
        if is_named:
            self._check_names(conversations, "build_messages")
        return {part: list(map(_with_images, asked)) for part, asked in conversations.items()}

    def messages(self, sample: dict[str, Any]) -> Messages:
        """The only conversation about ``sample``. Raises :class:`TaskError` if the task names its
        conversations, see :meth:`conversations`."""
        conversations = self.conversations(sample)
        if ONLY_PART not in conversations:
            raise TaskError(
                f"task {self.name!r} asks {', '.join(conversations)} about one sample, and dataset "
                f"{self.dataset_name!r} can take one conversation only: it should use "
                "task.conversations(sample)"
            )
        return conversations[ONLY_PART]

    def json_schema(self, part: str) -> str | None:
        """:meth:`schema` as JSON Schema text. Raises :class:`TaskError` if it is not a schema."""
        try:
            schema = self.schema(part)
            return None if schema is None else schema_text(schema)
        except (Exception, SystemExit) as error:
            about = f" for {part!r}" if part else ""
            raise TaskError(
                f"task {self.name!r}: its output_schema{about} is not a schema: {explain(error)}"
            ) from error

    def sampling_json(self, sample: dict[str, Any], part: str) -> str | None:
        """:meth:`sampling` as JSON, checked; None if it changes nothing. Raises
        :class:`TaskError`."""
        place = f"task {self.name!r}: sampling"
        try:
            fields = self.sampling(sample, part)
            if fields == {}:  # Most tasks change nothing, and this runs for each sample.
                return None
            option = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS  # As logit_bias has.
            text = orjson.dumps(fields, option=option).decode()
        except (Exception, SystemExit) as error:
            raise TaskError(
                f"{place} failed for sample {sample.get('__key')!r}: {explain(error)}"
            ) from error
        if not isinstance(fields, dict):
            raise TaskError(f"{place} must return a dict, it returned {fields!r:.200}")
        if wrong := wrong_names("sampling", map(str, fields), ()):
            raise TaskError(f"{place} returned a wrong name: {wrong[0]}")
        if own := _NOT_FOR_TASKS.intersection(fields):
            raise TaskError(
                f"{place} returned {', '.join(sorted(own))}, which the pipeline sets itself: "
                "output_schema says what an answer must look like"
            )
        return text

    def parsed(
        self,
        output_text: str | list[str],
        sample: dict[str, Any],
        part: str = ONLY_PART,
        logprobs: list[Any] | None = None,
    ) -> dict[str, Any]:
        """:meth:`parse`, checked. With several answers, and their ``logprobs``, each field is the
        list of their values: None for an answer without the field.

        Raises:
            ValueError: The text does not follow the schema, or the result is not a dict.
            TaskError: The result holds a reserved name.
            Exception: Whatever the user's own code raises.
        """
        if isinstance(output_text, list):
            answers = [  # Each from a sample of its own, which parse may change.
                self.parsed(text, deepcopy(sample), part, tokens)
                for text, tokens in zip(output_text, logprobs or repeat(None), strict=False)
            ]
            names = dict.fromkeys(name for fields in answers for name in fields)
            return {name: [fields.get(name) for fields in answers] for name in names}
        schema = self.schema(part)
        answer = output_text if schema is None else validated(output_text, schema)
        if part:
            sample = {**sample, "__part": part}
        if logprobs is not None:
            sample = {**sample, "__logprobs": deepcopy(logprobs)}
        fields: Any = self.parse(answer, sample)  # Often None, if the answer is an odd one.
        if not (isinstance(fields, dict) and all(type(name) is str for name in fields)):
            raise ValueError(
                f"parse must return a dict with text keys, it returned {fields!r:.200}"
            )
        self._check_names(fields, "parse")
        return fields

    def _check_names(self, named: dict[str, Any], method: str) -> None:
        reserved = [n for n in named if n.startswith("__") or n in RESERVED_FIELDS]
        if reserved:
            raise TaskError(
                f"task {self.name!r}: {method} returned {', '.join(map(repr, sorted(reserved)))}; "
                "names that start with '__', 'input' and 'output_text' are reserved, use another"
            )


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, list):
        return False
    for message in messages:  # This runs for each sample, and all() takes twice as long.
        content = message.get("content") if isinstance(message, dict) else None
        # A chat template would pass over the text in a dict without a word.
        if not isinstance(content, str | list | tuple) or "role" not in message:
            return False
    return bool(messages)


def _with_images(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": list(map(_as_image, content))}


def _as_image(part: Any) -> Any:
    """``part``, with an ``image`` in the place of an ``image_url``, also one in OpenAI's form."""
    if not isinstance(part, dict) or "image_url" not in part:
        return part
    rest = {**part, "type": "image"}
    image = rest.pop("image_url")
    return {"image": image.get("url", image) if isinstance(image, dict) else image, **rest}


def checked_names(names: Iterable[Any], place: str) -> tuple[str, ...]:
    """``names`` of fields as a tuple. Raises :class:`TaskError`, with ``place``, if it is something
    else: ``("fps")``, for example, is one text."""
    if isinstance(names, str | None) or not all(isinstance(name, str) for name in names):
        raise TaskError(f'{place} must be a tuple of names, such as ("fps",); got {names!r:.200}')
    return tuple(names)

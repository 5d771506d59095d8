"""The base class of tasks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from video_pipeline.errors import TaskError, explain

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

RESERVED_FIELDS = frozenset({"input", "output_text"})
"""Fields of an output record that are not the task's; so are all that start with ``__``."""

WHOLE = ""
"""The part of a sample about which a task asks one thing only."""

Messages = list[dict[str, Any]]
Schema = type[BaseModel] | dict[str, Any]


class Task(ABC):
    """What is asked about each sample, and how the model's text becomes fields.

    Attributes:
        name: The name in ``run.task``.
        dataset_name: The dataset that reads the samples of this task.
        output_schema: A pydantic model or a JSON Schema that every answer must follow, or None for
            free text. The engine is held to it, and :meth:`parse` gets the object.
        in_messages: The ``task_params`` that act on :meth:`build_messages` alone. Changing one of
            them asks again only what then reads otherwise; changing another one, everything.
        params: ``task_params`` of the configuration.
    """

    name: str = ""
    dataset_name: str = "qwen_video"
    output_schema: Schema | None = None
    in_messages: Collection[str] = ()

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    @abstractmethod
    def build_messages(self, sample: dict[str, Any]) -> Messages | dict[str, Messages]:
        """The conversation for ``sample``, in the form that Qwen's chat templates take; or several
        by name, which share one reading of the video.

        ``sample`` is the input object plus ``__key`` and ``__video_uri``. The result must be the
        same each time: randomness must be seeded from ``sample["__key"]``.
        """

    def schema(self, part: str) -> Schema | None:
        """What the answer to the conversation named ``part`` must follow: :attr:`output_schema`,
        unless a task has another one for each."""
        return self.output_schema

    def parse(self, generated_text: Any, sample: dict[str, Any]) -> dict[str, Any]:
        """Fields of the output record, from what the model said: text, or with a schema the object
        (an instance of the pydantic model, or what the JSON holds). Of several conversations each
        is parsed alone; ``sample["__part"]`` names it, and its fields go under that name. An
        exception makes the sample an error record of stage ``parse``; the text is kept."""
        return {}

    def conversations(self, sample: dict[str, Any]) -> dict[str, Messages]:
        """:meth:`build_messages`, checked, by name; one that has no name goes under :data:`WHOLE`.

        Raises :class:`TaskError` naming the sample.
        """
        try:
            built = self.build_messages(sample)
        except Exception as error:
            raise TaskError(
                f"task {self.name!r}: build_messages failed for sample {sample['__key']!r}: "
                f"{explain(error)}"
            ) from error
        named = built if isinstance(built, dict) else {WHOLE: built}
        for messages in named.values():
            if not _is_conversation(messages):
                raise TaskError(
                    f"task {self.name!r}: build_messages must return a list of messages, each with "
                    "`role` and `content`, or a dict of such lists; for sample "
                    f"{sample['__key']!r} it returned {messages!r:.200}"
                )
        if isinstance(built, dict):
            self._check_names(built, "build_messages")
            if not built or WHOLE in built:
                raise TaskError(
                    f"task {self.name!r}: build_messages must name at least one conversation, and "
                    f"none of them {WHOLE!r}; for sample {sample['__key']!r} it named "
                    f"{list(built)!r:.200}"
                )
        return named

    def messages(self, sample: dict[str, Any]) -> Messages:
        """The only conversation about ``sample``. Raises :class:`TaskError` if there are several:
        see :meth:`conversations`."""
        named = self.conversations(sample)
        if WHOLE not in named:
            raise TaskError(
                f"task {self.name!r} asks {', '.join(named)} about one sample, and dataset "
                f"{self.dataset_name!r} can take one conversation only: it should use "
                "task.conversations(sample)"
            )
        return named[WHOLE]

    def json_schema(self, part: str) -> str | None:
        """:meth:`schema` as a JSON Schema, as JSON in its own order, in which the answer will be
        written. Raises :class:`TaskError` for what is none."""
        try:
            schema = self.schema(part)
            return None if schema is None else _json_schema(schema)
        except Exception as error:
            about = f" for {part!r}" if part else ""
            raise TaskError(
                f"task {self.name!r}: its output_schema{about} is none: {explain(error)}"
            ) from error

    def parsed(self, output_text: str, sample: dict[str, Any], part: str = WHOLE) -> dict[str, Any]:
        """:meth:`parse`, checked. Raises :class:`TaskError` if the result is no dict or holds a
        reserved name, and :class:`ValueError` for a text that does not follow the schema; what the
        user's own code raises passes through."""
        schema = self.schema(part)
        answer = output_text if schema is None else _validated(output_text, schema)
        fields = self.parse(answer, {**sample, "__part": part} if part else sample)
        if not isinstance(fields, dict):
            raise TaskError(
                f"task {self.name!r}: parse must return a dict with text keys, it returned "
                f"{fields!r:.200}"
            )
        self._check_names(fields, "parse")
        return fields

    def _check_names(self, named: dict[Any, Any], method: str) -> None:
        for name in named:
            if not isinstance(name, str):
                raise TaskError(
                    f"task {self.name!r}: {method} must return a dict with text keys, it returned "
                    f"{named!r:.200}"
                )
        reserved = [n for n in named if n.startswith("__") or n in RESERVED_FIELDS]
        if reserved:
            raise TaskError(
                f"task {self.name!r}: {method} returned {', '.join(map(repr, sorted(reserved)))}; "
                "names that start with '__', 'input' and 'output_text' are reserved, use another"
            )


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, list):
        return False
    for message in messages:  # of each sample: all() takes twice as long
        if not (isinstance(message, dict) and "role" in message and "content" in message):
            return False
    return bool(messages)


def checked_names(names: Any, place: str) -> tuple[str, ...]:
    """``names`` of fields. Raises :class:`TaskError`, which says where they stand, if they are
    something else: ``("fps")`` is one text."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TaskError(f'{place} must be a tuple of names, such as ("fps",); got {names!r:.200}')
    return tuple(names)


def _json_schema(schema: Any) -> str:
    """Raises :class:`TypeError` or :class:`ValueError` for what is no schema."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _model_schema(schema)
    if not isinstance(schema, dict):
        raise TypeError(
            "expected a pydantic model (the class, not an object of it) or a JSON Schema (a dict), "
            f"got {schema!r:.200}"
        )
    text = json.dumps(schema)
    _validator(text)
    return text


@cache
def _model_schema(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema())


@cache
def _validator(text: str) -> Validator:
    """Raises :class:`ValueError` for what is no schema."""
    import jsonschema

    schema = json.loads(text)
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON Schema, at {error.json_path}: {error.message:.200}") from None
    return kind(schema)


def _validated(output_text: str, schema: Schema) -> Any:
    """The object in ``output_text``. Raises :class:`ValueError` where it does not follow
    ``schema``."""
    if isinstance(schema, type):
        try:
            return schema.model_validate_json(output_text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the top"
            raise ValueError(f"the answer at {place}: {first['msg']}") from error
    from jsonschema.exceptions import best_match

    try:
        answer = json.loads(output_text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the answer is not JSON: {error}") from error
    # as jsonschema.validate does, which would check the schema itself each time, too
    error = best_match(_validator(json.dumps(schema)).iter_errors(answer))
    if error is not None:
        raise ValueError(f"the answer at {error.json_path}: {error.message:.200}")
    return answer

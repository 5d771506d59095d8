"""The schemas of answers: pydantic models, JSON Schemas and lists of texts."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_CONTROL = re.compile(r"[\x00-\x1f]")

Schema = type[BaseModel] | dict[str, Any] | list[str]


def schema_text(schema: Any) -> str:
    """``schema`` as the text of a JSON Schema. The fields keep their order, in which the answer is
    generated. A list of texts, one of which is the answer, stays a list.

    Raises :class:`TypeError` or :class:`ValueError` if it is not a schema.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _model_schema(schema)
    if isinstance(schema, list) and schema and all(isinstance(text, str) for text in schema):
        return json.dumps(schema)
    if not isinstance(schema, dict):
        raise TypeError(
            "expected a pydantic model (the class, not an object of it), a JSON Schema (a dict) or "
            f"a list of texts, got {schema!r:.200}"
        )
    text = json.dumps(schema)
    _validator(text)
    return text


def validated(output_text: str, schema: Schema) -> Any:
    """The object in ``output_text``: an instance of the pydantic model, the value of the JSON, or
    the text of the list.

    Raises :class:`ValueError` if it does not follow ``schema``.
    """
    if isinstance(schema, type):
        try:
            return schema.model_validate_json(_escaped(output_text))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the top"
            raise ValueError(f"the answer at {place}: {first['msg']}") from error
    if isinstance(schema, list):
        found = [text for text in schema if text.strip() == output_text.strip()]
        if not found:
            raise ValueError(f"the answer {output_text!r:.80} is none of {', '.join(schema):.200}")
        return output_text if output_text in found else found[0]
    from jsonschema.exceptions import best_match

    try:
        answer = json.loads(output_text, strict=False)
    except json.JSONDecodeError as error:
        raise ValueError(f"the answer is not JSON: {error}") from error
    # jsonschema.validate does the same, but checks the schema itself each time.
    fault = best_match(_validator(json.dumps(schema)).iter_errors(answer))
    if fault is not None:
        raise ValueError(f"the answer at {fault.json_path}: {fault.message:.200}")
    return answer


def _escaped(output_text: str) -> str:
    """JSON without bare control characters in its texts: xgrammar 0.2.8, vLLM's backend, lets them
    through in a text with a limited length, and pydantic refuses them."""
    if _CONTROL.search(output_text) is None:
        return output_text
    try:
        return json.dumps(json.loads(output_text, strict=False))
    except ValueError:
        return output_text


@lru_cache  # Of a limited size: a task may make a model for each sample.
def _model_schema(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema())


@lru_cache
def _validator(text: str) -> Validator:
    """Raises :class:`ValueError` if ``text`` is not a JSON Schema."""
    import jsonschema

    schema = json.loads(text)
    validator = jsonschema.validators.validator_for(schema)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON Schema, at {error.json_path}: {error.message:.200}") from None
    return validator(schema)

"""The base class of all sections of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]  # Seconds, GB and the like, with room to spare.
NonNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, and an unknown key is an error. The docstrings of the
    keys are their documentation, see :mod:`video_pipeline.config.generate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML's ``yes`` and ``on`` are booleans, and Python takes True for 1."""
        if isinstance(value, bool):
            annotation: Any = cls.model_fields[str(info.field_name)].annotation
            types = {getattr(kind, "__origin__", kind) for kind in get_args(annotation)}
            if not {annotation, *types}.isdisjoint({int, float}):
                raise PydanticCustomError("number_type", "a number")
        return value

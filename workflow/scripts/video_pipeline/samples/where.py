"""``data.where``: the condition that decides which samples are asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from video_pipeline.common.condition import Condition, ConditionError
from video_pipeline.common.suggest import did_you_mean
from video_pipeline.config import Config
from video_pipeline.errors import UserError

SIZE_FIELDS = frozenset({"width", "height"})
"""Fields that need a decoded frame: the header may not say how the picture is turned."""

HEADER_FIELDS = frozenset({"duration", "fps", "codec", *SIZE_FIELDS})
"""Fields of the video that a condition may use. The sample's own field goes first."""

_OF_SOME_RECORDS = ("__reasoning", "damaged", "previous")
"""Fields that only some records have, whatever the task."""


class HeaderNeeded(Exception):
    """The condition depends on the header of the sample's video."""


class Where:
    """The condition of a run.

    Attributes:
        may_need_header: Whether the headers of some videos may have to be read.
        needs_size: Whether their widths or heights may be needed.
        unfound: Fields of the condition that no sample has had so far.
        known: The fields of a sample, to name the most similar one.
    """

    def __init__(self, text: str) -> None:
        self._condition = Condition(text)
        self.may_need_header = bool(self._condition.names & HEADER_FIELDS)
        self.needs_size = bool(self._condition.names & SIZE_FIELDS)
        self.unfound = {path for path in self._condition.needed if not self._is_common(path)}
        self.known: set[str] = set()

    @classmethod
    def of(cls, config: Config) -> Where | None:
        """The condition of ``config``, if it has one."""
        return None if config.data.where is None else cls(config.data.where)

    @staticmethod
    def _is_common(path: str) -> bool:
        return path in HEADER_FIELDS or path.removeprefix("previous.") in _OF_SOME_RECORDS

    def holds(
        self, raw: Mapping[str, Any], header: Callable[[], Mapping[str, Any]] | None = None
    ) -> bool | None:
        """Whether the condition holds for the input object ``raw``; None if that depends on a field
        which is missing or null. ``header`` reads the fields of the video's header.

        Raises:
            HeaderNeeded: That depends on the header, and ``header`` is None.
            ValueError: A value has a type that does not fit.
        """
        if self.unfound:
            self.unfound = {path for path in self.unfound if not _has(raw, path)}
            if self.unfound and not self.known:
                self.known = _names(raw) | HEADER_FIELDS

        def field(name: str) -> Any:
            if name in raw or name not in HEADER_FIELDS:
                return raw.get(name)
            if header is None:
                raise HeaderNeeded
            return header()[name]

        try:
            return self._condition(field)
        except ConditionError as error:
            raise ValueError(f"data.where: {error}") from None

    def check_found(self, unfound: set[str], known: set[str]) -> None:
        """Raise :class:`UserError` if there are fields that no sample has (``unfound``); ``known``
        are the fields of a sample."""
        for path in sorted(unfound, key=self._condition.needed.__getitem__):
            raise UserError(
                f"data.where: column {self._condition.needed[path]}: no sample has a field "
                f"{path!r}{did_you_mean(path, sorted(known))} (in {self._condition.text!r:.200}). "
                "Nothing was started. If it is right that none has it, compare it with null first: "
                f"`{path} is not null and ...`"
            )


def _has(raw: Mapping[str, Any], path: str) -> bool:
    value: Any = raw
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def _names(value: Any, prefix: str = "", depth: int = 3) -> set[str]:
    """The fields of ``value``, such as ``previous.is_safe``."""
    if not isinstance(value, Mapping) or not depth:
        return set()
    names = {f"{prefix}{name}" for name in value}
    return names.union(
        *(_names(inner, f"{prefix}{name}.", depth - 1) for name, inner in value.items())
    )

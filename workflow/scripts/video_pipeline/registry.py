"""Names to classes: how tasks and datasets are found."""

from __future__ import annotations

import difflib
import logging
from typing import Generic, TypeVar

from video_pipeline.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=type)

_BUILT_IN = "video_pipeline."


class Registry(Generic[T]):
    """The registered classes of one kind.

    A user's class replaces a built-in of the same name, and the log says so; two classes of users
    under one name are an error.
    """

    def __init__(self, kind: str, base: type) -> None:
        self._kind = kind
        self._base = base
        self._classes: dict[str, T] = {}

    def add(self, name: str, cls: T) -> T:
        """Register ``cls`` as ``name``. Raises :class:`UserError` where that cannot be."""
        if not isinstance(name, str) or not name:
            raise UserError(f"{_place(cls)}: give the {self._kind} a name")
        if not (isinstance(cls, type) and issubclass(cls, self._base)):
            raise UserError(
                f"{self._kind} {name!r}: {cls!r} must be a subclass of {self._base.__name__}"
            )
        known = self._classes.get(name)
        if known is not None and _place(known) != _place(cls):
            if not _is_built_in(known) and not _is_built_in(cls):
                raise UserError(
                    f"two {self._kind}s are called {name!r}: {_place(known)} and {_place(cls)}; "
                    "rename one"
                )
            if _is_built_in(cls):  # the user's came first and stays
                return cls
            logger.warning("%s %r: %s replaces the built-in one", self._kind, name, _place(cls))
        self._classes[name] = cls
        return cls

    def get(self, name: str) -> T:
        """The class registered as ``name``; a :class:`UserError` lists the names there are."""
        if name in self._classes:
            return self._classes[name]
        near = difflib.get_close_matches(name, self._classes, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"no {self._kind} is called {name!r};{hint} registered: "
            f"{', '.join(sorted(self._classes))}. Your own are found through run.plugins"
        )


def _is_built_in(cls: type) -> bool:
    return cls.__module__.startswith(_BUILT_IN)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

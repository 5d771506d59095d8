"""The registry of a kind of class, such as tasks or datasets, by name."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any, Generic, TypeVar

from video_pipeline.common.suggest import did_you_mean
from video_pipeline.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=type)


class Registry(Generic[T]):
    """The registered classes of one kind.

    A user's class replaces a built-in class of the same name, and the log says so. Two classes of
    users with the same name are an error.

    Args:
        kind: The word for these classes in messages, for example ``"task"``.
        base: The base class of all of them.
        built_ins: The modules with the built-in classes. They register when the first class is
            looked up, because they import the module of their registry.
    """

    def __init__(self, kind: str, base: type, built_ins: tuple[str, ...]) -> None:
        self._kind = kind
        self._base = base
        self._built_ins = built_ins
        self._classes: dict[str, T] = {}

    def add(self, name: str, cls: T) -> T:
        """Register ``cls`` as ``name``; returns ``cls``.

        Raises :class:`UserError` if it is no complete class of this kind, or the name is taken.
        """
        if not isinstance(name, str) or not name:
            raise UserError(f"{_place(cls)}: give the {self._kind} a name")
        missing = [
            method  # Python checks these for an ABC only, and torch's Dataset is none.
            for method in dir(cls)
            if getattr(getattr(cls, method, None), "__isabstractmethod__", False)
        ]
        if missing:
            raise UserError(
                f"{self._kind} {name!r}: {_place(cls)} must define {', '.join(missing)}"
            )
        if not (isinstance(cls, type) and issubclass(cls, self._base)):
            raise UserError(
                f"{self._kind} {name!r}: {cls!r} must be a subclass of {self._base.__name__}"
            )
        known, winner = self._classes.get(name), cls
        if known is not None and known is not cls and not _is_stale(known):
            users = [other for other in (known, cls) if not is_built_in(other)]
            if len(users) == 2:
                raise UserError(
                    f"two {self._kind}s are called {name!r}: {_place(known)} and {_place(cls)}; "
                    "rename one"
                )
            if users:
                logger.warning(
                    "%s %r: %s replaces the built-in one", self._kind, name, _place(users[0])
                )
                winner = users[0]
        self._classes[name] = winner
        return cls

    def get(self, name: str) -> T:
        """The class registered as ``name``; a :class:`UserError` lists the names there are."""
        for module in self._built_ins:
            import_module(module)
        if name in self._classes:
            return self._classes[name]
        hint = did_you_mean(name, self._classes) or ";"
        found: list[type[Any]] = [self._base]
        for cls in found:  # It grows: classes below these are found, too.
            found += cls.__subclasses__()
        users = {_place(c) for c in found if not (is_built_in(c) or c.__subclasses__())}
        forgotten = sorted(users - set(map(_place, self._classes.values())))
        raise UserError(
            f"no {self._kind} is called {name!r}{hint} registered: "
            f"{', '.join(sorted(self._classes))}. Your own are found through run.plugins"
            + "".join(f"; {place} lacks @register_{self._kind}" for place in forgotten)
        )


def is_built_in(cls: type) -> bool:
    """Whether a class is the project's own."""
    return cls.__module__.startswith("video_pipeline.")


def _is_stale(cls: type) -> bool:
    """Whether the module of ``cls`` was loaded again after it registered."""
    if is_built_in(cls):
        return False
    module = sys.modules.get(cls.__module__)
    return module is not None and getattr(module, cls.__name__, None) is not cls


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

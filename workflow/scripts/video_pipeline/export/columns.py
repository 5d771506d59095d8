"""Chooses the Arrow types that hold the JSON values of all records, without loss.

There are two passes: :meth:`Columns.see` looks at every record, then :meth:`Columns.table` makes
tables of one schema. Values without a common type become JSON text, so nothing fails, nothing is
coerced and no value is lost. Only a ``null`` and a missing field cannot be told apart.

pyarrow's own inference is not good enough: ``pyarrow.json`` takes dates for times and rounds large
whole numbers, and ``pa.array`` fails on mixed values without naming their field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import orjson
import pyarrow as pa

MAX_NAMES = 100
"""Objects with more names, over all records, are maps whose names are data. They become JSON text.
"""

MAX_DEPTH = 16
"""Values nested deeper than this are JSON text."""

OTHERS = "__others"
"""The column of JSON objects for the fields of records beyond :data:`MAX_NAMES`."""

_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)
_EXACT_IN_FLOAT64 = range(-(2**53), 2**53 + 1)


class Column:
    """The values of one field that were seen, over all records."""

    __slots__ = ("_depth", "_fields", "_high", "_items", "_kinds", "_low", "is_json", "type")

    def __init__(self, depth: int = 0) -> None:
        self.is_json = False  # Whether they become JSON text, because no type holds all of them.
        self.type = pa.string()  # The Arrow type, after finish.
        self._depth = depth
        self._kinds: set[type] = set()
        self._low = self._high = 0
        self._fields: dict[str, Column] = {}
        self._items: Column | None = None

    def see(self, value: Any) -> None:
        """Take one more value, as orjson reads it, into account."""
        if value is None or self.is_json:
            return
        kind = type(value)
        if kind not in self._kinds:
            self._kinds.add(kind)
            if not (len(self._kinds) == 1 or self._kinds == {int, float}):
                return self._give_up()
        if kind is int:
            self._low, self._high = min(self._low, value), max(self._high, value)
        elif kind is dict:
            self._see_object(value)
        elif kind is list:
            self._see_list(value)

    def _see_object(self, value: dict[str, Any]) -> None:
        for name, entry in value.items():
            column = self._fields.get(name)
            if column is None:
                if len(self._fields) == MAX_NAMES or self._depth == MAX_DEPTH:
                    return self._give_up()
                column = self._fields[name] = Column(self._depth + 1)
            column.see(entry)

    def _see_list(self, value: list[Any]) -> None:
        if self._depth == MAX_DEPTH:
            return self._give_up()
        if self._items is None:
            self._items = Column(self._depth + 1)
        for entry in value:
            self._items.see(entry)

    def _give_up(self) -> None:
        self.is_json = True
        self._fields, self._items = {}, None

    def finish(self) -> None:
        """Choose the type, from the inside out, after all values were seen."""
        for inner in (*self._fields.values(), *([self._items] if self._items else [])):
            inner.finish()
        common = None if self.is_json else self._common_type()
        if common is None:
            self._give_up()
        else:
            self.type = common

    def _common_type(self) -> pa.DataType | None:
        """The type that holds all values; None if there is none."""
        kinds = self._kinds
        if kinds <= {str}:  # pyarrow 26 reads some lists of its type null back shorter.
            return pa.string()
        if kinds == {bool}:
            return pa.bool_()
        if kinds == {int}:
            fitting = ((pa.int64(), _INT64), (pa.uint64(), _UINT64))
            return next((type_ for type_, range_ in fitting if self._within(range_)), None)
        if kinds <= {int, float}:
            return pa.float64() if self._within(_EXACT_IN_FLOAT64) else None
        if self._items is not None:  # A JSON text is better than a list of JSON texts.
            return None if self._items.is_json else pa.list_(self._items.type)
        fields = [(name, column.type) for name, column in self._fields.items()]
        return pa.struct(fields) if fields else None  # Parquet has no struct without fields.

    def _within(self, integers: range) -> bool:
        return self._low in integers and self._high in integers

    @property
    def is_null(self) -> bool:
        """Whether all values are ``null``."""
        return not self.is_json and not self._kinds

    @property
    def is_mixed(self) -> bool:
        """Whether whole numbers are written as floats."""
        return not self.is_json and self._kinds == {int, float}

    def converter(self) -> Callable[[Any], Any] | None:
        """The function that makes the written value; None if the value is written as it is."""
        if self.is_json:
            return _json_text
        converters = {name: column.converter() for name, column in self._fields.items()}
        fields = {name: convert for name, convert in converters.items() if convert}
        if fields:
            return lambda value: (
                value and {n: fields[n](v) if n in fields else v for n, v in value.items()}
            )
        item = self._items.converter() if self._items else None
        return partial(_converted_list, item) if item else None

    def leaves(self, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Column]]:
        """This column at ``path``; for a struct its fields instead, at paths with their names."""
        if not pa.types.is_struct(self.type):
            yield path, self
            return
        for name, column in self._fields.items():
            yield from column.leaves((*path, name))

    def walk(self, name: str) -> Iterable[tuple[str, Column]]:
        """This column, called ``name``, and all those inside, by their paths."""
        yield name, self
        for inner, column in self._fields.items():
            yield from column.walk(f"{name}.{inner}")
        if self._items:
            yield from self._items.walk(f"{name}[]")


class Columns:
    """The columns of a table of records, by name; always those of ``example``, which come first."""

    def __init__(self, example: dict[str, Any]) -> None:
        self.columns: dict[str, Column] = {}
        self._has_others = False
        self._converters: dict[str, Callable[[Any], Any] | None] = {}
        self.see(example)

    def see(self, record: dict[str, Any]) -> None:
        """Take one more record into account."""
        for name, value in record.items():
            column = self.columns.get(name)
            if column is None:
                if len(self.columns) == MAX_NAMES:
                    self._has_others = True
                    continue
                column = self.columns[name] = Column()
            column.see(value)

    def finish(self) -> None:
        """Choose the types, after all records were seen."""
        if self._has_others:
            self.columns[OTHERS] = Column()
            self.columns[OTHERS].is_json = True
        for column in self.columns.values():
            column.finish()
        self._converters = {name: column.converter() for name, column in self.columns.items()}

    def table(self, records: list[dict[str, Any]]) -> pa.Table:
        """Records that were all seen, as a table, after :meth:`finish`."""
        if self._has_others:
            records = [self._with_others(record) for record in records]
        arrays = []
        for name, column in self.columns.items():
            convert = self._converters[name]
            values = [record.get(name) for record in records]
            values = [convert(value) for value in values] if convert else values
            arrays.append(pa.array(values, column.type))
        return pa.Table.from_arrays(arrays, list(self.columns))

    def leaves(self) -> list[tuple[tuple[str, ...], Column]]:
        """The columns after each struct is replaced by its fields, at any depth, with the paths of
        the fields; in the order of ``pyarrow.Table.flatten``."""
        return [leaf for name, column in self.columns.items() for leaf in column.leaves((name,))]

    def _with_others(self, record: dict[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in record.items() if name not in self.columns}
        return {**record, OTHERS: others or None}


def _converted_list(convert: Callable[[Any], Any], values: list[Any] | None) -> Any:
    return values and [convert(value) for value in values]


def _json_text(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()

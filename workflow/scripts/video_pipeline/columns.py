"""Typed columns: which Arrow types hold the JSON values of all records, without loss.

Two passes: :meth:`Columns.see` looks at every record, then :meth:`Columns.table` makes tables of
one schema. What has no type of its own becomes a column of JSON text, so nothing fails, nothing is
coerced and no value is lost; only whether a field was ``null`` or missing cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pyarrow as pa

MAX_NAMES = 100
"""Objects with more names, over all records, are maps whose names are data: JSON text."""

MAX_DEPTH = 16
"""Values nested deeper than this are JSON text."""

OTHERS = "__others"
"""The column of JSON objects for the fields of records beyond :data:`MAX_NAMES`."""

_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)
_EXACT_IN_FLOAT64 = range(-(2**53), 2**53 + 1)


class Column:
    """What was seen of the values of one field, over all records.

    Attributes:
        is_json: They are written as JSON text: no one type holds them.
    """

    __slots__ = ("_depth", "_fields", "_high", "_items", "_kinds", "_low", "is_json")

    def __init__(self, depth: int = 0) -> None:
        self.is_json = False
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
        """All values were seen: decide, from the inside out, what cannot have a type."""
        for inner in self._inner():
            inner.finish()
        if not self._has_type():
            self._give_up()

    def _has_type(self) -> bool:
        if self.is_json:
            return False
        if self._kinds == {int}:
            return self._within(_INT64) or self._within(_UINT64)
        if self._kinds == {int, float}:
            return self._within(_EXACT_IN_FLOAT64)
        if self._kinds == {dict}:
            return bool(self._fields)  # Parquet has no struct without fields
        if self._kinds == {list}:
            return not self._items.is_json  # rather one text than a list of texts
        return True

    def _within(self, integers: range) -> bool:
        return self._low in integers and self._high in integers

    def _inner(self) -> list[Column]:
        return [*self._fields.values(), *([self._items] if self._items else [])]

    @property
    def is_null(self) -> bool:
        """Whether there are no values but ``null``."""
        return not self.is_json and not self._kinds

    @property
    def is_mixed(self) -> bool:
        """Whether whole numbers stand among floats: they are written as floats that equal them."""
        return not self.is_json and self._kinds == {int, float}

    @property
    def type(self) -> pa.DataType:
        """The Arrow type, after :meth:`finish`. Nothing but nulls are nulls of type string: of
        lists of Arrow's type null, pyarrow 26 reads some back shorter than they were."""
        if self.is_json or self._kinds <= {str}:
            return pa.string()
        if self._kinds == {bool}:
            return pa.bool_()
        if self._kinds == {int}:
            return pa.int64() if self._within(_INT64) else pa.uint64()
        if self._kinds == {dict}:
            return pa.struct([(name, column.type) for name, column in self._fields.items()])
        if self._kinds == {list}:
            return pa.list_(self._items.type)
        return pa.float64()

    def converter(self) -> Callable[[Any], Any] | None:
        """What makes of a value the one to be written, None where that is the value itself."""
        if self.is_json:
            return _json_text
        fields = {name: column.converter() for name, column in self._fields.items()}
        fields = {name: convert for name, convert in fields.items() if convert}
        if fields:
            return lambda value: (
                value
                and {n: fields[n](entry) if n in fields else entry for n, entry in value.items()}
            )
        item = self._items.converter() if self._items else None
        if item:
            return lambda value: value and [item(entry) for entry in value]
        return None

    def walk(self, name: str) -> Iterable[tuple[str, Column]]:
        """This column, called ``name``, and all those inside, by their paths."""
        yield name, self
        for inner, column in self._fields.items():
            yield from column.walk(f"{name}.{inner}")
        if self._items:
            yield from self._items.walk(f"{name}[]")


class Columns:
    """The columns of a table of records.

    Attributes:
        columns: By name. Those of ``example`` come first, whatever the records hold.
    """

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
        """All records were seen."""
        if self._has_others:
            self.columns[OTHERS] = Column()
            self.columns[OTHERS].is_json = True
        for column in self.columns.values():
            column.finish()
        self._converters = {name: column.converter() for name, column in self.columns.items()}

    @property
    def schema(self) -> pa.Schema:
        """The schema, after :meth:`finish`."""
        return pa.schema([(name, column.type) for name, column in self.columns.items()])

    def table(self, records: list[dict[str, Any]]) -> pa.Table:
        """Records that were all seen, as a table of :attr:`schema`."""
        if self._has_others:
            records = [self._with_others(record) for record in records]
        arrays = []
        for field in self.schema:
            convert = self._converters[field.name]
            values = [record.get(field.name) for record in records]
            values = [convert(value) for value in values] if convert else values
            arrays.append(pa.array(values, field.type))
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _with_others(self, record: dict[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in record.items() if name not in self.columns}
        return {**record, OTHERS: others or None}


def _json_text(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()

"""The conditions of ``data.where``, in the syntax of Python's expressions.

A condition reaches nothing of Python. A name or an attribute is a field of JSON data, never a
method. It calls only :data:`FUNCTIONS`. :class:`Condition` refuses all syntax but :data:`_ALLOWED`.
A missing field is null, and what follows from it is unknown (None), as in SQL.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from simpleeval import EvalWithCompoundTypes, InvalidExpression

from video_pipeline.common.suggest import did_you_mean

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "len": len,
    "lower": operator.methodcaller("lower"),
}

_ALLOWED = (
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
    *(ast.In, ast.NotIn, ast.Is, ast.IsNot),
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Load, ast.Constant, ast.List, ast.Tuple),
    ast.Call,
)

_CONSTANTS = {"true": True, "false": False, "null": None}
"""The spelling of JSON and YAML."""


class ConditionError(ValueError):
    """A mistake in a condition, or a value that it cannot judge; the message has the column."""

    def __init__(self, node: ast.AST, message: str) -> None:
        super().__init__(f"column {getattr(node, 'col_offset', 0) + 1}: {message}")


class Condition:
    """A condition on the fields of a sample.

    Attributes:
        text: The condition, as it was written.
        names: The names that it begins with: ``previous`` for ``previous.is_safe``.
        needed: The fields that some sample must have, such as ``previous.is_safe``, and the column
            of each. A field that the condition compares with null may be missing everywhere.
    """

    def __init__(self, text: str) -> None:
        """Raises :class:`ValueError` with the column of the first mistake."""
        self.text = text
        line = " ".join(text.splitlines())  # Messages name a column, and no line.
        try:
            self._tree = ast.parse(line.strip(), mode="eval").body
            _check(self._tree)
            self._tree = _Rewriter().visit(self._tree)
        except SyntaxError as error:
            # An offset of 0 stands for the end.
            node = ast.Name("", col_offset=(error.offset or len(line) + 1) - 1)
            hint = "; write `and`, `or`, `not`" if set(line) & set("&|!") else ""
            raise ConditionError(node, f"{error.msg}{hint}") from None
        except (RecursionError, MemoryError):
            raise ConditionError(ast.Name(""), "nested too deeply") from None
        fields = list(_fields(self._tree))
        self.names = frozenset(path.partition(".")[0] for path, _, _ in fields)
        tested = {path for path, _, is_test in fields if is_test}
        self.needed: dict[str, int] = {}
        for path, column, _ in fields:
            if path not in tested:
                self.needed.setdefault(path, column)
        self._evaluator = _Evaluator()

    def __call__(self, field: Callable[[str], Any]) -> bool | None:
        """Whether the condition holds; None if that depends on what is null.

        Args:
            field: Gives the value of a name, None if there is none.

        Raises :class:`ConditionError` for values of the wrong type, and what ``field`` raises.
        """
        return _truth(self._tree, self._evaluator.evaluate(self._tree, field))


def _check(node: ast.AST) -> None:
    """Raise :class:`ConditionError` if ``node`` holds syntax that a condition may not have."""
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name not in FUNCTIONS or node.keywords:
            known = ", ".join(FUNCTIONS)
            raise ConditionError(
                node, f"no function {name!r:.40}{did_you_mean(name, FUNCTIONS)} (known: {known})"
            )
        children = [*node.args]
    elif not isinstance(node, _ALLOWED) or not all(
        isinstance(child, _ALLOWED) or hasattr(child, "col_offset") for child in children
    ):
        raise ConditionError(node, f"`{ast.unparse(node):.60}` is not possible in a condition")
    elif isinstance(node, ast.Constant) and not isinstance(
        node.value, str | int | float | bool | None
    ):
        raise ConditionError(node, f"expected text, a number, true, false or null: {node.value!r}")
    elif isinstance(node, ast.Compare):
        for test, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(test, ast.Is | ast.IsNot) and not _is_null(right):
                raise ConditionError(right, "`is` compares with null alone; write `==`")
    for child in children:
        _check(child)


def _is_null(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or (
        isinstance(node, ast.Name) and node.id == "null"
    )


class _Rewriter(ast.NodeTransformer):
    """Reads true, false and null as JSON spells them, and ``== null`` as ``is null``."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in _CONSTANTS:
            return ast.copy_location(ast.Constant(_CONSTANTS[node.id]), node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        is_test = {ast.Eq: ast.Is(), ast.NotEq: ast.IsNot()}
        node.ops = [
            is_test.get(type(test), test) if _is_null(right) else test
            for test, right in zip(node.ops, node.comparators, strict=True)
        ]
        return node


def _fields(node: ast.AST, is_test: bool = False) -> Iterator[tuple[str, int, bool]]:
    """The fields in ``node``: path, column, and whether they are only compared with null."""
    if isinstance(node, ast.Name | ast.Attribute):
        path, base = [], node
        while isinstance(base, ast.Attribute):
            path.append(base.attr)
            base = base.value  # type: ignore[assignment]
        if isinstance(base, ast.Name):
            yield ".".join([base.id, *reversed(path)]), node.col_offset + 1, is_test
            return
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    is_test = isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot)
    for child in children:
        yield from _fields(child, is_test)


def _truth(node: ast.AST, value: Any) -> bool | None:
    """``value``, which must be true, false or null: as a truth, the text "no" would be true."""
    if value is None or type(value) is bool:
        return value
    raise ConditionError(
        node, f"`{ast.unparse(node)}` is {value!r:.40}, which is neither true nor false"
    )


class _Evaluator(EvalWithCompoundTypes):  # type: ignore[misc]
    """simpleeval's evaluator, with fields instead of attributes, and SQL's null."""

    _field: Callable[[str], Any]

    def __init__(self) -> None:
        super().__init__(functions={}, names={})
        self.nodes |= {
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.Subscript: self._subscript,
            ast.BoolOp: self._bool_op,
            ast.UnaryOp: self._unary_op,
            ast.BinOp: self._bin_op,
            ast.Compare: self._comparison,
            ast.Call: self._call,
        }

    def evaluate(self, node: ast.AST, field: Callable[[str], Any]) -> Any:
        self._field = field
        return self._eval(node)

    def _eval(self, node: ast.AST) -> Any:
        try:
            return self.nodes[type(node)](node)
        except ConditionError:
            raise
        except (TypeError, ArithmeticError, AttributeError, InvalidExpression) as error:
            raise ConditionError(node, f"`{ast.unparse(node)}`: {error}") from None

    def _name(self, node: ast.Name) -> Any:
        return self._field(node.id)

    def _attribute(self, node: ast.Attribute) -> Any:
        value = self._eval(node.value)
        return value.get(node.attr) if isinstance(value, Mapping) else None

    def _subscript(self, node: ast.Subscript) -> Any:
        value, key = self._eval(node.value), self._eval(node.slice)
        if isinstance(value, Mapping):
            return value.get(key)
        if isinstance(value, list | str) and type(key) is int:
            return value[key] if -len(value) <= key < len(value) else None
        return None

    def _bool_op(self, node: ast.BoolOp) -> bool | None:
        decides = isinstance(node.op, ast.Or)  # One true decides `or`, one false decides `and`.
        result: bool | None = not decides
        for operand in node.values:
            value = _truth(operand, self._eval(operand))
            if value is decides:
                return decides
            if value is None:
                result = None
        return result

    def _unary_op(self, node: ast.UnaryOp) -> Any:
        value = self._eval(node.operand)
        if isinstance(node.op, ast.Not):
            truth = _truth(node.operand, value)
            return None if truth is None else not truth
        return None if value is None else -value

    def _bin_op(self, node: ast.BinOp) -> Any:
        left, right = self._eval(node.left), self._eval(node.right)
        if left is None or right is None:
            return None
        return self.operators[type(node.op)](left, right)

    def _comparison(self, node: ast.Compare) -> bool | None:
        left, result = self._eval(node.left), True
        for test, operand in zip(node.ops, node.comparators, strict=True):
            right = self._eval(operand)
            if isinstance(test, ast.Is | ast.IsNot):
                holds = (left is None) is isinstance(test, ast.Is)
            elif left is None or right is None:
                return None
            else:
                holds = self.operators[type(test)](left, right)
            if not holds:
                return False
            left = right
        return result

    def _call(self, node: ast.Call) -> Any:
        arguments = [self._eval(argument) for argument in node.args]
        function = FUNCTIONS[node.func.id]  # type: ignore[attr-defined]
        return None if None in arguments else function(*arguments)

"""Arithmetic that users write: safe, with errors that say where."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Scalar = bool | int | float | str
Evaluator = Callable[[Mapping[str, Scalar]], Scalar]

MAX_LENGTH = 1024
_MAX_DEPTH = 100
# Whole numbers beyond this are nothing that anybody means, and cost memory without limit.
_MAX_BITS = 4096


class ExpressionError(ValueError):
    """Cannot be computed; `position` counts characters of the expression from 0."""

    def __init__(self, expression: str, position: int, problem: str) -> None:
        super().__init__(f"{problem} at position {position} of {expression!r}")
        self.expression = expression
        self.position = position
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression."""

    source: str
    # The keys that it uses.
    names: frozenset[str]
    _evaluate: Evaluator

    def __call__(self, values: Mapping[str, Scalar]) -> Scalar:
        """Compute; raises `ExpressionError` for a value that is missing or out of its domain."""
        return self._evaluate(values)

    def number(self, values: Mapping[str, Scalar]) -> int | float:
        """Compute what must be a number."""
        result = self(values)
        if isinstance(result, bool) or not isinstance(result, int | float):
            raise ExpressionError(self.source, 0, f"gives {result!r}, not a number")
        return result


def parse_expression(source: str) -> Expression:
    """Check an expression: + - * / // % **, comparisons, and/or/not, numbers, text, keys and functions."""
    if len(source) > MAX_LENGTH:
        raise ExpressionError(source[:40] + "…", MAX_LENGTH, f"more than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except SyntaxError as error:
        # An offset of 0 means that something is missing at the end.
        position = error.offset - 1 if error.offset else len(source)
        raise ExpressionError(source, position, "does not parse") from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError(source, 0, "does not parse") from None
    compiler = _Compiler(source)
    evaluate = compiler.build(tree.body, 0)
    return Expression(source, frozenset(compiler.names), evaluate)


def _power(base: float, exponent: float) -> float:
    if isinstance(base, int) and isinstance(exponent, int) and exponent * base.bit_length() > _MAX_BITS:
        raise OverflowError
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("root of a negative number")
    return float(result) if isinstance(result, float) else int(result)


def _multiply(left: float, right: float) -> float:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
        raise OverflowError
    return left * right


_BINARY: dict[type[ast.operator], Callable[..., Scalar]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARE: dict[type[ast.cmpop], Callable[..., bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FUNCTIONS: Mapping[str, Callable[..., Scalar]] = {
    **{name: getattr(math, name) for name in ("cos", "sin", "tan", "acos", "asin", "atan", "radians", "degrees")},
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log10", "floor", "ceil")},
    "round": round,
    "abs": abs,
    "min": min,
    "max": max,
}


class _Compiler:
    """Turns the allowed nodes into closures; whatever is not listed here does not exist."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.names: set[str] = set()
        self._indent = len(source) - len(source.lstrip())

    def build(self, node: ast.expr, depth: int) -> Evaluator:  # noqa: PLR0911  one a kind of node
        if depth > _MAX_DEPTH:
            raise self._error(node, "nested too deeply")
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return lambda _: value
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.build(operand, depth + 1)
                return lambda values: not inner(values)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                change = operator.neg if isinstance(sign, ast.USub) else operator.pos
                return self._numeric(node, change, [self.build(operand, depth + 1)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                sides = [self.build(side, depth + 1) for side in (left, right)]
                return self._numeric(node, _BINARY[type(op)], sides)
            case ast.BoolOp(op=op, values=parts):
                return _joined(isinstance(op, ast.And), [self.build(part, depth + 1) for part in parts])
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.Call():
                return self._call(node, depth)
        raise self._error(node, "not allowed here")

    def _name(self, node: ast.expr, name: str) -> Evaluator:
        self.names.add(name)

        def look_up(values: Mapping[str, Scalar]) -> Scalar:
            try:
                return values[name]
            except KeyError:
                raise self._error(node, f"there is no {name!r}") from None

        return look_up

    def _comparison(self, node: ast.Compare, depth: int) -> Evaluator:
        unknown = [op for op in node.ops if type(op) not in _COMPARE]
        if unknown:
            raise self._error(node, "not a comparison of numbers or text")
        tests = [_COMPARE[type(op)] for op in node.ops]
        sides = [self.build(side, depth + 1) for side in (node.left, *node.comparators)]

        def compare(values: Mapping[str, Scalar]) -> Scalar:
            found = [side(values) for side in sides]
            try:
                return all(test(left, right) for test, left, right in zip(tests, found, found[1:], strict=False))
            except TypeError:
                raise self._error(node, "text and number cannot be compared") from None

        return compare

    def _call(self, node: ast.Call, depth: int) -> Evaluator:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            raise self._error(node, f"only these functions exist: {', '.join(FUNCTIONS)}")
        return self._numeric(node, FUNCTIONS[node.func.id], [self.build(value, depth + 1) for value in node.args])

    def _numeric(self, node: ast.expr, function: Callable[..., Scalar], operands: list[Evaluator]) -> Evaluator:
        def compute(values: Mapping[str, Scalar]) -> Scalar:
            found = [operand(values) for operand in operands]
            for value in found:
                if isinstance(value, str):
                    raise self._error(node, f"{value!r} is text, not a number")
            try:
                result = function(*found)
                finite = math.isfinite(result)  # type: ignore[arg-type]  # numbers in, numbers out
            except (ValueError, ArithmeticError, TypeError) as error:
                raise self._error(node, _said(error)) from None
            if not finite:
                raise self._error(node, "gives no finite number")
            return result

        return compute

    def _error(self, node: ast.expr, problem: str) -> ExpressionError:
        return ExpressionError(self.source, node.col_offset + self._indent, problem)


def _joined(conjunction: bool, parts: list[Evaluator]) -> Evaluator:
    if conjunction:
        return lambda values: all(part(values) for part in parts)
    return lambda values: any(part(values) for part in parts)


def _said(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return "gives a number that is too large"
    if isinstance(error, ZeroDivisionError):
        return "divides by zero"
    return f"cannot be computed: {error}"

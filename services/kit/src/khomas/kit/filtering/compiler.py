"""From a filter to a condition in SQL."""

from collections.abc import Mapping
from typing import Union

from sqlalchemy import and_, or_, true

from khomas.kit.errors import FilterInvalid, told
from khomas.kit.filtering.ast import And, Comparison, Node, Not, Operator, Or, Value
from khomas.kit.filtering.fields import Condition, Field, Unfit, nearest
from khomas.kit.filtering.parser import parse

# More names than these are a list to choose from, no guess.
_MEANT = 3
# `metadata.zenith` is a field in a mapping in a mapping.
Fields = Mapping[str, Union[Field, "Fields"]]


def where(text: str, fields: Fields) -> Condition:
    """Return the condition that a filter stands for; an empty filter lets everything through.

    A comparison with a missing value is false, so NOT and != let it through. Raises `FilterInvalid`.
    """
    node = parse(text)
    return true() if node is None else _condition(node, fields)


def _condition(node: Node, fields: Fields) -> Condition:
    match node:
        case And(parts):
            return and_(*[_condition(part, fields) for part in parts])
        case Or(parts):
            return or_(*[_condition(part, fields) for part in parts])
        case Not(part):
            return _negated(_condition(part, fields))
        case Comparison():
            return _comparison(node, fields)


def _comparison(node: Comparison, fields: Fields) -> Condition:
    field, value = _field(node, fields), node.value
    negated = node.operator is Operator.NOT_EQUALS
    operator: Operator = Operator.EQUALS if negated else node.operator
    if isinstance(field, Mapping):
        field, operator, value = _has_key(node, field)
    try:
        condition = field.condition(operator, value)
    except ValueError as error:
        names = error.nearest if isinstance(error, Unfit) else ()
        raise _invalid(node.value.position, f"{'.'.join(node.path)}: {error}", names) from None
    return _negated(condition) if negated else condition


def _field(node: Comparison, fields: Fields) -> "Field | Fields":
    found: Field | Fields = fields
    for depth, name in enumerate(node.path):
        if not isinstance(found, Mapping) or name not in found:
            inside = ".".join(node.path[:depth])
            names = nearest(name, found) if isinstance(found, Mapping) else []
            problem = f"there is no field {name}" + (f" in {inside}" if inside else "")
            raise _invalid(node.position, problem, [f"{inside}.{one}" if inside else one for one in names])
        found = found[name]
    return found


def _has_key(node: Comparison, fields: Fields) -> tuple[Field, Operator, Value]:
    """Read `metadata:zenith` as `metadata.zenith:*`."""
    name = ".".join(node.path)
    if node.operator is not Operator.HAS:
        raise _invalid(
            node.position, f"{name} is compared by its parts", [f"{name}.{part}" for part in nearest("", fields)]
        )
    field = fields.get(node.value.text)
    if field is None or isinstance(field, Mapping):
        names = nearest(node.value.text, fields)
        raise _invalid(node.value.position, f"there is no field {node.value.text} in {name}", names)
    return field, Operator.HAS, Value("", open_start=True)


def _negated(condition: Condition) -> Condition:
    return condition.is_not(true())


def _invalid(position: int, problem: str, names: "list[str] | tuple[str, ...]") -> FilterInvalid:
    listed = told(names)
    hint = "" if not names else f" Did you mean {listed}?" if len(names) <= _MEANT else f" Choose from {listed}."
    return FilterInvalid(
        f"The filter is wrong at position {position + 1}: {problem}.{hint}",
        position=position + 1,
        nearest=names,
    )

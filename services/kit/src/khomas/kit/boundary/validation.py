"""Checks requests against the protovalidate rules of their message."""

from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from khomas.kit.errors import FieldInvalid, FieldViolation

if TYPE_CHECKING:
    import protovalidate


def check(message: Message) -> None:
    """Raise FieldInvalid with every field that breaks its rule."""
    violations = _validator().collect_violations(message)
    if violations:
        raise FieldInvalid.all_of([_violation(violation) for violation in violations])


@cache
def _validator() -> "protovalidate.Validator":
    """Load the rules' interpreter with the first request: an idle service does without its 10 MiB."""
    import protovalidate

    return protovalidate.Validator()


def _violation(violation: "protovalidate.Violation") -> FieldViolation:
    proto = violation.proto
    elements = proto.field.elements if proto.field else ()
    path = ".".join(f"{element.field_name}{_subscript(element.subscript)}" for element in elements)
    return FieldViolation(path, proto.message or f"breaks the rule {proto.rule_id}")


def _subscript(subscript: Any) -> str:  # Any: a oneof of protobuf-py, of int, bool or str
    return "" if subscript is None else f"[{subscript.value}]"

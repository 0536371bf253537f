"""What a filter says, as a tree."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

_BARE = re.compile(r"[^\s()\"'<>=!:*,\\-][^\s()\"'*\\]*")
_NAME = re.compile(r"[^\s()\"'<>=!:.,*\\-][^\s()\"'<>=!:.,*\\]*")
_WORDS = ("AND", "OR", "NOT")


class Operator(StrEnum):
    """How a field is compared with a value; HAS is `:`, "contains" or "is there"."""

    EQUALS = "="
    NOT_EQUALS = "!="
    LESS = "<"
    LESS_EQUALS = "<="
    GREATER = ">"
    GREATER_EQUALS = ">="
    HAS = ":"


@dataclass(frozen=True, slots=True)
class Value:
    """The right side of a comparison; `*` at an end of the text is a wildcard unless `open_*` is unset."""

    text: str
    # A `*` before or after the text, which is no part of it.
    open_start: bool = False
    open_end: bool = False
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        if self.text and _BARE.fullmatch(self.text) and not self.open_start:
            return self.text + "*" * self.open_end
        if not self.text and self.open_start and not self.open_end:
            return "*"
        quoted = re.sub(r'(["\\*])', r"\\\1", self.text)
        return f'"{"*" * self.open_start}{quoted}{"*" * self.open_end}"'


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field, given by its path, against a value."""

    path: tuple[str, ...]
    operator: Operator
    value: Value
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{'.'.join(map(_name, self.path))} {self.operator} {self.value}"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: "Node"

    def __str__(self) -> str:
        return f"NOT {_grouped(self.part)}"


@dataclass(frozen=True, slots=True)
class And:
    """All of these."""

    parts: tuple["Node", ...]

    def __str__(self) -> str:
        return " AND ".join(map(_grouped, self.parts))


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of these."""

    parts: tuple["Node", ...]

    def __str__(self) -> str:
        return " OR ".join(map(_grouped, self.parts))


Node = Comparison | Not | And | Or


def _grouped(node: Node) -> str:
    return str(node) if isinstance(node, Comparison) else f"({node})"


def _name(name: str) -> str:
    if _NAME.fullmatch(name) and name not in _WORDS:
        return name
    quoted = re.sub(r'(["\\])', r"\\\1", name)
    return f'"{quoted}"'

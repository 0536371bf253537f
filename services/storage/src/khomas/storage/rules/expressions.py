"""What StorageElements a rule means: `media=DISK & (site=hd | tier=1) - scratch*`.

    expression = term { ("|" | "-") term }        from left to right
    term       = factor { "&" factor }
    factor     = "!" factor | "(" expression ")" | word | word "=" word

A word is an id with "*" for anything, or the name of a label; `key=value` asks for id, site, media or a label.
Ids may have "-" inside, so "but not" is a "-" at the beginning of a word: `disk* - disk-old`.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from khomas.api.storage.v1 import storage_element_pb2 as pb
from khomas.storage.errors import ExpressionInvalid

_TOKEN = re.compile(r"\s*(?:(?P<operator>[&|()!=-])|(?P<word>[A-Za-z0-9_*][A-Za-z0-9._*-]*)|(?P<end>$))")
_MAX_DEPTH = 50
_KEYS = ("id", "site", "media")


class Described(Protocol):
    """What an expression looks at."""

    @property
    def id(self) -> str:
        """Return the id."""

    @property
    def site(self) -> str:
        """Return where it is."""

    @property
    def media(self) -> int:
        """Return the kind of media."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Return its labels."""


@dataclass(frozen=True, slots=True)
class Word:
    """An id, or a label that is there."""

    pattern: str
    position: int

    def matches(self, element: Described) -> bool:
        """Tell whether it means this one."""
        return fnmatchcase(element.id, self.pattern) or self.pattern in element.labels


@dataclass(frozen=True, slots=True)
class Attribute:
    """A key with a value."""

    key: str
    pattern: str
    position: int

    def matches(self, element: Described) -> bool:
        """Tell whether it means this one."""
        value = _attributes(element).get(self.key)
        return value is not None and fnmatchcase(value.casefold(), self.pattern.casefold())


@dataclass(frozen=True, slots=True)
class Not:
    """All others."""

    inner: "Node"

    def matches(self, element: Described) -> bool:
        """Tell whether it means this one."""
        return not self.inner.matches(element)


@dataclass(frozen=True, slots=True)
class Both:
    """Those of both sides; with `without`, those of the left that the right has not."""

    left: "Node"
    right: "Node"
    without: bool = False

    def matches(self, element: Described) -> bool:
        """Tell whether it means this one."""
        return self.left.matches(element) and self.right.matches(element) is not self.without


@dataclass(frozen=True, slots=True)
class Either:
    """Those of either side."""

    left: "Node"
    right: "Node"

    def matches(self, element: Described) -> bool:
        """Tell whether it means this one."""
        return self.left.matches(element) or self.right.matches(element)


Node = Word | Attribute | Not | Both | Either


def parse(text: str) -> Node:
    """Read an expression, or raise ExpressionInvalid with the position."""
    reader = _Reader(text)
    node = reader.expression(0)
    if not reader.at_end:
        raise invalid(text, reader.position, "an operator (& | -) is expected here")
    return node


def check_words(text: str, elements: Collection[Described]) -> None:
    """Raise ExpressionInvalid for a word that no StorageElement has, with the nearest ones."""
    keys = {*_KEYS, *(label for element in elements for label in element.labels)}
    for leaf in _leaves(parse(text)):
        if isinstance(leaf, Attribute) and leaf.key not in keys:
            raise invalid(text, leaf.position, f"no StorageElement has {leaf.key!r}{_near(leaf.key, keys)}")
        if not any(leaf.matches(element) for element in elements):
            raise invalid(text, leaf.position, f"no StorageElement matches {_said(leaf)}{_meant(leaf, elements)}")


def invalid(text: str, position: int, problem: str) -> ExpressionInvalid:
    """Say what is wrong and where; positions count from 0."""
    message = f"The expression {text!r} cannot be used: at position {position}, {problem}."
    return ExpressionInvalid(message, position=position, problem=problem)


class _Reader:
    """Reads tokens from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._kind, self._symbol, self.position, self._next = "", "", 0, 0
        self._advance()

    @property
    def at_end(self) -> bool:
        return self._kind == "end"

    def expression(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise invalid(self._text, self.position, f"parentheses are nested deeper than {_MAX_DEPTH}")
        node = self._term(depth)
        while self._symbol in ("|", "-"):
            without = self._symbol == "-"
            self._advance()
            right = self._term(depth)
            node = Both(node, right, without=True) if without else Either(node, right)
        return node

    def _term(self, depth: int) -> Node:
        node = self._factor(depth)
        while self._symbol == "&":
            self._advance()
            node = Both(node, self._factor(depth))
        return node

    def _factor(self, depth: int) -> Node:
        turned = False
        while self._symbol == "!":
            turned = not turned
            self._advance()
        node = self._atom(depth)
        return Not(node) if turned else node

    def _atom(self, depth: int) -> Node:
        begin = self.position
        if self._symbol == "(":
            self._advance()
            node = self.expression(depth + 1)
            if self._symbol != ")":
                raise invalid(self._text, self.position, f"the parenthesis of position {begin} is not closed")
            self._advance()
            return node
        word = self._word("the name of a StorageElement or label is expected here")
        if self._symbol != "=":
            return Word(word, begin)
        self._advance()
        return Attribute(word, self._word(f"a value for {word!r} is expected here"), begin)

    def _word(self, problem: str) -> str:
        if self._kind != "word":
            raise invalid(self._text, self.position, problem)
        word = self._symbol
        self._advance()
        return word

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._next)
        if found is None:
            position = self._next + len(self._text[self._next :]) - len(self._text[self._next :].lstrip())
            raise invalid(self._text, position, f"{self._text[position]!r} means nothing here")
        self._kind = found.lastgroup or "end"
        self._symbol = found[self._kind]
        self.position = found.start(self._kind)
        self._next = found.end()


def _attributes(element: Described) -> Mapping[str, str]:
    media = pb.StorageElement.Media.Name(pb.StorageElement.Media.ValueType(element.media)).removeprefix("MEDIA_")
    return {**element.labels, "id": element.id, "site": element.site, "media": media}


def _leaves(node: Node) -> list[Word | Attribute]:
    match node:
        case Not(inner):
            return _leaves(inner)
        case Both(left, right) | Either(left, right):
            return [*_leaves(left), *_leaves(right)]
        case Word() | Attribute():
            return [node]


def _said(leaf: Word | Attribute) -> str:
    return repr(leaf.pattern if isinstance(leaf, Word) else f"{leaf.key}={leaf.pattern}")


def _meant(leaf: Word | Attribute, elements: Collection[Described]) -> str:
    if isinstance(leaf, Word):
        return _near(leaf.pattern, {element.id for element in elements})
    values = {_attributes(element).get(leaf.key, "") for element in elements} - {""}
    return _near(leaf.pattern, values)


def _near(word: str, known: Collection[str]) -> str:
    names = sorted(known)
    nearest = difflib.get_close_matches(word, names, n=3, cutoff=0.4) or names[:5]
    return f"; did you mean: {', '.join(nearest)}?" if nearest else ""

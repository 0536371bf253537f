"""The filter language of https://google.aip.dev/160: text to tree.

As there, OR binds tighter than AND: `a = 1 AND b = 2 OR b = 3` is `a = 1 AND (b = 2 OR b = 3)`.
"""

import re

from khomas.kit.errors import FilterInvalid
from khomas.kit.filtering.ast import And, Comparison, Node, Not, Operator, Or, Value

# SQLite takes expressions 1000 deep; a person needs a handful.
MAX_COMPARISONS = 300
_MAX_DEPTH = 40

_SPACE = re.compile(r"\s*")
_OPERATOR = re.compile(r"<=|>=|!=|=|<|>|:")
_NAME = re.compile(r"[^\s()\"'<>=!:.,*\\-][^\s()\"'<>=!:.,*\\]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)
# Moments and paths need no quotes, so a bare value may hold nearly everything.
_BARE = re.compile(r"[^\s()\"'\\<>=!][^\s()\"'\\]*")
_WORD = re.compile(r"(AND|OR|NOT)(?=[\s(]|$)")


def parse(text: str) -> Node | None:
    """Read a filter; None if it is empty. Raises `FilterInvalid` with the position of what is wrong."""
    parser = _Parser(text)
    if "\0" in text:
        raise parser.error("no database keeps the sign NUL", text.index("\0"))
    if parser.at_end():
        return None
    node = parser.expression()
    if not parser.at_end():
        raise parser.error("a closing parenthesis has no opening one")
    return node


def comparisons(text: str) -> int:
    """Return how many comparisons a filter has, of `MAX_COMPARISONS` that are possible."""
    parser = _Parser(text)
    if not parser.at_end():
        parser.expression()
    return parser.comparisons


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self.comparisons = 0

    def at_end(self) -> bool:
        self._skip_space()
        return self._position == len(self._text)

    def error(self, problem: str, position: int | None = None) -> FilterInvalid:
        where = self._position if position is None else position
        return FilterInvalid(f"The filter is wrong at position {where + 1}: {problem}.", position=where + 1, nearest="")

    def expression(self) -> Node:
        """Read factors joined by AND or by nothing."""
        parts = [self._factor()]
        while not self.at_end() and self._text[self._position] != ")":
            self._take_word("AND")
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _factor(self) -> Node:
        parts = [self._term()]
        while self._take_word("OR"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _term(self) -> Node:
        if self._take_word("NOT") or self._take("-"):
            return Not(self._simple())
        return self._simple()

    def _simple(self) -> Node:
        if not self._take("("):
            return self._comparison()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.error(f"parentheses are nested deeper than {_MAX_DEPTH}")
        node = self.expression()
        if not self._take(")"):
            raise self.error("a closing parenthesis is missing")
        self._depth -= 1
        return node

    def _comparison(self) -> Comparison:
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS:
            raise self.error(f"there are more than {MAX_COMPARISONS} comparisons")
        start = self._position
        path = [self._name()]
        while self._take(".", spaced=False):
            path.append(self._name())
        self._skip_space()
        operator = _OPERATOR.match(self._text, self._position)
        if operator is None:
            raise self.error(f"one of = != < <= > >= : must follow {'.'.join(path)}")
        self._position = operator.end()
        return Comparison(tuple(path), Operator(operator[0]), self._value(), start)

    def _name(self) -> str:
        quoted = _QUOTED.match(self._text, self._position)
        if quoted:
            self._position = quoted.end()
            return re.sub(r"\\(.)", r"\1", quoted[1] or quoted[2] or "", flags=re.DOTALL)
        name = _NAME.match(self._text, self._position)
        if name is None or _WORD.match(self._text, self._position):
            raise self.error("the name of a field is expected here")
        self._position = name.end()
        return name[0]

    def _value(self) -> Value:
        self._skip_space()
        start = self._position
        quoted = _QUOTED.match(self._text, start)
        found = quoted or _BARE.match(self._text, start)
        if found is None:
            raise self.error("a value is expected here")
        self._position = found.end()
        if quoted is None:
            return _wildcards(found[0], start)
        return _wildcards(quoted[1] if quoted[1] is not None else quoted[2], start)

    def _take(self, symbol: str, *, spaced: bool = True) -> bool:
        if spaced:
            self._skip_space()
        taken = self._text.startswith(symbol, self._position)
        self._position += len(symbol) * taken
        return taken

    def _take_word(self, word: str) -> bool:
        self._skip_space()
        found = _WORD.match(self._text, self._position)
        if found is None or found[1] != word:
            return False
        self._position = found.end()
        self._skip_space()
        return True

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._position)
        self._position = space.end() if space else self._position


def _wildcards(raw: str, position: int) -> Value:
    """Split `*` off the ends of a value; a backslash takes the meaning of the sign that follows."""
    open_start = raw.startswith("*")
    raw = raw[open_start:]
    open_end = re.search(r"(?<!\\)(?:\\\\)*\*$", raw) is not None
    raw = raw[: len(raw) - open_end]
    return Value(re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL), open_start, open_end, position)

"""How header cards and metadata become ObsCore records: rules as data, evaluated without any I/O."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from khomas.api.archive.v1 import release_pb2 as pb
from khomas.archive import obscore
from khomas.archive.errors import MappingInvalid
from khomas.archive.obscore import BY_NAME, COLUMNS, Column, Kind, Scalar
from khomas.kit.expressions import Expression, ExpressionError, parse_expression

Value = Scalar | bool

# What is known of every file, beside its header and its metadata.
CONTEXT: Final = frozenset(
    {"did", "url", "format", "size_kbyte", "collection", "version", "stem", "file_name", "file", "source"}
)
# What a rule need not say.
DEFAULTS: Final = {
    "obs_collection": "#collection",
    "obs_id": "#stem",
    "obs_publisher_did": "#did",
    "access_url": "#url",
    "access_format": "#format",
    "access_estsize": "#size_kbyte",
}
_SIGILS: Final = {"@": "card", "$": "key", "#": "context"}
_REFERENCE: Final = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<sigil>[@$#])(?:\{(?P<braced>[^{}]+)\}|(?P<name>[A-Za-z_][\w.]*))""",
    re.VERBOSE,
)
_PIECE: Final = re.compile(r"\{((?:[@$#]\{[^{}]*\}|[^{}])*)\}")


@dataclass(frozen=True, slots=True)
class Header:
    """The cards of one HDU, without those that have no value."""

    name: str
    cards: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known of one file."""

    headers: Sequence[Header] = ()
    metadata: Mapping[str, Value] = field(default_factory=dict)
    context: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A record, and what is wrong with it: column and problem."""

    record: Mapping[str, Scalar | None]
    problems: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Formula:
    """An expression with the names that it uses: identifier to ("card", "RA_PNT")."""

    expression: Expression
    references: Mapping[str, tuple[str, str]]

    def missing(self, values: Mapping[str, Value]) -> list[str]:
        return sorted(name for name in self.expression.names if name not in values)


@dataclass(frozen=True, slots=True)
class _Template:
    """Text with formulas in braces."""

    texts: tuple[str, ...]
    formulas: tuple[_Formula, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One checked rule."""

    match: str
    hdu: str
    by_reference: bool
    columns: Mapping[str, _Formula | _Template]

    def fits(self, file_name: str) -> bool:
        """Tell whether the rule is meant for a file of this name."""
        return fnmatchcase(file_name, self.match)

    def record(self, known: Known) -> Mapped:
        """Compute the record; what is wrong is told column by column, and the rest is computed all the same."""
        problems: list[tuple[str, str]] = []
        if self.hdu and not any(header.name == self.hdu.upper() for header in known.headers):
            problems.append(("", f"the file has no HDU {self.hdu.upper()}"))
        record: dict[str, Scalar | None] = {}
        for column in COLUMNS:
            formula = self.columns.get(column.name)
            try:
                record[column.name] = None if formula is None else self._value(column, formula, known, problems)
            except ExpressionError as error:
                problems.append((column.name, _readable(error.problem)))
                record[column.name] = None
        told = {name for name, _ in problems}
        problems += [(name, text) for name, text in obscore.problems(record) if name not in told]
        return Mapped(record, tuple(problems))

    def _value(
        self, column: Column, formula: _Formula | _Template, known: Known, problems: list[tuple[str, str]]
    ) -> Scalar | None:
        parts = formula.formulas if isinstance(formula, _Template) else (formula,)
        values = [self._looked_up(part, known) for part in parts]
        missing = [name for part, found in zip(parts, values, strict=True) for name in part.missing(found)]
        if missing:
            if column.required:
                named = ", ".join(_shown(part.references[name]) for part in parts for name in part.missing({}))
                problems.append((column.name, f"must not be NULL, and needs {named}"))
            return None
        results = [part.expression(found) for part, found in zip(parts, values, strict=True)]
        if isinstance(formula, _Template):
            return _typed(column, _filled(formula.texts, results))
        return _typed(column, results[0])

    def _looked_up(self, formula: _Formula, known: Known) -> dict[str, Value]:
        found = {}
        for identifier, (kind, name) in formula.references.items():
            value = self._card(name, known) if kind == "card" else _plain(kind, name, known)
            if value is not None:
                found[identifier] = value
        return found

    def _card(self, name: str, known: Known) -> Value | None:
        for header in known.headers:
            if name in header.cards and self.hdu.upper() in ("", header.name):
                return header.cards[name]
        return None


def rules(mapping: pb.Mapping) -> tuple[Rule, ...]:
    """Check a mapping; raises MappingInvalid."""
    return tuple(_rule(rule) for rule in mapping.rules)


def rule_for(checked: Sequence[Rule], file_name: str) -> Rule | None:
    """Return the first rule that fits."""
    return next((rule for rule in checked if rule.fits(file_name)), None)


def _rule(rule: pb.MappingRule) -> Rule:
    for name in rule.columns:
        if name not in BY_NAME:
            raise MappingInvalid(f"{name} is no column of ObsCore.", column=name, expression=rule.columns[name])
    columns = {**DEFAULTS, **rule.columns}
    return Rule(
        match=rule.match,
        hdu=rule.hdu,
        by_reference=rule.by_reference,
        columns={name: _compiled(BY_NAME[name], source) for name, source in columns.items() if source.strip()},
    )


def _compiled(column: Column, source: str) -> _Formula | _Template:
    try:
        text = _literal(source)
        if text is not None and "{" in text:
            pieces = _PIECE.split(text)
            return _Template(tuple(pieces[::2]), tuple(_formula(piece) for piece in pieces[1::2]))
        formula = _formula(source)
        if not formula.references:
            _typed(column, formula.expression({}))
    except ExpressionError as error:
        message = f"The expression {source!r} of {column.name} cannot be used: {_readable(error.problem)}."
        raise MappingInvalid(message, column=column.name, expression=source) from None
    return formula


def _literal(source: str) -> str | None:
    """Return the text if the source is nothing but text in quotes."""
    try:
        value = ast.literal_eval(source.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _formula(source: str) -> _Formula:
    """Turn @CARD, $key and #name into identifiers and parse what comes out."""
    references: dict[str, tuple[str, str]] = {}

    def identifier(found: re.Match[str]) -> str:
        if found["text"] is not None:
            return found["text"]
        kind, name = _SIGILS[found["sigil"]], found["braced"] or found["name"]
        name = name.upper() if kind == "card" else name
        if kind == "context" and name not in CONTEXT:
            raise ExpressionError(source, found.start(), f"there is no #{name}, only #{', #'.join(sorted(CONTEXT))}")
        key = f"{kind}_{len(references)}"
        references[key] = kind, name
        return key

    expression = parse_expression(_REFERENCE.sub(identifier, source))
    if unknown := sorted(expression.names - references.keys()):
        hint = f"""write @{unknown[0]} for a card, ${unknown[0]} for a metadata key, "{unknown[0]}" for text"""
        raise ExpressionError(source, source.find(unknown[0]), hint)
    return _Formula(expression, references)


def _plain(kind: str, name: str, known: Known) -> Value | None:
    return (known.metadata if kind == "key" else known.context).get(name)


def _typed(column: Column, value: Value) -> Scalar:
    """Make the value fit the column, or raise ExpressionError."""
    if column.kind is Kind.TEXT:
        if not (text := str(value)).isprintable():
            raise ExpressionError("", 0, f"{text!r} has characters that no table takes")
        return text
    if isinstance(value, str | bool):
        raise ExpressionError("", 0, f"{value!r} is not a number")
    if column.kind is Kind.NUMBER:
        return float(value)
    if value != int(value):
        raise ExpressionError("", 0, f"{value} is not a whole number")
    return int(value)


def _filled(texts: Sequence[str], values: Sequence[Value]) -> str:
    parts = [texts[0]]
    for value, text in zip(values, texts[1:], strict=True):
        parts += [str(value), text]
    return "".join(parts)


def _shown(reference: tuple[str, str]) -> str:
    kind, name = reference
    return {"card": f"the card {name}", "key": f"the metadata key {name}", "context": f"#{name}"}[kind]


def _readable(problem: str) -> str:
    return problem.rstrip(".")

"""Text with values in it: "{zenith:02d}" formats as Python does, "{{" is a brace."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from khomas.kit.expressions import Scalar

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELD = re.compile(r"([a-z][a-z0-9_]*)(?::(.*))?", re.DOTALL)
# Three digits of width: a wider field is a mistake, and {x:999999999} a way to eat the memory.
_FORMAT = re.compile(r"(?:.?[<>=^])?[+\- ]?#?0?\d{0,3}[_,]?(?:\.\d{1,3})?([bcdeEfFgGosxX%]?)", re.DOTALL)
_WHOLE = frozenset("bcdoxX")
_FLOATING = frozenset("eEfFgG%")


class TemplateError(ValueError):
    """Cannot be filled; `position` counts characters of the template from 0."""

    def __init__(self, template: str, position: int, problem: str, nearest: str = "") -> None:
        super().__init__(f"{problem} at position {position} of {template!r}")
        self.template = template
        self.position = position
        self.problem = problem
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class _Field:
    key: str
    format: str
    position: int


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template."""

    source: str
    parts: tuple[str | _Field, ...]

    @property
    def keys(self) -> frozenset[str]:
        """Which values it needs."""
        return frozenset(part.key for part in self.parts if isinstance(part, _Field))

    def require(self, known: frozenset[str]) -> None:
        """Raise `TemplateError` for the first key that is not known, with the nearest one."""
        for part in self.parts:
            if isinstance(part, _Field) and part.key not in known:
                raise _unknown(self.source, part, known)

    def fill(self, values: Mapping[str, Scalar]) -> str:
        """Put the values in."""
        return "".join(part if isinstance(part, str) else self._formatted(part, values) for part in self.parts)

    def _formatted(self, field: _Field, values: Mapping[str, Scalar]) -> str:
        if field.key not in values:
            raise _unknown(self.source, field, frozenset(values))
        value = values[field.key]
        if not field.format:
            return scalar_text(value)
        try:
            return format(_number_for(field.format, value), field.format)
        except (ValueError, TypeError):
            problem = f"{value!r} cannot be formatted as {field.format!r}"
            raise TemplateError(self.source, field.position, problem) from None


def parse_template(source: str) -> Template:
    """Check a template."""
    if "{" not in source and "}" not in source:
        return Template(source, (source,) if source else ())
    parts: list[str | _Field] = []
    end = 0
    for found in _PIECE.finditer(source):
        parts.append(source[end : found.start()])
        end = found.end()
        parts.append(found[0][0] if found[0] in ("{{", "}}") else _field(source, found))
    parts.append(source[end:])
    return Template(source, tuple(part for part in parts if part != ""))


def scalar_text(value: Scalar) -> str:
    """Write a value as people do: true and false in lower case, 60.0 as 60.0."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(source: str, found: re.Match[str]) -> _Field:
    field = _FIELD.fullmatch(found[1]) if found[1] is not None else None
    if field is None:
        raise TemplateError(source, found.start(), f"{found[0]!r} is no key; write {{{{ and }}}} for braces")
    form = field[2] or ""
    if not _FORMAT.fullmatch(form):
        raise TemplateError(source, found.start(), f"{form!r} is no format such as 02d or .3f")
    return _Field(field[1], form, found.start())


def _number_for(form: str, value: Scalar) -> Scalar:
    """Values of a list of arguments are text; with a number's format they must read as one."""
    kind = form[-1]
    if kind in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    if kind in _WHOLE:
        return int(value)
    return float(value) if kind in _FLOATING else value


def _unknown(source: str, field: _Field, known: frozenset[str]) -> TemplateError:
    nearest = ", ".join(get_close_matches(field.key, sorted(known), 3))
    hint = f"did you mean {nearest}?" if nearest else f"there are {', '.join(sorted(known)) or 'none'}"
    problem = f"there is no value for {{{field.key}}} ({hint} Write {{{{ for a brace)"
    return TemplateError(source, field.position, problem, nearest)

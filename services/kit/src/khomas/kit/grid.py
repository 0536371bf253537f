"""Grids of parameters: every point is found by its index, none is kept."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from google.protobuf.struct_pb2 import Value

from khomas.kit.expressions import Expression, ExpressionError, Scalar, parse_expression

# A filter has to look at every point; at 2 us each this is a minute.
MAX_FILTERED = 20_000_000


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its key and its values, a `range` or a list."""

    name: str
    values: Sequence[Scalar]


@dataclass(frozen=True, slots=True)
class Grid:
    """The points of some axes in order, the last axis runs fastest, with values derived from them."""

    axes: tuple[Axis, ...]
    derived: tuple[tuple[str, Expression], ...] = ()
    # Numbers of the points that the filter keeps, in the grid without it. None = all.
    _kept: "array[int] | None" = None

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of every point."""
        return (*(axis.name for axis in self.axes), *(name for name, _ in self.derived))

    def __len__(self) -> int:
        return _size(self.axes) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Scalar]:
        """Compute the point with this index; raises `IndexError` past the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._point(index if self._kept is None else self._kept[index])

    def __iter__(self) -> Iterator[dict[str, Scalar]]:
        return (self[index] for index in range(len(self)))

    def _point(self, number: int) -> dict[str, Scalar]:
        positions = []
        for axis in reversed(self.axes):
            number, position = divmod(number, len(axis.values))
            positions.append(position)
        point = {axis.name: axis.values[at] for axis, at in zip(self.axes, reversed(positions), strict=True)}
        for name, expression in self.derived:
            point[name] = expression(point)
        return point


def make_grid(axes: Sequence[Axis], derived: Sequence[tuple[str, str]] = (), keep: str = "") -> Grid:
    """Check and build a grid; `keep` is an expression that is true for the points to keep.

    Raises `ExpressionError` for an expression that does not parse, uses an unknown key, or cannot be
    computed at the first point (with a filter: at any point).
    """
    known = _distinct([axis.name for axis in axes])
    expressions = []
    for name, source in derived:
        expressions.append((name, _using(known, source)))
        if name in known:
            raise ExpressionError(source, 0, f"{name!r} has a value already")
        known.add(name)
    grid = Grid(tuple(axes), tuple(expressions))
    if keep:
        return Grid(grid.axes, grid.derived, _kept(grid, _using(known, keep)))
    if len(grid) > 0:
        _ = grid[0]
    return grid


def axis_values(values: Sequence[Value]) -> list[Scalar]:
    """Take values from the wire, where every number is a float: 60.0 becomes 60."""
    return [_plain(value) for value in values]


def _plain(value: Value) -> Scalar:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    raise ExpressionError(str(value).strip(), 0, "a value of an axis is a number, text, or true or false;")


def _size(axes: Sequence[Axis]) -> int:
    return prod(len(axis.values) for axis in axes)


def _distinct(names: list[str]) -> set[str]:
    for name in names:
        if names.count(name) > 1:
            raise ExpressionError(name, 0, "two axes have this name")
    return set(names)


def _using(known: set[str], source: str) -> Expression:
    expression = parse_expression(source)
    if unknown := sorted(expression.names - known):
        problem = f"there is no {unknown[0]!r}, only {', '.join(sorted(known))}"
        raise ExpressionError(source, source.find(unknown[0]), problem)
    return expression


def _kept(grid: Grid, keep: Expression) -> "array[int]":
    if len(grid) > MAX_FILTERED:
        raise ExpressionError(keep.source, 0, f"a filter looks at {MAX_FILTERED} points at most, not at {len(grid)}")
    return array("q", (number for number, point in enumerate(grid) if keep(point)))

"""From a grid with a target of events to the cells and jobs that it takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor

from khomas.api.bookkeeping.v1 import production_pb2 as pb
from khomas.api.scheduler.v1 import splitter_pb2
from khomas.kit.expressions import Expression, ExpressionError, Scalar, parse_expression
from khomas.kit.grid import Axis, Grid, axis_values, make_grid


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One row of a stage's grid and what it asks for."""

    index: int
    parameters: dict[str, Scalar]
    requested_events: int
    events_per_job: int

    @property
    def jobs(self) -> int:
        """How many jobs reach the target if each produces what is planned."""
        return -(-self.requested_events // self.events_per_job)


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells of a grid stage, computed one at a time."""

    grid: Grid
    requested_events: Expression
    events_per_job: Expression

    def __len__(self) -> int:
        return len(self.grid)

    def __iter__(self) -> Iterator[PlannedCell]:
        return (self.cell(index, point) for index, point in enumerate(self.grid))

    def cell(self, index: int, point: dict[str, Scalar]) -> PlannedCell:
        """Plan one point; events are whole, so the size of a job is rounded down."""
        events = floor(self.events_per_job.number(point))
        if events < 1:
            raise ExpressionError(self.events_per_job.source, 0, f"gives {events} events a job, at least 1 is needed")
        requested = floor(self.requested_events.number(point))
        if requested < 1:
            raise ExpressionError(self.requested_events.source, 0, f"asks for {requested} events, at least 1 is needed")
        return PlannedCell(index, point, requested, events)


def plan(source: pb.GridSource) -> Plan:
    """Check a grid source; raises `ExpressionError` for what cannot be computed."""
    grid = make_grid(
        [_axis(axis) for axis in source.grid.axes],
        [(derived.name, derived.expression) for derived in source.grid.derived],
        source.grid.filter,
    )
    return Plan(
        grid,
        _over(grid, parse_expression(source.requested_events)),
        _over(grid, parse_expression(source.events_per_job)),
    )


def _axis(axis: splitter_pb2.Axis) -> Axis:
    if axis.HasField("range"):
        return Axis(axis.name, range(axis.range.first, axis.range.last + 1, axis.range.step or 1))
    return Axis(axis.name, axis_values(axis.values))


def _over(grid: Grid, expression: Expression) -> Expression:
    if unknown := sorted(expression.names - set(grid.names)):
        problem = f"there is no {unknown[0]!r}, only {', '.join(sorted(grid.names))}"
        raise ExpressionError(expression.source, expression.source.find(unknown[0]), problem)
    return expression

"""Children by a grid of parameters."""

from collections.abc import Sequence

from khomas.api.scheduler.v1 import splitter_pb2 as pb
from khomas.kit.expressions import Scalar
from khomas.kit.grid import Axis, axis_values, make_grid
from khomas.scheduler.splitters.child import Child


class GridSplitter:
    """One child a point."""

    def __init__(self, splitter: pb.GridSplitter) -> None:
        axes = [Axis(axis.name, _values(axis)) for axis in splitter.axes]
        derived = [(one.name, one.expression) for one in splitter.derived]
        self._grid = make_grid(axes, derived, splitter.filter)
        self.names = frozenset(self._grid.names)

    def __len__(self) -> int:
        return len(self._grid)

    def child(self, index: int) -> Child:
        """The point with this index."""
        return Child(self._grid[index])


def _values(axis: pb.Axis) -> Sequence[Scalar]:
    if axis.HasField("range"):
        return range(axis.range.first, axis.range.last + 1, axis.range.step or 1)
    return axis_values(axis.values)

"""What a splitter is, and which one a spec asks for."""

from typing import Protocol

from khomas.api.scheduler.v1 import splitter_pb2 as pb
from khomas.kit.expressions import ExpressionError
from khomas.scheduler.errors import ExpressionInvalid
from khomas.scheduler.intake.frozen import Frozen
from khomas.scheduler.splitters.args import ArgSplitter
from khomas.scheduler.splitters.child import Child
from khomas.scheduler.splitters.count import CountSplitter
from khomas.scheduler.splitters.files import FileSplitter
from khomas.scheduler.splitters.grid import GridSplitter

__all__ = ["Child", "Splitter", "make_splitter"]


class Splitter(Protocol):
    """Finds the children of an array by index."""

    # Keys that every child has a value for.
    names: frozenset[str]

    def __len__(self) -> int: ...

    def child(self, index: int) -> Child:
        """What is special of this child. Raises `ExpressionError` when a value cannot be computed."""


def make_splitter(splitter: pb.Splitter, frozen: Frozen) -> Splitter:
    """Choose and check the splitter. Raises `ExpressionInvalid`."""
    try:
        match splitter.WhichOneof("kind"):
            case "args":
                return ArgSplitter(splitter.args)
            case "grid":
                return GridSplitter(splitter.grid)
            case "files":
                return FileSplitter(splitter.files, frozen.groups)
            case _:
                return CountSplitter(splitter.count)
    except ExpressionError as error:
        raise ExpressionInvalid(str(error), expression=error.expression, position=error.position) from None

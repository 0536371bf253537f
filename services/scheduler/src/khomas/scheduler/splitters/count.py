"""Equal children, told apart by their index."""

from khomas.api.scheduler.v1 import splitter_pb2 as pb
from khomas.scheduler.splitters.child import Child

_EQUAL = Child()


class CountSplitter:
    """So many equal children."""

    names: frozenset[str] = frozenset()

    def __init__(self, splitter: pb.CountSplitter) -> None:
        self._count = splitter.count

    def __len__(self) -> int:
        return self._count

    def child(self, index: int) -> Child:
        """Nothing but the index is special."""
        return _EQUAL

"""Children by lists of arguments."""

from khomas.api.scheduler.v1 import splitter_pb2 as pb
from khomas.scheduler.splitters.child import Child


class ArgSplitter:
    """One child an entry."""

    def __init__(self, splitter: pb.ArgSplitter) -> None:
        self._sets = splitter.sets
        keys = [set(entry.parameters) for entry in self._sets]
        self.names = frozenset(set.intersection(*keys)) if keys else frozenset()

    def __len__(self) -> int:
        return len(self._sets)

    def child(self, index: int) -> Child:
        """What is special of this child."""
        entry = self._sets[index]
        return Child(dict(entry.parameters), tuple(entry.arguments), dict(entry.env))

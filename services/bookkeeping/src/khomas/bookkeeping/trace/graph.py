"""A trace that is being put together."""

from collections.abc import Mapping
from datetime import datetime

from khomas.api.bookkeeping.v1.provenance_pb2 import Trace, TraceEdge, TraceNode


class Graph:
    """Nodes and edges, each once, in the order of their discovery."""

    def __init__(self) -> None:
        self._nodes: dict[str, TraceNode] = {}
        self._edges: dict[tuple[str, str, str], None] = {}
        self._cut_short: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def node(
        self,
        name: str,
        kind: str,
        *,
        uid: str = "",
        summary: str = "",
        time: datetime | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Add a thing, or what was not known of it before."""
        node = self._nodes.setdefault(name, TraceNode(name=name, kind=kind))
        node.uid = node.uid or uid
        node.summary = summary or node.summary
        if time is not None:
            node.time.FromDatetime(time)
        for key, value in (facts or {}).items():
            if value:
                node.facts[key] = value

    def edge(self, start: str, end: str, relation: str) -> None:
        """Relate two things."""
        self._edges[start, end, relation] = None

    def cut_short(self, name: str) -> None:
        """Note that a thing has more files than are followed."""
        self._cut_short[name] = None

    def names(self, kind: str) -> list[str]:
        """Return the things of a kind."""
        return [node.name for node in self._nodes.values() if node.kind == kind]

    def facts(self, kind: str, fact: str) -> dict[str, str]:
        """Return a fact of the things of a kind that have it."""
        return {
            node.name: node.facts[fact] for node in self._nodes.values() if node.kind == kind and fact in node.facts
        }

    def trace(self, subject: str) -> Trace:
        """Return what was found, the subject first."""
        first = [self._nodes[subject]] if subject in self._nodes else []
        rest = [node for node in self._nodes.values() if node.name != subject]
        edges = [TraceEdge(**{"from": start, "to": end}, relation=relation) for start, end, relation in self._edges]
        return Trace(subject=subject, nodes=[*first, *rest], edges=edges, cut_short=self._cut_short)

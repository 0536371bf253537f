"""What a rule would do, without making it."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import rule_pb2, rule_service_pb2
from khomas.kit.database import Database
from khomas.storage.elements.elements import Element, Elements, Usage
from khomas.storage.elements.space import usages
from khomas.storage.links.measures import measured
from khomas.storage.rules.elements import free_bytes, places_of
from khomas.storage.rules.membership import Membership
from khomas.storage.rules.placing import Copy, CopyState, Located, Placer, Wish, planned
from khomas.storage.rules.protection import good_replicas
from khomas.storage.rules.rows import new_row
from khomas.storage.rules.store import Rules


class Previews:
    """Plans rules and forgets the plans."""

    def __init__(self, database: Database, elements: Elements, membership: Membership, rules: Rules) -> None:
        self._database = database
        self._elements = elements
        self._membership = membership
        self._rules = rules

    async def preview(self, given: rule_pb2.ReplicationRule) -> rule_service_pb2.PreviewRuleResponse:
        """Say what a rule would do, where there is space for it, and how long it would take."""
        await self._rules.check(given)
        elements = await self._elements.all()
        async with self._database.read() as connection:
            used = await usages(connection)
            rates = await rates_to(connection, datetime.now(UTC))
        answer = await self._planned(given, elements, used)
        for one in answer.elements:
            one.free_bytes = _free(elements[one.storage_element], used)
            one.rate = rates.get(one.storage_element, 0.0)
        to_fill = [one for one in answer.elements if one.bytes_to_copy]
        if to_fill and all(one.rate for one in to_fill):
            # They are filled side by side.
            answer.time_to_copy.FromSeconds(round(max(one.bytes_to_copy / one.rate for one in to_fill)))
        return answer

    async def _planned(
        self, given: rule_pb2.ReplicationRule, elements: Mapping[str, Element], used: Mapping[str, Usage]
    ) -> rule_service_pb2.PreviewRuleResponse:
        row = new_row(given, "")
        placer = Placer(places_of(given.expression, elements, used))
        together: list[str] = []
        if given.grouping == rule_pb2.ReplicationRule.GROUPING_ALL:
            together = placer.group(given.copies, *(await self._membership.sizes(row)))
        wish = Wish(given.copies, tuple(together))
        answer = rule_service_pb2.PreviewRuleResponse()
        by_element: dict[str, rule_service_pb2.PreviewElement] = {}
        async for files in self._membership.listed(row):
            for file in files:
                located = Located(file.uid, file.name, file.size_bytes, frozenset(good_replicas(file, elements)))
                answer.files += 1
                answer.bytes += file.size_bytes
                for copy in planned(located, (), wish, placer).kept:
                    _count(answer, by_element, copy)
        answer.elements.extend(by_element[name] for name in sorted(by_element))
        return answer


async def rates_to(connection: AsyncConnection, now: datetime) -> dict[str, float]:
    """Return, for StorageElements, the bytes a second of the best link to them."""
    rates: dict[str, float] = {}
    for (_, destination), measure in (await measured(connection, now)).items():
        rates[destination] = max(rates.get(destination, 0.0), measure.rate)
    return {name: rate for name, rate in rates.items() if rate}


def _count(
    answer: rule_service_pb2.PreviewRuleResponse, by_element: dict[str, rule_service_pb2.PreviewElement], copy: Copy
) -> None:
    if copy.state == CopyState.STUCK:
        answer.stuck_copies += 1
        answer.reason = answer.reason or rule_pb2.CopyReason.ValueType(copy.reason)
        return
    name = copy.storage_element
    one = by_element.setdefault(name, rule_service_pb2.PreviewElement(storage_element=name))
    if copy.state == CopyState.OK:
        one.files_there += 1
        return
    one.files_to_copy += 1
    one.bytes_to_copy += copy.size_bytes
    answer.bytes_to_copy += copy.size_bytes


def _free(element: Element, used: Mapping[str, Usage]) -> int:
    free = free_bytes(element, used.get(element.id, Usage()))
    return -1 if free is None else max(free, 0)

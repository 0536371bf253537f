"""Rules as people make, read, change and end them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import rule_pb2, rule_service_pb2
from khomas.kit.auth.principal import allows
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database
from khomas.kit.errors import EtagMismatch, FieldInvalid
from khomas.kit.events import EventLog
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Once
from khomas.kit.paging import Ordering, list_page
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Elements
from khomas.storage.errors import RuleForeign, RuleNotFound, TooFewElements
from khomas.storage.rows import mapping
from khomas.storage.rules import copies
from khomas.storage.rules.evaluation import end
from khomas.storage.rules.explaining import explanation
from khomas.storage.rules.expressions import check_words, parse
from khomas.storage.rules.rows import PREFIX, expire_time, new_row, rule_event, rule_proto
from khomas.storage.rules.starting import Starting
from khomas.storage.rules.tables import rule, rule_copy

_FIELDS = {
    "state": fields.enum(rule.c.state, rule_pb2.ReplicationRule.State),
    **{
        name: fields.text(rule.c[name])
        for name in ("dataset", "directory", "expression", "owner", "origin", "policy", "share", "uid")
    },
    "copies": fields.integer(rule.c.copies),
    "create_time": fields.time(rule.c.create_time),
}
_ORDER = Ordering(
    fields={"create_time": rule.c.create_time, "priority": rule.c.priority}, unique=rule.c.uid, default="create_time"
)
_COPY_FIELDS = {
    "file": fields.text(rule_copy.c.file),
    "storage_element": fields.text(rule_copy.c.storage_element),
    "state": fields.enum(rule_copy.c.state, rule_pb2.ReplicationRule.State),
    "reason": fields.enum(rule_copy.c.reason, rule_pb2.CopyReason),
}
_COPY_ORDER = Ordering(fields={"file": rule_copy.c.file}, unique=rule_copy.c.number, default="file")
_CHANGEABLE = ("lifetime", "priority", "copies", "share", "suspended", "description")


class Rules:
    """Makes rules and tells how they stand; what they want is done elsewhere."""

    def __init__(
        self,
        database: Database,
        once: Once,
        log: EventLog,
        elements: Elements,
        catalog: Catalog,
        starting: Starting,
        pause: timedelta,
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements
        self._catalog = catalog
        self._starting = starting
        self._pause = pause

    async def check(self, given: rule_pb2.ReplicationRule) -> None:
        """Refuse a rule that cannot mean anything, before it is made."""
        if bool(given.dataset) == bool(given.directory):
            raise FieldInvalid.of("rule.dataset", "name either a dataset or a directory")
        if given.filter and not given.directory:
            raise FieldInvalid.of("rule.filter", "a filter goes with a directory; make a dataset of what matches")
        if given.directory and not given.directory.startswith("/"):
            raise FieldInvalid.of("rule.directory", "is an absolute path")
        await self.check_places(given)
        if given.dataset:
            await self._catalog.dataset(given.dataset)
        else:
            page = catalog_pb.ListFilesRequest(directory=given.directory, filter=given.filter, page_size=1)
            page.view = catalog_pb.FILE_VIEW_BASIC
            await self._catalog.list_files(page)

    async def check_places(self, given: rule_pb2.ReplicationRule) -> None:
        """Refuse an expression that cannot be read, or that matches too little."""
        if not given.copies:
            raise FieldInvalid.of("rule.copies", "want at least one copy")
        elements = list((await self._elements.all()).values())
        check_words(given.expression, elements)
        matching = [one for one in elements if parse(given.expression).matches(one)]
        if len(matching) < given.copies:
            raise TooFewElements(expression=given.expression, copies=given.copies, matching=len(matching))

    async def create(self, request: rule_service_pb2.CreateRuleRequest) -> rule_pb2.ReplicationRule:
        """Make a rule."""
        await self.check(request.rule)
        row = new_row(request.rule, current_principal().subject)

        async def work(connection: AsyncConnection) -> rule_pb2.ReplicationRule:
            return await insert_rule(connection, self._log, row)

        return await self._once(request, rule_pb2.ReplicationRule, work)

    async def get(self, name: str) -> rule_pb2.ReplicationRule:
        """Read one."""
        async with self._database.read() as connection:
            return rule_proto(await _read(connection, name))

    async def page(self, request: rule_service_pb2.ListRulesRequest) -> rule_service_pb2.ListRulesResponse:
        """Read a page."""
        query = select(rule).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return rule_service_pb2.ListRulesResponse(
            rules=[rule_proto(mapping(row)) for row in page.rows], next_page_token=page.next_page_token
        )

    async def update(self, request: rule_service_pb2.UpdateRuleRequest) -> rule_pb2.ReplicationRule:
        """Change some fields."""
        given = request.rule
        values = _changes(given, request.update_mask.paths)
        if "copies" in values:
            stored = await self.get(given.name)
            stored.copies = given.copies
            await self.check_places(stored)

        async def work(connection: AsyncConnection) -> rule_pb2.ReplicationRule:
            before = await _read(connection, given.name)
            _check_owner(before)
            statement = update(rule).where(rule.c.uid == before["uid"])
            if given.etag:
                statement = statement.where(rule.c.version == (int(given.etag) if given.etag.isdecimal() else -1))
            row = (await connection.execute(statement.values(values).returning(rule))).one_or_none()
            if row is None:
                raise EtagMismatch(name=given.name)
            await self._log.append(connection, [rule_event(mapping(row))])
            return rule_proto(mapping(row))

        return await self._once(request, rule_pb2.ReplicationRule, work)

    async def delete(self, request: rule_service_pb2.DeleteRuleRequest) -> rule_service_pb2.DeleteRuleResponse:
        """End one."""
        ended: list[tuple[Mapping[str, Any], list[str]]] = []

        async def work(connection: AsyncConnection) -> rule_service_pb2.DeleteRuleResponse:
            try:
                row = await _read(connection, request.name)
            except RuleNotFound:
                return rule_service_pb2.DeleteRuleResponse()
            _check_owner(row)
            counted = await copies.counts(connection, row["uid"])
            ended.append((row, await end(connection, self._log, row)))
            return rule_service_pb2.DeleteRuleResponse(released_copies=counted.ok_copies)

        answer = await self._once(request, rule_service_pb2.DeleteRuleResponse, work)
        for row, transfers in ended:
            await self._starting.cancel(row, transfers)
        return answer

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Tell why one is not satisfied."""
        async with self._database.read() as connection:
            row = await _read(connection, name)
            message = rule_proto(row)
            message.counts.CopyFrom(await copies.counts(connection, row["uid"]))
            reasons = await copies.reasons(connection, row["uid"])
        return explanation(message, reasons, self._pause)

    async def copies(self, request: rule_service_pb2.ListRuleCopiesRequest) -> rule_service_pb2.ListRuleCopiesResponse:
        """Read a page of the copies of one."""
        async with self._database.read() as connection:
            row = await _read(connection, request.name)
            query = select(rule_copy).where(rule_copy.c.rule_uid == row["uid"], where(request.filter, _COPY_FIELDS))
            page = await list_page(connection, query, request, _COPY_ORDER, default_size=1000, max_size=10_000)
        return rule_service_pb2.ListRuleCopiesResponse(
            copies=[_copy_proto(mapping(one)) for one in page.rows], next_page_token=page.next_page_token
        )


async def insert_rule(connection: AsyncConnection, log: EventLog, row: Mapping[str, Any]) -> rule_pb2.ReplicationRule:
    """Insert a new rule and tell of it."""
    await connection.execute(insert(rule), dict(row))
    await log.append(connection, [rule_event(row, "created")])
    return rule_proto(row)


async def _read(connection: AsyncConnection, name: str) -> Mapping[str, Any]:
    query = select(rule).where(rule.c.uid == name.removeprefix(PREFIX))
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise RuleNotFound(name=PREFIX + name.removeprefix(PREFIX))
    return mapping(row)


def _check_owner(row: Mapping[str, Any]) -> None:
    principal = current_principal()
    if row["owner"] != principal.subject and not allows(principal, "admin"):
        raise RuleForeign(name=PREFIX + row["uid"], owner=row["owner"])


def _changes(given: rule_pb2.ReplicationRule, paths: Sequence[str]) -> dict[str, Any]:
    if not paths:
        raise FieldInvalid.of("update_mask", f"name at least one of {', '.join(_CHANGEABLE)}")
    now = datetime.now(UTC)
    values: dict[str, Any] = {"due_time": now, "update_time": now}
    for path in paths:
        if path not in _CHANGEABLE:
            raise FieldInvalid.of("update_mask", f"{path} cannot be changed; these can: {', '.join(_CHANGEABLE)}")
        values[path] = getattr(given, path)
    if "lifetime" in values:
        del values["lifetime"]
        values["expire_time"] = expire_time(given, now)
    if "copies" in values:
        values["list_due"] = True
    return {**values, "version": rule.c.version + 1, "touched": rule.c.touched + 1}


def _copy_proto(row: Mapping[str, Any]) -> rule_pb2.RuleCopy:
    state = row["state"] or rule_pb2.ReplicationRule.STATE_REPLICATING
    message = rule_pb2.RuleCopy(
        file=row["file"],
        storage_element=row["storage_element"],
        state=state,
        reason=row["reason"],
        message=row["message"],
        transfer=f"transfers/{row['transfer_uid']}" if row["transfer_uid"] else "",
        size_bytes=row["size_bytes"],
    )
    message.state_time.FromDatetime(row["state_time"])
    return message

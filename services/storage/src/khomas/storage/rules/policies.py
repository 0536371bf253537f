"""Policies: new datasets get rules by themselves."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Any

import grpc
from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.api.storage.v1 import policy_pb2, rule_pb2
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, in_values, insert_new
from khomas.kit.errors import DomainError, FieldInvalid
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.paging import Ordering, list_page
from khomas.storage.catalog import Catalog
from khomas.storage.errors import PolicyExists, PolicyNotFound
from khomas.storage.rows import mapping
from khomas.storage.rules.events import new_dataset
from khomas.storage.rules.rows import new_row, rule_event
from khomas.storage.rules.store import Rules
from khomas.storage.rules.tables import policy, policy_dataset, rule

log = logging.getLogger(__name__)

PREFIX = "policies/"
_ORDER = Ordering(fields={}, unique=policy.c.id)
# As many names as fit into a filter.
_BATCH = 20
# Stands for all datasets that there are.
_ALL = "*"


class Policies:
    """Keeps policies, and makes the rules that they want."""

    def __init__(self, database: Database, once: Once, log: EventLog, catalog: Catalog, rules: Rules) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._catalog = catalog
        self._rules = rules

    async def create(self, request: pb.CreatePolicyRequest) -> policy_pb2.PlacementPolicy:
        """Make a policy."""
        given = request.policy
        if given.rule.dataset or given.rule.directory or given.rule.filter:
            raise FieldInvalid.of("policy.rule", "leave dataset, directory and filter empty: the policy names datasets")
        await self._rules.check_places(given.rule)
        await self._catalog.list_datasets(catalog_pb.ListDatasetsRequest(filter=given.filter, page_size=1))
        row: dict[str, Any] = {
            "id": given.name.removeprefix(PREFIX),
            "uid": new_uid(),
            "description": given.description,
            "dataset_pattern": given.dataset_pattern,
            "filter": given.filter,
            "rule": given.rule.SerializeToString(),
            "suspended": given.suspended,
            "owner": current_principal().subject,
            "rules": 0,
            "create_time": datetime.now(UTC),
        }

        async def work(connection: AsyncConnection) -> policy_pb2.PlacementPolicy:
            try:
                await connection.execute(insert(policy), row)
            except IntegrityError as error:
                raise PolicyExists(name=given.name) from error
            if given.existing:
                await new_dataset(connection, [(_ALL, row["id"])])
            return await self._told(connection, row, "created")

        return await self._once(request, policy_pb2.PlacementPolicy, work)

    async def page(self, request: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
        """Read a page."""
        async with self._database.read() as connection:
            page = await list_page(connection, select(policy), request, _ORDER, default_size=1000)
        return pb.ListPoliciesResponse(
            policies=[_policy_proto(mapping(row)) for row in page.rows], next_page_token=page.next_page_token
        )

    async def suspend(self, request: pb.SuspendPolicyRequest) -> policy_pb2.PlacementPolicy:
        """Make no rules by a policy for a while, or again. Datasets that come meanwhile get none."""
        statement = update(policy).where(policy.c.id == request.name.removeprefix(PREFIX))

        async def work(connection: AsyncConnection) -> policy_pb2.PlacementPolicy:
            changed = statement.values(suspended=request.suspended).returning(policy)
            row = (await connection.execute(changed)).one_or_none()
            if row is None:
                raise PolicyNotFound(name=request.name)
            return await self._told(connection, mapping(row), "changed")

        return await self._once(request, policy_pb2.PlacementPolicy, work)

    async def delete(self, request: pb.DeletePolicyRequest) -> pb.DeletePolicyResponse:
        """Forget a policy."""
        name = request.name.removeprefix(PREFIX)

        async def work(connection: AsyncConnection) -> pb.DeletePolicyResponse:
            gone = delete(policy).where(policy.c.id == name).returning(policy)
            row = (await connection.execute(gone)).one_or_none()
            if row is None:
                raise PolicyNotFound(name=request.name)
            await connection.execute(delete(policy_dataset).where(policy_dataset.c.policy == name))
            await self._told(connection, mapping(row), "deleted")
            return pb.DeletePolicyResponse()

        return await self._once(request, pb.DeletePolicyResponse, work)

    async def work(self) -> None:
        """Ask policies about new datasets, and make the rules that they want."""
        try:
            await self._work()
        except (DomainError, grpc.aio.AioRpcError) as error:
            # The catalogue does not answer: they stay in the queue.
            log.warning("policies.postponed", extra={"error": str(error)})

    async def _work(self) -> None:
        while True:
            async with self._database.read() as connection:
                queued = (await connection.execute(select(policy_dataset).limit(_BATCH))).all()
                if not queued:
                    return
                rows = [mapping(row) for row in (await connection.execute(select(policy))).all()]
            wanted: list[tuple[Mapping[str, Any], str]] = []
            for row in rows:
                asked = {one.dataset for one in queued if one.policy in ("", row["id"])}
                if asked and not row["suspended"]:
                    wanted += [(row, dataset) for dataset in await self._matching(row, asked)]
            async with self._database.write() as connection:
                await self._make(connection, wanted)
                done = or_(*[_same(one.dataset, one.policy) for one in queued])
                await connection.execute(delete(policy_dataset).where(done))

    async def _matching(self, row: Mapping[str, Any], datasets: set[str]) -> list[str]:
        """Return those of the datasets that a policy is about."""
        everything = _ALL in datasets
        named = sorted(name for name in datasets if fnmatchcase(name, row["dataset_pattern"]))
        if not everything and (not named or not row["filter"]):
            return named
        filters = [f"({row['filter']})"] if row["filter"] else []
        if not everything:
            these = " OR ".join(f'name = "{name}"' for name in named)
            filters.append(f"({these})")
        found: list[str] = []
        request = catalog_pb.ListDatasetsRequest(filter=" AND ".join(filters), page_size=1000)
        while True:
            page = await self._catalog.list_datasets(request)
            found += [one.name for one in page.datasets if fnmatchcase(one.name, row["dataset_pattern"])]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def _make(self, connection: AsyncConnection, wanted: Sequence[tuple[Mapping[str, Any], str]]) -> None:
        """Make rules, one for a policy and a dataset."""
        names = {dataset for _, dataset in wanted}
        there = select(rule.c.policy, rule.c.dataset).where(in_values(rule.c.dataset, names))
        made = {(row.policy, row.dataset) for row in (await connection.execute(there)).all()} if names else set()
        rows = []
        for row, dataset in wanted:
            if (PREFIX + row["id"], dataset) not in made:
                given = rule_pb2.ReplicationRule.FromString(row["rule"])
                given.dataset, given.origin = dataset, row["uid"]
                rows.append(new_row(given, row["owner"], PREFIX + row["id"]))
        # Another process may ask the same policies. In one order: two that wait for each other's rows never end.
        rows.sort(key=lambda row: (row["policy"], row["dataset"]))
        new = set(map(itemgetter(0), await insert_new(connection, rule, rows, rule.c.uid)))
        await self._log.append(connection, [rule_event(row, "created") for row in rows if row["uid"] in new])
        if new:
            counted = select(func.count()).where(rule.c.policy == PREFIX + policy.c.id).scalar_subquery()
            mine = in_values(policy.c.id, {row["id"] for row, _ in wanted})
            await connection.execute(update(policy).where(mine).values(rules=counted))

    async def _told(self, connection: AsyncConnection, row: Mapping[str, Any], verb: str) -> policy_pb2.PlacementPolicy:
        message = _policy_proto(row)
        await self._log.append(connection, [NewEvent(f"storage.policy.{verb}", message.name, row["uid"], "", message)])
        return message


def _same(dataset: str, name: str) -> Any:
    return and_(policy_dataset.c.dataset == dataset, policy_dataset.c.policy == name)


def _policy_proto(row: Mapping[str, Any]) -> policy_pb2.PlacementPolicy:
    message = policy_pb2.PlacementPolicy(
        name=PREFIX + row["id"],
        description=row["description"],
        dataset_pattern=row["dataset_pattern"],
        filter=row["filter"],
        rule=rule_pb2.ReplicationRule.FromString(row["rule"]),
        suspended=row["suspended"],
        owner=row["owner"],
        rules=row["rules"],
    )
    message.create_time.FromDatetime(row["create_time"])
    return message

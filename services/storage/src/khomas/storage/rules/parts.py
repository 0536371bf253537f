"""Builds what keeps copies where they are wanted, for the service to host."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import grpc

from khomas.api.storage.v1 import placement_service_pb2_grpc, rule_service_pb2_grpc
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.periodic import every
from khomas.kit.service import Host
from khomas.storage.catalog import Catalog
from khomas.storage.config import StorageSettings
from khomas.storage.elements.elements import Elements
from khomas.storage.elements.emptiness import Emptiness
from khomas.storage.rules.accesses import Accesses
from khomas.storage.rules.cleaning import Cleaning
from khomas.storage.rules.deleting import ReplicaDeletions
from khomas.storage.rules.drain_store import Drains
from khomas.storage.rules.draining import Draining
from khomas.storage.rules.evaluation import Evaluation
from khomas.storage.rules.membership import Membership
from khomas.storage.rules.placement_servicer import PlacementServicer
from khomas.storage.rules.policies import Policies
from khomas.storage.rules.preview import Previews
from khomas.storage.rules.servicer import RuleServicer
from khomas.storage.rules.starting import Starting
from khomas.storage.rules.store import Rules
from khomas.storage.transfers.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Placement:
    """The parts about rules."""

    rules: Rules
    previews: Previews
    evaluation: Evaluation
    policies: Policies
    drains: Drains
    draining: Draining
    deletions: ReplicaDeletions
    cleaning: Cleaning
    accesses: Accesses
    poll: timedelta
    check_interval: timedelta

    @property
    def background(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return the loops, by name."""
        return {
            "rules": every(self.poll, self.evaluation.work),
            "policies": every(self.poll, self.policies.work),
            "drains": every(self.poll, self.draining.work),
            "caches": every(self.check_interval, self.accesses.write, self.cleaning.work, self.accesses.prune),
        }

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the rpcs."""
        rule_service_pb2_grpc.add_RuleServiceServicer_to_server(RuleServicer(self.rules, self.previews), server)
        servicer = PlacementServicer(self.policies, self.drains, self.deletions)
        placement_service_pb2_grpc.add_PlacementServiceServicer_to_server(servicer, server)


def placement(
    settings: StorageSettings,
    host: Host,
    database: Database,
    once: Once,
    log: EventLog,
    elements: Elements,
    transfers: Transfers,
    accesses: Accesses,
) -> Placement:
    """Build everything about rules."""
    catalog, owner = Catalog(host.channel("catalog"), settings.catalog_deadline), new_uid()
    starting, membership = Starting(database, transfers), Membership(catalog)
    rules = Rules(database, once, log, elements, catalog, starting, settings.rule_pause)
    return Placement(
        rules=rules,
        previews=Previews(database, elements, membership, rules),
        evaluation=Evaluation(
            database,
            log,
            elements,
            membership,
            starting,
            owner=owner,
            lease=settings.lease,
            pause=settings.rule_pause,
        ),
        policies=Policies(database, once, log, catalog, rules),
        drains=Drains(database, once, log, elements),
        draining=Draining(
            database,
            log,
            elements,
            Emptiness(database, catalog),
            catalog,
            starting,
            owner=owner,
            lease=settings.lease,
            pause=settings.drain_pause,
        ),
        deletions=ReplicaDeletions(once, log, elements, catalog),
        cleaning=Cleaning(database, log, elements, catalog),
        accesses=accesses,
        poll=settings.poll,
        check_interval=settings.check_interval,
    )

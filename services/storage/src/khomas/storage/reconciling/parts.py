"""Builds the parts about integrity, in the order of their needs."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc

from khomas.api.storage.v1 import integrity_service_pb2_grpc
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.periodic import every
from khomas.storage.catalog import Catalog
from khomas.storage.config import StorageSettings
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.probes.probing import Probing
from khomas.storage.reconciling.comparing import Comparing
from khomas.storage.reconciling.deletion_reasons import DeletionReasons
from khomas.storage.reconciling.fixity import Fixity
from khomas.storage.reconciling.incidents import Incidents
from khomas.storage.reconciling.looking import Looking
from khomas.storage.reconciling.moving_aside import MovingAside
from khomas.storage.reconciling.policies import Policies, Policy
from khomas.storage.reconciling.recording import Recording
from khomas.storage.reconciling.repairing import Repairing
from khomas.storage.reconciling.replacing import Replacing
from khomas.storage.reconciling.runs import Runs
from khomas.storage.reconciling.schedule import Schedule
from khomas.storage.reconciling.servicer import IntegrityParts, IntegrityServicer
from khomas.storage.transfers.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Integrity:
    """What looks after the files of StorageElements."""

    servicer: IntegrityServicer
    policies: Policies
    recording: Recording
    comparing: Comparing
    repairing: Repairing
    probing: Probing
    background: Mapping[str, Callable[[], Awaitable[None]]]

    @classmethod
    def built(
        cls,
        settings: StorageSettings,
        database: Database,
        once: Once,
        log: EventLog,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        transfers: Transfers,
        owner: str,
    ) -> "Integrity":
        """Build all of it."""
        policies = Policies(database, once, elements, _defaults(settings))
        looking = Looking(database, catalog, protocols)
        recording = Recording(database, log, catalog, elements, policies)
        comparing = Comparing(
            database,
            log,
            catalog,
            elements,
            protocols,
            policies,
            looking,
            recording,
            owner=owner,
            lease=settings.lease,
            pause=settings.repair_pause,
        )
        replacing = Replacing(database, catalog, protocols, looking, transfers)
        aside = MovingAside(catalog, protocols, looking, replacing)
        repairing = Repairing(database, log, elements, replacing, aside, owner, settings.repair_pause)
        fixity = Fixity(database, catalog, elements, policies, looking, recording)
        schedule = Schedule(database, log, policies, settings.dark_grace)
        probing = Probing(database, elements, protocols, policies)
        runs = Runs(database, once, log, elements, settings.dark_grace)
        parts = IntegrityParts(runs, Incidents(database, once, log), policies, probing, DeletionReasons(database))
        return cls(
            servicer=IntegrityServicer(parts),
            policies=policies,
            recording=recording,
            comparing=comparing,
            repairing=repairing,
            probing=probing,
            background={
                "reconciliations": every(settings.poll, comparing.work),
                "repairs": every(settings.poll, repairing.work),
                "fixity": every(settings.fixity_poll, fixity.work),
                "schedule": every(settings.check_interval, schedule.work, comparing.tidy),
                "probes": every(settings.probe_poll, probing.work),
            },
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the rpcs."""
        integrity_service_pb2_grpc.add_IntegrityServiceServicer_to_server(self.servicer, server)


def _defaults(settings: StorageSettings) -> Policy:
    return Policy(
        verify_period=settings.verify_period,
        verify_bytes_per_second=settings.verify_bytes_per_second,
        reconcile_interval=settings.reconcile_interval,
        max_lost_percent=settings.max_lost_percent,
        repair_automatically=settings.repair_automatically,
        deletions_per_second=settings.deletions_per_second,
        probe_interval=settings.probe_interval,
    )

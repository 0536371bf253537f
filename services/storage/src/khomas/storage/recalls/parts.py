"""Puts recalls together."""

from dataclasses import dataclass
from datetime import timedelta

import grpc

from khomas.api.storage.v1 import recall_service_pb2_grpc
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.storage.catalog import Catalog
from khomas.storage.config import StorageSettings
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.recalls.online import Online
from khomas.storage.recalls.recalls import Recalls
from khomas.storage.recalls.servicer import RecallServicer
from khomas.storage.recalls.verdicts import Patience
from khomas.storage.recalls.worker import Pace, Worker

# A request for a thousand files may take its time.
_LEASE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Recalling:
    """The parts of recalls."""

    servicer: RecallServicer
    worker: Worker
    online: Online

    @classmethod
    def built(
        cls,
        settings: StorageSettings,
        database: Database,
        once: Once,
        log: EventLog,
        elements: Elements,
        protocols: Protocols,
        catalog: Catalog,
        owner: str,
    ) -> "Recalling":
        """Build them."""
        patience = Patience(
            settings.recall_poll, settings.recall_pause, settings.recall_grace, settings.recall_attempts
        )
        pace = Pace(settings.recall_gather, max(settings.lease, _LEASE), patience)
        recalls = Recalls(database, once, log, elements, catalog, settings.recall_lifetime)
        return cls(
            RecallServicer(recalls),
            Worker(database, log, elements, protocols, owner=owner, pace=pace),
            Online(database, log, elements, protocols, settings.recall_lifetime),
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the rpcs."""
        recall_service_pb2_grpc.add_RecallServiceServicer_to_server(self.servicer, server)

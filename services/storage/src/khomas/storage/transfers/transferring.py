"""Builds what transfers need: queue, links, mover, other executors."""

from collections.abc import Mapping
from dataclasses import dataclass

from khomas.kit.credentials import CredentialProvider
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.storage.catalog import Catalog
from khomas.storage.config import StorageSettings
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.executors.opening import open_all, routes_of
from khomas.storage.executors.outside import Outside
from khomas.storage.links.measures import Measures, Streams
from khomas.storage.links.rates import Rates
from khomas.storage.links.servicer import LinkServicer
from khomas.storage.recalls.online import Online
from khomas.storage.reconciling.looking import Looking
from khomas.storage.transfers.leftovers import Leftovers
from khomas.storage.transfers.mover import Mover
from khomas.storage.transfers.queue import Queue
from khomas.storage.transfers.retry import Policy
from khomas.storage.transfers.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Transferring:
    """The parts that have to do with transfers."""

    measures: Measures
    links: LinkServicer
    outside: Outside
    mover: Mover
    transfers: Transfers
    leftovers: Leftovers

    @classmethod
    def built(
        cls,
        settings: StorageSettings,
        database: Database,
        log: EventLog,
        once: Once,
        elements: Elements,
        protocols: Protocols,
        catalog: Catalog,
        credentials: Mapping[str, CredentialProvider],
        owner: str,
        online: Online,
    ) -> "Transferring":
        """Put them together."""
        measures = Measures(database, Streams(settings.link_streams, settings.max_link_streams))
        policy = Policy(settings.transfer_attempts, settings.transfer_pause, settings.max_transfer_pause)
        queue = Queue(database, log, owner, settings.lease, policy, measures)
        outside = Outside(
            queue, protocols, open_all(settings, credentials), routes_of(settings), settings.executor_poll
        )
        mover = Mover(
            queue,
            catalog,
            elements,
            protocols,
            measures,
            Rates(database, measures, owner),
            outside,
            online,
            workers=settings.transfer_workers,
            poll=settings.poll,
            lease=settings.lease,
        )
        transfers = Transfers(
            database,
            once,
            log,
            elements,
            catalog,
            measures,
            mover.wake,
            shares=settings.transfer_shares,
            retention=settings.transfer_retention,
        )
        looking = Looking(database, catalog, protocols)
        leftovers = Leftovers(database, catalog, looking, elements, protocols, owner=owner, lease=settings.lease)
        return cls(measures, LinkServicer(database, once, elements, measures), outside, mover, transfers, leftovers)

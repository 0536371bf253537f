"""What attempts used that left no record: the accounts of their batch system may tell."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict

from khomas.scheduler.backends import received
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.engine.transcript import Operation
from khomas.scheduler.placement.sites import Site
from khomas.scheduler.records import Attempt

log = logging.getLogger(__name__)


async def with_accounts(desk: Desk, site: Site, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts; those that the infrastructure lost with what they used, where the backend knows."""
    lost = [one.native_id for one in attempts if one.final and 400 <= one.reason < 500 and not one.usage]
    if not lost:
        return list(attempts)
    uids = [one.uid for one in attempts if one.native_id in lost]
    try:
        with desk.transcript.of(site.name, Operation.OPERATION_USAGE, uids):
            async with asyncio.timeout(desk.settings.backend_deadline.total_seconds()):
                known = await site.backend.usage(lost)
    except Exception:
        log.exception("usage.failed", extra={"backend": site.name, "jobs": len(lost)})
        return list(attempts)
    used = {native_id: asdict(received.usage(told)) for native_id, told in known.items()}
    return [one._replace(usage=used[one.native_id]) if one.native_id in used else one for one in attempts]

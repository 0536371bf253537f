"""What an installation tells of what happened."""

from collections.abc import AsyncIterator
from typing import Any

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.client.connection import Connection
from tests.e2e.installation import Installation


async def events(khomas: Installation, area: str, cursor: str, *, until_now: bool) -> AsyncIterator[Any]:
    """Events of one service after a cursor."""
    # The port is another one after each start.
    connection = Connection(khomas.environment["KHOMAS_ENDPOINT"], khomas.token)
    try:
        async for answer in connection.stream(
            area, "WatchEvents", WatchEventsRequest(cursor=cursor, until_now=until_now)
        ):
            yield answer
    finally:
        await connection.close()

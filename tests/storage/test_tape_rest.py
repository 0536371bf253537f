"""Recalls of `davs` by the WLCG Tape REST interface, against a stand-in written from its specification."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from khomas.storage.protocols.dav.protocol import plugin
from khomas.storage.protocols.interface import Access, Locality, Problem, ProtocolFault, Recall, Recalling, Tape
from tests.testbeds import tape_rest as bed
from tests.testbeds.tape_rest import TapeRest

FILES = ["run 1", "run%2", "ä"]


@pytest.fixture
async def server() -> AsyncIterator[TapeRest]:
    async with bed.running() as running:
        running.files = {f"/vo/{name}": False for name in FILES}
        yield running


@pytest.fixture
async def tape(server: TapeRest) -> AsyncIterator[Tape]:
    protocol = plugin.open(Access(server.address, options={"tape": "true", "seconds": "30"}))
    assert protocol.tape is not None
    yield protocol.tape
    await protocol.close()


def states(told: list[Recalling | ProtocolFault]) -> list[Recall | Problem]:
    """Say how each one is."""
    return [one.problem if isinstance(one, ProtocolFault) else one.state for one in told]


async def test_files_are_staged_in_one_request_and_followed(server: TapeRest, tape: Tape) -> None:
    assert await tape.locality(FILES) == [Locality.TAPE] * 3
    requests = await tape.stage(FILES, timedelta(days=2))
    assert requests == list(server.staged) * 3
    assert server.lifetimes == {"PT172800S"}
    request = str(requests[0])
    assert states(await tape.staging(request, FILES)) == [Recall.WAITING] * 3
    server.deliver(FILES[1])
    server.errors["/vo/ä"] = "the tape is broken"
    told = await tape.staging(request, FILES)
    assert states(told) == [Recall.WAITING, Recall.DONE, Recall.FAILED]
    assert isinstance(told[2], Recalling)
    assert told[2].message == "the tape is broken"
    assert await tape.locality(FILES[:2]) == [Locality.TAPE, Locality.BOTH]


async def test_request_is_cancelled_in_part_and_files_are_released(server: TapeRest, tape: Tape) -> None:
    request = str((await tape.stage(FILES, timedelta(days=1)))[0])
    assert await tape.cancel(request, FILES[:1]) == [None]
    assert states(await tape.staging(request, FILES)) == [Recall.UNKNOWN, Recall.WAITING, Recall.WAITING]
    server.deliver(FILES[1])
    assert await tape.release(request, FILES[1:2]) == [None]
    assert server.released == ["/vo/run%2"]


async def test_request_that_nobody_knows_is_told_apart_from_one_that_failed(server: TapeRest, tape: Tape) -> None:
    assert states(await tape.staging("nothing", FILES)) == [Recall.UNKNOWN] * 3
    server.deliver(FILES[0])
    assert states(await tape.staging("*", FILES)) == [Recall.DONE, Recall.UNKNOWN, Recall.UNKNOWN]
    (missing,) = await tape.locality(["no such file"])
    assert isinstance(missing, ProtocolFault)
    assert (missing.problem, "does not exist" in missing.message) == (Problem.ABSENT, True)


async def test_front_end_that_is_away_is_passing(server: TapeRest, tape: Tape) -> None:
    server.away = True
    assert [one.problem for one in await tape.stage(FILES, timedelta(1)) if isinstance(one, ProtocolFault)] == [
        Problem.PASSING
    ] * 3
    assert states(await tape.staging("any", FILES)) == [Problem.PASSING] * 3
    server.away = False
    assert not any(isinstance(one, ProtocolFault) for one in await tape.stage(FILES, timedelta(1)))


async def test_server_without_the_interface_is_told(server: TapeRest) -> None:
    protocol = plugin.open(Access(f"dav://127.0.0.1:{server.port}/vo"))
    assert protocol.tape is None
    await protocol.close()

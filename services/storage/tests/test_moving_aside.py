"""What nobody knows or can mend is moved aside, deleted, made a replica, or brought back."""

from uuid import uuid4

import grpc
import pytest

from khomas.api.catalog.v1.file_pb2 import Replica
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1.incident_pb2 import (
    REPAIR_DECLARE_LOST,
    REPAIR_DELETE,
    REPAIR_DISCARD,
    REPAIR_QUARANTINE,
    REPAIR_REGISTER,
    REPAIR_RESTORE,
    Incident,
)
from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation
from khomas.kit.boundary.status import info_of, received_status
from khomas.storage.reconciling.testing import Place

BOTH = pytest.mark.parametrize("place_url", ["sqlite", "postgresql"], indirect=True)


async def moved_aside(place: Place, content: bytes) -> Incident:
    """Let an unknown file `dark` be found and moved aside."""
    await place.stored("/hess/good")
    place.lay("dark", content)
    await place.compared()
    await place.apply("kind = DARK")
    await place.settled()
    (found,) = await place.incidents()
    return found


@BOTH
@pytest.mark.parametrize("settings", [{"repair_automatically": False}])
async def test_declared_lost_bytes_are_moved_aside_and_the_decision_is_kept(place: Place) -> None:
    await place.stored("/hess/good", "/hess/flipped")
    place.lay("hess/flipped", b"/hess/Flipped")
    await place.compared(Reconciliation.MODE_FULL)

    assert await place.apply('kind = CHECKSUM AND storage_element = "mirror"', REPAIR_DECLARE_LOST) == 1
    await place.settled()

    (found,) = await place.incidents()
    assert (found.state, found.requester, found.reason) == (Incident.STATE_RESOLVED, "tester", "a test says so")
    assert (place.mirror / found.quarantine_path).read_bytes() == b"/hess/Flipped"
    assert await place.replica("/hess/flipped") is None
    assert await place.replica("/hess/flipped", "local") is not None


@BOTH
async def test_dark_files_are_moved_aside_or_deleted_when_somebody_says_so(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark/one", b"1")
    place.lay("dark/two", b"2")
    await place.compared()
    assert await place.kinds("state = OPEN") == {"dark/one": "DARK", "dark/two": "DARK"}

    assert await place.apply('path = "dark/one"') == 1
    assert await place.apply('path = "dark/two"', REPAIR_DELETE) == 1
    await place.settled()

    one, two = await place.incidents()
    assert (one.repair, (place.mirror / one.quarantine_path).read_bytes()) == (REPAIR_QUARANTINE, b"1")
    assert two.state == Incident.STATE_RESOLVED
    assert place.lies() == ["hess/good"]


@BOTH
async def test_what_was_moved_aside_comes_back_or_is_deleted_when_somebody_says_so(place: Place) -> None:
    await place.stored("/hess/good")
    for name in ("one", "two", "three"):
        place.lay(f"dark/{name}", name.encode())
    await place.compared()
    await place.apply("kind = DARK")
    await place.settled()
    aside = {one.path: one.quarantine_path for one in await place.incidents('quarantine_path != ""')}
    assert sorted(aside) == ["dark/one", "dark/three", "dark/two"]

    assert await place.apply('path = "dark/one"', REPAIR_RESTORE) == 1
    assert await place.apply('path = "dark/two"', REPAIR_DISCARD) == 1
    await place.settled()

    assert [one.path for one in await place.incidents('quarantine_path != ""')] == ["dark/three"]
    assert place.lies() == ["dark/one", "hess/good"]
    assert (place.mirror / "dark/one").read_bytes() == b"one"
    assert not (place.mirror / aside["dark/two"]).exists()
    assert (place.mirror / aside["dark/three"]).read_bytes() == b"three"
    await place.compared()
    assert await place.kinds("state = OPEN") == {"dark/one": "DARK"}


async def test_what_comes_back_from_the_quarantine_overwrites_nothing(place: Place) -> None:
    await moved_aside(place, b"old")
    place.lay("dark", b"new")

    await place.apply("kind = DARK", REPAIR_RESTORE)
    await place.settled()

    (found,) = await place.incidents()
    assert (found.state, "something else" in found.message) == (Incident.STATE_RESOLVED, True)
    assert (place.mirror / "dark").read_bytes() == b"new"
    assert (place.mirror / found.quarantine_path).read_bytes() == b"old"


async def test_what_somebody_took_out_of_the_quarantine_is_told(place: Place) -> None:
    found = await moved_aside(place, b"1")
    (place.mirror / found.quarantine_path).unlink()

    await place.apply("kind = DARK", REPAIR_RESTORE)
    await place.settled()

    (found,) = await place.incidents()
    assert (found.quarantine_path, "any more" in found.message) == ("", True)


async def test_folder_that_cannot_be_made_again_leaves_the_file_aside(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("old/dark", b"1")
    await place.compared()
    await place.apply("kind = DARK")
    await place.settled()
    (place.mirror / "old").rmdir()
    place.lay("old", b"a file where the folder was")

    await place.apply("kind = DARK", REPAIR_RESTORE)
    await place.settled()

    (found,) = await place.incidents()
    assert found.state == Incident.STATE_RESOLVED
    assert (place.mirror / found.quarantine_path).read_bytes() == b"1"


async def test_only_what_lies_aside_can_come_back(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark", b"1")
    await place.compared()
    (found,) = await place.incidents()
    request = pb.ApplyRepairsRequest(names=[found.name], repair=REPAIR_RESTORE, reason="a test says so")

    request.request_id = str(uuid4())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.integrity.ApplyRepairs(request)
    assert info_of(received_status(caught.value)).reason == "REPAIR_UNFIT"
    assert await place.apply("kind = DARK", REPAIR_RESTORE) == 0

    await place.apply("kind = DARK", REPAIR_DELETE)
    await place.settled()
    request.request_id = str(uuid4())
    answer = await place.integrity.ApplyRepairs(request)
    assert (answer.accepted, answer.already_decided) == (0, 1)


async def test_dark_file_that_changed_since_is_not_deleted(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark", b"old")
    await place.compared()
    place.lay("dark", b"something new")

    await place.apply("kind = DARK", REPAIR_DELETE)
    await place.settled()

    (found,) = await place.incidents()
    assert (found.state, "changed" in found.message) == (Incident.STATE_OPEN, True)
    assert (place.mirror / "dark").read_bytes() == b"something new"


async def test_dark_copy_of_a_known_file_becomes_a_replica(place: Place) -> None:
    await place.stored("/hess/good")
    await place.storage.store("/hess/other", b"other bytes")
    place.lay("hess/other", b"other bytes")
    await place.compared()
    (found,) = await place.incidents()
    assert found.proposed_repair == REPAIR_REGISTER

    await place.apply("kind = DARK")
    await place.settled()

    replica = await place.replica("/hess/other")
    assert replica is not None
    assert (replica.path, replica.state) == ("hess/other", Replica.STATE_AVAILABLE)

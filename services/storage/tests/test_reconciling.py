"""A storage element is compared with the real catalogue: exactly what was planted is found, and repaired."""

from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import update
from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.file_pb2 import Replica
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1 import storage_element_pb2, storage_service_pb2
from khomas.api.storage.v1.incident_pb2 import (
    REPAIR_COPY,
    REPAIR_DECLARE_LOST,
    REPAIR_DISMISS,
    Incident,
)
from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import info_of, received_status
from khomas.kit.database import count_statements
from khomas.storage.reconciling.tables import reconciliation
from khomas.storage.reconciling.testing import PATIENCE, Place, damageable
from khomas.storage.testing import until

BOTH = pytest.mark.parametrize("place_url", ["sqlite", "postgresql"], indirect=True)


async def test_what_agrees_makes_no_incident(place: Place) -> None:
    await place.stored("/hess/a", "/hess/b/c")

    run = await place.compared(Reconciliation.MODE_FULL)

    assert run.state == Reconciliation.STATE_SUCCEEDED, run.message
    assert (run.expected_files, run.found_files, run.verified_files) == (2, 2, 2)
    assert await place.incidents() == []


@BOTH
@pytest.mark.parametrize("settings", [{"repair_automatically": False}])
async def test_quick_comparison_finds_lost_dark_and_truncated_files(place: Place) -> None:
    await place.stored("/hess/good", "/hess/lost", "/hess/short")
    (place.mirror / "hess/lost").unlink()
    place.lay("hess/short", b"sh")
    place.lay("hess/dark and %20 dark", b"nobody knows me")

    run = await place.compared()

    assert run.state == Reconciliation.STATE_SUCCEEDED, run.message
    assert await place.kinds() == {"hess/lost": "LOST", "hess/short": "SIZE", "hess/dark and %20 dark": "DARK"}
    assert (run.findings.lost, run.findings.dark, run.findings.size_differs) == (1, 1, 1)
    for name in ("/hess/lost", "/hess/short"):
        replica = await place.replica(name)
        assert replica is not None
        assert replica.state == Replica.STATE_SUSPECT


@pytest.mark.parametrize("settings", [{"repair_automatically": False}])
async def test_flipped_bytes_are_found_by_reading_only(place: Place) -> None:
    await place.stored("/hess/good", "/hess/flipped")
    place.lay("hess/flipped", b"/hess/Flipped")

    assert (await place.compared()).findings.checksum_differs == 0
    run = await place.compared(Reconciliation.MODE_FULL)

    assert run.findings.checksum_differs == 1
    (found,) = await place.incidents()
    assert (found.path, found.kind) == ("hess/flipped", Incident.KIND_CHECKSUM)
    assert found.found_adler32 == f"{adler32(b'/hess/Flipped'):08x}"
    assert found.expected_adler32 == f"{adler32(b'/hess/flipped'):08x}"
    assert found.proposed_repair == REPAIR_COPY


@BOTH
async def test_lost_and_damaged_replicas_are_repaired_by_themselves(place: Place) -> None:
    names = ["/hess/good", "/hess/lost", "/hess/short", "/hess/flipped"]
    await place.stored(*names)
    (place.mirror / "hess/lost").unlink()
    place.lay("hess/short", b"sh")
    place.lay("hess/flipped", b"/hess/Flipped")

    await place.compared(Reconciliation.MODE_FULL)
    await place.settled()

    assert [one.state for one in await place.incidents()] == [Incident.STATE_RESOLVED] * 3
    for name in names:
        replica = await place.replica(name)
        assert replica is not None
        assert replica.state == Replica.STATE_AVAILABLE
        assert (place.mirror / replica.path).read_bytes() == name.encode()
    assert len(place.lies()) == len(names)
    again = await place.compared(Reconciliation.MODE_FULL)
    assert (again.state, sum(count for _, count in again.findings.ListFields())) == (Reconciliation.STATE_SUCCEEDED, 0)


async def test_last_copy_is_never_replaced_or_deleted_by_itself(place: Place) -> None:
    await place.stored("/hess/good", "/hess/only")
    request = catalog_pb.BatchUpdateReplicasRequest(
        updates=[catalog_pb.ReplicaUpdate(name="/hess/only", remove=["local"])], request_id=str(uuid4())
    )
    await place.catalog.BatchUpdateReplicas(request)
    place.lay("hess/only", b"/hess/Only")

    await place.compared(Reconciliation.MODE_FULL)
    await place.settled()

    (found,) = await place.incidents()
    assert (found.state, found.proposed_repair) == (Incident.STATE_OPEN, REPAIR_DECLARE_LOST)
    assert (place.mirror / "hess/only").read_bytes() == b"/hess/Only"


async def test_young_and_hidden_files_are_no_finding(place: Place) -> None:
    await place.stored("/hess/good")
    (place.mirror / "just written").write_bytes(b"by somebody")
    place.lay(".khomas/incoming/half", b"under way")

    run = await place.compared()

    assert (run.findings.dark, await place.incidents()) == (0, [])


@BOTH
async def test_empty_storage_holds_the_comparison_until_somebody_says_that_all_is_lost(place: Place) -> None:
    await place.stored("/hess/a", "/hess/b")
    for name in ("a", "b"):
        (place.mirror / "hess" / name).unlink()

    held = await place.compared()
    assert (held.state, await place.incidents()) == (Reconciliation.STATE_HELD, [])
    assert "2 of 2 files seem lost" in held.message
    why = await place.integrity.ExplainReconciliation(pb.ExplainReconciliationRequest(name=held.name))
    assert (why.state, why.reason) == ("HELD", "MUCH_SEEMS_LOST")
    assert held.message in why.summary
    assert why.since.ToDatetime() > held.create_time.ToDatetime()
    id_ = held.name.removeprefix("reconciliations/")
    assert [one.command for one in why.remedies] == [
        "khomas se ls",
        f"khomas se check {id_} --cancel",
        f"khomas se check {id_} --release --reason WHY",
    ]
    replica = await place.replica("/hess/a")
    assert replica is not None
    assert replica.state == Replica.STATE_AVAILABLE

    await place.integrity.ReleaseReconciliation(
        pb.ReleaseReconciliationRequest(name=held.name, reason="the disk burned", request_id=str(uuid4()))
    )
    run = await place.ended(held.name)
    await place.settled()

    assert (run.state, run.findings.lost) == (Reconciliation.STATE_SUCCEEDED, 2)
    assert run.release_note == "tester: the disk burned"
    why = await place.integrity.ExplainReconciliation(pb.ExplainReconciliationRequest(name=held.name))
    assert (why.state, why.reason, why.since) == ("SUCCEEDED", "", run.end_time)
    assert why.details == ["Released by tester: the disk burned."]
    assert place.lies() == ["hess/a", "hess/b"]


async def test_storage_that_cannot_be_listed_ends_the_comparison_without_findings(place: Place) -> None:
    await place.stored("/hess/a")
    place.mirror.rename(place.mirror.with_name("unmounted"))

    run = await place.compared()

    assert run.state == Reconciliation.STATE_FAILED
    assert "mirror" in run.message
    why = await place.integrity.ExplainReconciliation(pb.ExplainReconciliationRequest(name=run.name))
    assert (why.reason, run.message in why.summary) == ("GIVEN_UP", True)
    assert why.remedies[-1].command == "khomas se check mirror --mode quick"
    assert await place.incidents() == []


@BOTH
async def test_found_again_is_the_same_incident_and_what_is_mended_by_hand_is_resolved(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark", b"1")
    await place.compared()
    await place.compared()
    assert len(await place.incidents()) == 1

    (place.mirror / "dark").unlink()
    await place.compared()

    (found,) = await place.incidents()
    assert (found.state, found.message) == (Incident.STATE_RESOLVED, "It is not there.")


async def test_dismissed_incident_is_not_asked_about_again(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark", b"1")
    await place.compared()
    await place.apply("kind = DARK", REPAIR_DISMISS)

    await place.compared()

    assert [one.state for one in await place.incidents()] == [Incident.STATE_DISMISSED]


async def test_repair_that_does_not_fit_changes_nothing(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark", b"1")
    await place.compared()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.apply("kind = DARK", REPAIR_COPY)

    assert info_of(received_status(caught.value)).reason == "REPAIR_UNFIT"
    assert [one.state for one in await place.incidents()] == [Incident.STATE_OPEN]


async def test_replica_that_a_reader_found_damaged_is_repaired(place: Place) -> None:
    await place.stored("/hess/good", "/hess/flipped")
    place.lay("hess/flipped", b"/hess/Flipped")
    suspect = Replica(storage_element="mirror", path="hess/flipped", state=Replica.STATE_SUSPECT)
    update = catalog_pb.ReplicaUpdate(name="/hess/flipped", set=[suspect])
    await place.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=[update], request_id=str(uuid4()))
    )

    async def repaired() -> bool:
        return [one.state for one in await place.incidents()] == [Incident.STATE_RESOLVED]

    await until(repaired, PATIENCE)

    replica = await place.replica("/hess/flipped")
    assert replica is not None
    assert (place.mirror / replica.path).read_bytes() == b"/hess/flipped"
    assert len(place.lies()) == 2


@BOTH
async def test_news_of_before_a_repair_that_come_after_it_open_nothing(place: Place) -> None:
    await place.stored("/hess/good")
    suspect = Replica(storage_element="mirror", path="hess/good", state=Replica.STATE_SUSPECT)
    update = catalog_pb.ReplicaUpdate(name="/hess/good", set=[suspect])
    await place.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=[update], request_id=str(uuid4()))
    )

    async def resolved() -> bool:
        return [one.state for one in await place.incidents()] == [Incident.STATE_RESOLVED]

    await until(resolved, PATIENCE)
    news = await place.file("/hess/good")
    for replica in news.replicas:
        replica.state = Replica.STATE_SUSPECT
    news.update_time.FromSeconds(news.update_time.seconds - 3600)

    parts = place.storage.parts
    async with parts.database.write() as connection:
        await parts.integrity.recording.suspects(connection, [news])

    mirror = 'storage_element = "mirror"'
    assert [one.state for one in await place.incidents(mirror)] == [Incident.STATE_RESOLVED]


async def test_suspect_that_is_right_is_available_again(place: Place) -> None:
    await place.stored("/hess/good")
    suspect = Replica(storage_element="mirror", path="hess/good", state=Replica.STATE_SUSPECT)
    update = catalog_pb.ReplicaUpdate(name="/hess/good", set=[suspect])
    await place.catalog.BatchUpdateReplicas(
        catalog_pb.BatchUpdateReplicasRequest(updates=[update], request_id=str(uuid4()))
    )

    async def available() -> bool:
        replica = await place.replica("/hess/good")
        return replica is not None and replica.state == Replica.STATE_AVAILABLE

    await until(available, PATIENCE)
    await place.settled()
    assert [one.message for one in await place.incidents()] == ["It was read, and is right."]


async def test_unknown_files_in_a_tree_of_somebody_else_are_no_finding(place: Place) -> None:
    await place.stored("/hess/good")
    name = "storageElements/mirror"
    element = await place.storage.stub.GetStorageElement(storage_service_pb2.GetStorageElementRequest(name=name))
    element.read_only = True
    request = storage_service_pb2.UpdateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    request.update_mask.paths.append("read_only")
    await place.storage.stub.UpdateStorageElement(request)
    place.lay("theirs", b"1")

    run = await place.compared(Reconciliation.MODE_FULL)

    assert (run.state, run.found_files, await place.incidents()) == (Reconciliation.STATE_SUCCEEDED, 2, [])


async def test_explanation_names_what_is_wrong_and_the_command_that_helps(place: Place) -> None:
    await place.stored("/hess/good")
    place.lay("dark", b"1")
    await place.compared()
    (found,) = await place.incidents()

    answer = await place.integrity.ExplainIncident(pb.ExplainIncidentRequest(name=found.name))

    assert (answer.state, answer.reason) == ("OPEN", "DARK")
    assert answer.remedies[0].command == f"khomas incident apply {found.name} --repair QUARANTINE --reason WHY"

    await place.apply("kind = DARK")
    await place.settled()
    answer = await place.integrity.ExplainIncident(pb.ExplainIncidentRequest(name=found.name))
    assert [one.command.split()[-3] for one in answer.remedies] == ["RESTORE", "DISCARD"]


async def test_one_comparison_runs_at_a_time_for_a_storage_element(place: Place) -> None:
    await place.stored("/hess/a")
    (place.mirror / "hess/a").unlink()
    held = await place.compared()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.compared()
    assert info_of(received_status(caught.value)).reason == "RECONCILIATION_STATE"

    cancel = pb.CancelReconciliationRequest(name=held.name, request_id=str(uuid4()))
    assert (await place.integrity.CancelReconciliation(cancel)).state == Reconciliation.STATE_CANCELLED


@pytest.mark.parametrize("settings", [{"repair_automatically": False}])
@pytest.mark.parametrize(("percent", "state"), [(40, "HELD"), (60, "SUCCEEDED")])
async def test_comparison_is_held_above_the_share_that_may_be_lost(place: Place, percent: int, state: str) -> None:
    names = [f"/hess/{number:02}" for number in range(24)]
    await place.stored(*names)
    for name in names[:12]:
        (place.mirror / name[1:]).unlink()

    run = await place.compared(max_lost_percent=percent)

    assert Reconciliation.State.Name(run.state).removeprefix("STATE_") == state, run.message
    assert run.findings.lost == (12 if state == "SUCCEEDED" else 0)


@BOTH
async def test_decision_about_a_thousand_incidents_costs_as_many_statements_as_about_one(place: Place) -> None:
    await place.stored("/hess/good")
    for number in range(1001):
        place.lay(f"dark/{number:04}", b"1")
    await place.compared()
    database = place.storage.parts.database

    with count_statements(database, current_call) as one:
        await place.apply('path = "dark/1000"', REPAIR_DISMISS)
    with count_statements(database, current_call) as thousand:
        assert await place.apply("kind = DARK", REPAIR_DISMISS) == 1000

    assert len(thousand) == len(one) <= 6, thousand


async def test_comparison_goes_on_after_a_restart(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    point = storage_element_pb2.AccessPoint(protocol="posix", address=str(mirror))
    async with damageable(tmp_path, mirror, point, settings={"poll": 3600}) as before:
        before.lay("dark", b"1")
        wanted = Reconciliation(storage_element="mirror", mode=Reconciliation.MODE_FULL)
        request = pb.CreateReconciliationRequest(reconciliation=wanted, request_id=str(uuid4()))
        made = await before.integrity.CreateReconciliation(request)
        # Whoever had it is gone, in the middle of it.
        async with before.storage.parts.database.write() as connection:
            values = {"state": Reconciliation.STATE_RUNNING, "phase": Reconciliation.PHASE_STORAGE}
            await connection.execute(update(reconciliation).values(**values, lease_owner="gone"))

    async with damageable(tmp_path, mirror, point, made=True) as after:
        run = await after.ended(made.name)
        assert run.state == Reconciliation.STATE_SUCCEEDED, run.message
        assert await after.kinds() == {"dark": "DARK"}

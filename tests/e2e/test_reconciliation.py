"""What was planted among very many files is found exactly, in little memory, and repaired."""

from pathlib import Path

from khomas.api.storage.v1.incident_pb2 import Incident
from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation
from tests.e2e import planted

FILES = 10_000
MEMORY = 200 * 2**20


async def test_planted_files_are_found_exactly_and_repaired_in_less_than_200_mib(tmp_path: Path) -> None:
    async with planted.process(tmp_path) as running:
        wrong = (await planted.plant(running, tmp_path, FILES)).wrong

        run = await planted.compared(running)

        assert run.state == Reconciliation.STATE_SUCCEEDED, run.message
        found = await planted.incidents(running)
        assert {one.path: Incident.Kind.Name(one.kind).removeprefix("KIND_") for one in found} == wrong
        assert run.verified_files == FILES - planted.LOST - planted.SHORT
        await planted.repaired(running)
        again = await planted.compared(running)
        assert (again.state, again.findings.ListFields()) == (Reconciliation.STATE_SUCCEEDED, []), again
        assert running.peak_bytes() < MEMORY

"""Jobs that wait and run for longer than the grants live that they were handed over with."""

from pathlib import Path

from khomas.catalog.app import service as catalog
from khomas.kit.testing import serve
from khomas.scheduler.app import service as scheduler
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.storage.app import service as storage


async def test_outputs_of_a_job_that_outlives_its_grants_are_taken(tmp_path: Path) -> None:
    settings = {
        "scheduler": {"poll": 0.1, "initial_backoff": 0.1, "grant_lifetime": 60},
        # Less than is asked for.
        "storage": {"check_interval": 0.2, "max_grant_lifetime": 5},
    }
    async with serve(catalog, storage, scheduler, state=tmp_path / "state", settings=settings) as served:
        spec = shell("sleep 11; echo 1 > o", outputs=[{"glob": "o", "name_pattern": "/hess/o"}])

        [job] = await Scheduler(served).run(spec)

        assert (states([job]), len(job.attempts)) == (["SUCCEEDED"], 1), job.status
        [output] = job.attempts[0].outputs
        assert output.name == "/hess/o"

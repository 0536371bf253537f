"""A storage that is killed while it works on a rule or a drain goes on when it is started again."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import drain_pb2, rule_pb2
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.storage.rules.testing import PATIENCE, World, running
from khomas.storage.testing import until

Rule = rule_pb2.ReplicationRule
FILES = [f"/hess/{number:02}" for number in range(20)]


async def killed(folder: Path, owner: str, step: str) -> None:
    script = Path(__file__).with_name("dies_with_rules.py")
    process = await asyncio.create_subprocess_exec(sys.executable, script, folder, owner, step)
    assert await process.wait() == -signal.SIGKILL


async def replicas(world: World) -> list[set[str]]:
    found = await world.catalog.BatchGetFiles(catalog_pb.BatchGetFilesRequest(names=FILES))
    return [{replica.storage_element for replica in one.file.replicas} for one in found.results]


@pytest.mark.parametrize(
    ("owner", "step"), [("Evaluation", "_place"), ("Starting", "start"), ("Evaluation", "_finish")]
)
async def test_rule_is_satisfied_after_sigkill_in(owner: str, step: str, tmp_path: Path) -> None:
    await killed(tmp_path, owner, step)

    async with running(tmp_path, again=True) as world:
        rule = await world.becomes(Rule(name=(tmp_path / "rule").read_text()), Rule.STATE_OK, files=20, ok_copies=40)

        assert all(len(where) == 2 for where in (await world.where(rule)).values())
        assert all(len(where) == 2 for where in await replicas(world))
        waiting = storage_pb.ListTransfersRequest(page_size=1000)
        transfers = (await world.storage.ListTransfers(waiting)).transfers
        # Nothing is copied twice, however often it was wanted: what lies there already is its own source.
        copied = [(one.file, one.destination) for one in transfers if one.source != one.destination]
        assert sorted(copied) == sorted(set(copied))
        assert len(copied) == len(FILES)


@pytest.mark.parametrize("step", ["_leave", "_rescue"])
async def test_drain_ends_after_sigkill_in(step: str, tmp_path: Path) -> None:
    await killed(tmp_path, "Draining", step)

    async with running(tmp_path, again=True) as world:

        async def drained() -> bool:
            found = await world.placement.GetDrain(pb.GetDrainRequest(name="drains/one"))
            return found.state == drain_pb2.Drain.STATE_DRAINED

        await until(drained, PATIENCE)
        rule = Rule(name=(tmp_path / "rule").read_text())
        await world.becomes(rule, Rule.STATE_OK, ok_copies=40)
        # Those that were rescued before the rule was looked at lie somewhere else, too.
        assert all(where >= {"two", "three"} and "one" not in where for where in await replicas(world))
        assert world.lying("one") == []

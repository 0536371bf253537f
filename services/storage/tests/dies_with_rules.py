"""Works on a rule or a drain and is killed on the way: `dies_with_rules.py <folder> <class> <method>`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from khomas.storage.rules.draining import Draining
from khomas.storage.rules.evaluation import Evaluation
from khomas.storage.rules.starting import Starting
from khomas.storage.rules.testing import World, running

FILES = [f"/hess/{number:02}" for number in range(20)]


async def main(folder: Path, owner: str, step: str) -> None:
    """Make a rule; never returns."""
    where: Any = {"Evaluation": Evaluation, "Starting": Starting, "Draining": Draining}[owner]
    done = getattr(where, step)

    async def last(self: Any, *arguments: Any, **more: Any) -> None:
        await done(self, *arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(where, step, last)
    async with running(folder) as world:
        await world.files(FILES, dataset="datasets/crab")
        rule = await world.rule("one | two | three", copies=2)
        (folder / "rule").write_text(rule.name)
        if owner == "Draining":
            await drained(world)
        await asyncio.sleep(300)


async def drained(world: World) -> None:
    """Begin to empty the StorageElement that has the files."""
    from uuid import uuid4

    from khomas.api.storage.v1 import placement_service_pb2 as pb

    request = pb.DrainStorageElementRequest(name="storageElements/one", request_id=str(uuid4()))
    await world.placement.DrainStorageElement(request)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))

"""The two other ways to a tape than XRootD's: WLCG Tape REST, and archives of S3. From the wish to the bytes."""

import json
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

from khomas.api.storage.v1 import recall_service_pb2 as pb
from khomas.api.storage.v1.storage_element_pb2 import AccessPoint
from khomas.storage.conformance import write
from tests.storage.s3 import opened
from tests.storage.tape import CONTENT, State, recalled_at
from tests.testbeds import s3 as s3_bed
from tests.testbeds import tape_rest
from tests.testbeds.s3 import ObjectStore

NAMES = [f"/hess/run {number}" for number in range(20)]


async def test_files_come_by_tape_rest_in_one_request(tmp_path: Path) -> None:
    async with tape_rest.running() as server:
        server.files = {f"/vo{name}": False for name in NAMES}
        point = AccessPoint(protocol="davs", address=server.address, options={"tape": "true", "seconds": "30"})
        async with recalled_at(point, tmp_path) as site:
            for name in NAMES:
                site.known(name)
            await site.recall(NAMES)
            requested = await site.until_all(State.STATE_REQUESTED)
            assert [len(paths) for paths in server.staged.values()] == [len(NAMES)]
            assert {one.request for one in requested} == set(server.staged)

            # A front end that is away stops nothing for good.
            server.away = True
            server.deliver(*(name[1:] for name in NAMES[:5]))
            await site.until(lambda found: all(one.message for one in found))
            server.away = False
            await site.until(lambda found: sum(one.state == State.STATE_ONLINE for one in found) == 5)

            left = [one.name for one in await site.all("state = REQUESTED")]
            cancelled = pb.BatchCancelRecallsRequest(names=left[:5], request_id=str(uuid4()))
            await site.recalls.BatchCancelRecalls(cancelled)
            server.deliver(*(name[1:] for name in NAMES[5:]))
            await site.until(lambda found: sum(one.state == State.STATE_ONLINE for one in found) == 15)
            assert len(server.staged) == 1
            await site.copied(NAMES[0], "local")
            assert (site.storage.root / NAMES[0][1:]).read_bytes() == CONTENT


async def test_objects_of_an_archive_are_restored_and_copied(tmp_path: Path) -> None:
    (tmp_path / "moto").mkdir()
    with s3_bed.moto(tmp_path / "moto") as server:
        slowly(server)
        archive = opened(server, "archive", storage_class="GLACIER")
        for name in NAMES:
            await write(archive, name[1:], CONTENT)
        await archive.close()

        point = AccessPoint(protocol="s3", address=f"{server.address}/archive", credential="s3")
        point.options.update(plain="true", storage_class="GLACIER")
        keys = {"s3": {"kind": "access-key", "options": {"file": str(server.keys)}}}
        async with recalled_at(point, tmp_path, settings={"storage": {"credentials": keys}}) as site:
            for name in NAMES:
                site.known(name)
            await site.recall(NAMES[:10])
            await site.until_all(State.STATE_ONLINE)
            await site.copied(NAMES[0], "local")
            assert (site.storage.root / NAMES[0][1:]).read_bytes() == CONTENT
            # Nobody has asked for this one: the transfer does.
            await site.copied(NAMES[-1], "local")
            assert (site.storage.root / NAMES[-1][1:]).read_bytes() == CONTENT


def slowly(server: ObjectStore) -> None:
    """Have restorations under way at the first looks at each."""
    transition = {"model_name": "s3::keyrestore", "transition": {"progression": "manual", "times": 3}}
    where = f"http://127.0.0.1:{server.port}/moto-api/state-manager/set-transition"
    request = Request(where, json.dumps(transition).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:  # noqa: S310
        assert answer.status < 300

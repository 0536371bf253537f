"""What is the same here and in the catalogue: size first, then adler32."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khomas.client.bytes_moving import Progress, adler32, nothing
from khomas.client.checksums import KnownChecksums, Read, is_settled, stamp_of
from khomas.client.connection import Connection
from khomas.client.errors import KhomasError
from khomas.client.pairs import Pair
from khomas.client.parts import chunks
from khomas.client.specs import dataset_name
from khomas.client.workers import Workers, first_failure

_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue says of the content of a file."""

    size: int
    # Empty if it has none: then equal sizes have to do.
    adler32: str


class Comparing:
    """Compares local files with the catalogue; what has not changed since it was last read is not read again."""

    def __init__(self, connection: Connection, known: KnownChecksums) -> None:
        self._connection = connection
        self._known = known

    async def named(self, names: Sequence[str]) -> dict[str, Known]:
        """Return what the catalogue has of these names."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        found: dict[str, Known] = {}
        for part in chunks(names, _NAMES):
            request = pb.BatchGetFilesRequest(names=part, view=pb.FILE_VIEW_BASIC)
            results = (await self._connection.call("catalog", "BatchGetFiles", request)).results
            found |= {one.file.name: _known(one.file) for one in results if one.HasField("file")}
        return found

    async def below(self, directory: str = "", dataset: str = "") -> AsyncIterator[tuple[str, Known]]:
        """Stream what the catalogue has below a directory, or in a dataset."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListFilesRequest(directory=directory, dataset=dataset_name(dataset), view=pb.FILE_VIEW_BASIC)
        async for answer in self._connection.stream("catalog", "StreamFiles", request):
            for file in answer.files:
                yield file.name, _known(file)

    async def differing(
        self, pairs: Sequence[tuple[Pair, Known]], *, read_all: bool = False, progress: Progress = nothing
    ) -> set[Pair]:
        """Return those whose content differs; `read_all` trusts no checksum that was read earlier."""
        sized = [(pair, known) for pair, known in pairs if pair.path.stat().st_size == known.size]
        same_size = {pair for pair, _ in sized}
        found = {pair for pair, _ in pairs if pair not in same_size}
        wanted = [(pair, known.adler32) for pair, known in sized if known.adler32]
        sums = await self._sums([pair.path for pair, _ in wanted], read_all=read_all, progress=progress)
        return found | {pair for pair, expected in wanted if sums[pair.path] != expected}

    async def _sums(self, paths: Sequence[Path], *, read_all: bool, progress: Progress) -> dict[Path, str]:
        sums = {} if read_all else self._known.of(paths)
        with Workers(progress) as workers:

            def read(path: Path) -> Read:
                stamp = stamp_of(path)

                def count(length: int) -> None:
                    workers.connections.check()
                    workers.progress(length)

                return path, stamp, adler32(path, count)

            results = await workers.each(read, [path for path in dict.fromkeys(paths) if path not in sums])
        if (failure := first_failure(results)) is not None:
            raise failure
        fresh = [one for one in results if not isinstance(one, KhomasError)]
        self._known.remember(one for one in fresh if is_settled(one[1]))
        return sums | {path: checksum for path, _, checksum in fresh}


def _known(file: Any) -> Known:
    return Known(file.size_bytes, file.checksums.adler32)

"""Answers what would be wrong with a release, without making it."""

from typing import Final

from khomas.api.archive.v1 import release_pb2 as pb
from khomas.archive.mapping import rules
from khomas.archive.offers import collisions, offers
from khomas.archive.reading import Reader
from khomas.archive.releases import Releases
from khomas.archive.upstream import Upstream

LIMIT: Final = 100


class Validation:
    """Maps the first files of a dataset."""

    def __init__(self, releases: Releases, upstream: Upstream, reader: Reader, vo: str) -> None:
        self._releases = releases
        self._upstream = upstream
        self._reader = reader
        self._vo = vo

    async def validate(self, release: pb.Release) -> pb.Release:
        """Return the release with its problems and the products that it would have."""
        checked_rules = rules(release.mapping)
        await self._releases.releasable(release.dataset)
        files = await self._upstream.members(release.dataset, limit=LIMIT)
        made = offers(release, checked_rules, files, self._vo)
        answer = pb.Release()
        answer.CopyFrom(release)
        answer.problems.extend(collisions(made))
        for batch in self._reader.batches(made):
            for one in await self._reader.check(release, batch):
                answer.problems.extend(one.problems)
                answer.record_count += one.record is not None
                answer.products.add(
                    source=one.offer.source.name,
                    file=one.offer.file,
                    publisher_did=one.offer.publisher_did,
                    content_digest=one.content_digest,
                    has_record=one.record is not None,
                )
        return answer

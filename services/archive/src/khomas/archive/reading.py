"""Reads files of a dataset and finds out what they would become."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from khomas.api.archive.v1 import release_pb2 as pb
from khomas.archive.fits_cards import NotFits, content_digest, looks_like_fits, read_hdus
from khomas.archive.offers import Checked, Offer, checked
from khomas.archive.upstream import Unreadable, Upstream

T = TypeVar("T")


class Reader:
    """Checks offers, some files at a time."""

    def __init__(self, upstream: Upstream, batch_files: int, access_url: str) -> None:
        self._upstream = upstream
        self._batch_files = batch_files
        self._access_url = access_url

    def batches(self, things: Sequence[T]) -> Iterator[Sequence[T]]:
        """Cut into what is worked on together."""
        for start in range(0, len(things), self._batch_files):
            yield things[start : start + self._batch_files]

    async def check(self, release: pb.Release, made: Sequence[Offer]) -> list[Checked]:
        """Read the files of one batch of offers and compute their records."""
        read = [offer for offer in made if looks_like_fits(offer.source.name)]
        results: dict[str, Checked] = {}
        if read:
            async with self._upstream.workspace() as folder:
                paths = await self._upstream.fetch([offer.source for offer in read], folder)
                found = await asyncio.gather(
                    *(
                        self._upstream.in_thread(self._checked, release, offer, paths[offer.source.name])
                        for offer in read
                    )
                )
            results = {one.offer.source.name: one for one in found}
        return [results.get(offer.source.name) or checked(release, offer, (), "", self._access_url) for offer in made]

    def _checked(self, release: pb.Release, offer: Offer, path: Path | Unreadable) -> Checked:
        try:
            if isinstance(path, Unreadable):
                raise path
            hdus = read_hdus(path)
        except (NotFits, Unreadable) as error:
            return Checked(offer, "", None, (f"{offer.source.name}: {error}",))
        headers = [hdu.read() for hdu in hdus]
        return checked(release, offer, headers, content_digest(hdus), self._access_url)

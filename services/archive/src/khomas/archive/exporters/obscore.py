"""The ObsCore table of a release as one VOTable."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from khomas.archive.exporters.interface import Content, Options
from khomas.archive.exporters.votable import votable
from khomas.kit.errors import FieldInvalid

_TIMESCALES = ("TT", "UTC", "TDB", "TAI")


class ObsCoreTable:
    """Writes obscore.vot."""

    description = "One VOTable with the ObsCore records of the release, obscore.vot."
    options: Mapping[str, str] = {"timescale": "of t_min and t_max: TT unless told"}

    async def export(self, content: Content, options: Options, folder: Path) -> Sequence[Path]:
        """Write the table."""
        timescale = options.get("timescale", "TT")
        if timescale not in _TIMESCALES:
            raise FieldInvalid.of("options.timescale", f"must be one of {', '.join(_TIMESCALES)}")
        path = folder / "obscore.vot"
        with path.open("w", encoding="utf-8") as stream:
            pieces = votable(content.records(), content.release.title, content.release.description, timescale)
            async for piece in pieces:
                stream.write(piece)
        return [path]


plugin = ObsCoreTable()

"""The two index tables of GADF over the event lists of a release, as gammapy's DataStore opens them."""

import asyncio
import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from khomas.api.catalog.v1 import file_pb2
from khomas.archive import names
from khomas.archive.exporters.interface import Content, Options
from khomas.archive.fits_cards import Hdu, NotFits, looks_like_fits, read_hdus
from khomas.archive.mapping import Header, Value
from khomas.kit.errors import FieldInvalid

# With NumPy it is 25 MiB, which a service pays with its first export.
if TYPE_CHECKING:
    from astropy.io import fits

_BATCH: Final = 32
_DOCUMENT: Final = "https://github.com/open-gamma-ray-astro/gamma-astro-data-formats"
# HDUCLAS2 of a response to HDU_TYPE, as GADF's HDU index table says.
_RESPONSES: Final = {
    "EFF_AREA": "aeff",
    "EDISP": "edisp",
    "RPSF": "psf",
    "PSF": "psf",
    "BKG": "bkg",
    "RAD_MAX": "rad_max",
}
# Columns of the observation index: format and unit. A run without the card has an empty field there.
_OBSERVATION: Final = {
    "OBS_ID": ("K", ""),
    **dict.fromkeys(("RA_PNT", "DEC_PNT", "GLON_PNT", "GLAT_PNT", "ZEN_PNT", "ALT_PNT", "AZ_PNT"), ("D", "deg")),
    "OBJECT": ("A", ""),
    **dict.fromkeys(("RA_OBJ", "DEC_OBJ"), ("D", "deg")),
    "OBS_MODE": ("A", ""),
    **dict.fromkeys(("ONTIME", "LIVETIME"), ("D", "s")),
    "DEADC": ("D", ""),
    **dict.fromkeys(("TSTART", "TSTOP"), ("D", "s")),
    "N_TELS": ("K", ""),
    "TELLIST": ("A", ""),
    "INSTRUME": ("A", ""),
    "TELESCOP": ("A", ""),
    "MUONEFF": ("D", ""),
    "EVENT_COUNT": ("K", ""),
}
_NEEDED: Final = ("OBS_ID", "RA_PNT", "DEC_PNT", "TSTART", "TSTOP")
# Times of all runs count from one moment, and all runs are of one place.
_COMMON: Final = ("MJDREFI", "MJDREFF", "TIMEUNIT", "TIMESYS", "TIMEREF", "GEOLON", "GEOLAT", "ALTITUDE")


@dataclass(frozen=True, slots=True)
class Run:
    """One event list with what lies in the same file."""

    events: Mapping[str, Value]
    # HDU_TYPE, HDU_CLASS, HDU_NAME, SIZE.
    hdus: tuple[tuple[str, str, str, int], ...]
    file_name: str


class GadfIndex:
    """Writes obs-index.fits.gz and hdu-index.fits.gz."""

    description = "The GADF index tables obs-index.fits.gz and hdu-index.fits.gz over the event lists of the release."
    options: Mapping[str, str] = {
        "dataset": "index the event lists of this dataset instead of those of the release",
        "match": 'shell pattern over file names, "*" unless told',
        "base_dir": "FILE_DIR: the folder of the event lists seen from that of the indexes, empty unless told",
    }

    async def export(self, content: Content, options: Options, folder: Path) -> Sequence[Path]:
        """Write the two tables."""
        files = await _candidates(content, options)
        runs: list[Run] = []
        for start in range(0, len(files), _BATCH):
            async with content.opened(files[start : start + _BATCH]) as paths:
                found = await asyncio.gather(*(asyncio.to_thread(_run, name, path) for name, path in paths.items()))
            runs += [run for run in found if run is not None]
        if not runs:
            raise FieldInvalid.of("options.dataset", "there is no event list (HDUCLAS1 = EVENTS) to index")
        runs.sort(key=lambda run: (int(run.events["OBS_ID"]), run.file_name))
        base_dir = str(options.get("base_dir", ""))
        return await asyncio.to_thread(_written, runs, base_dir, folder)


async def _candidates(content: Content, options: Options) -> list[file_pb2.File]:
    if dataset := options.get("dataset"):
        files = await content.members(f"datasets/{str(dataset).removeprefix('datasets/')}")
    else:
        files = await content.files([product.file for product in content.products])
    match = str(options.get("match", "*"))
    named = [(names.file_name(file.name), file) for file in files]
    chosen = [file for name, file in named if fnmatchcase(name, match) and looks_like_fits(name)]
    return sorted(chosen, key=lambda file: file.name)


def _run(lfn: str, path: Path) -> Run | None:
    """Read a file; None if it has no event list."""
    try:
        found = read_hdus(path)
    except NotFits as error:
        raise FieldInvalid.of("options.dataset", f"{lfn} cannot be read: {error}") from error
    read = [(hdu, hdu.read()) for hdu in found]
    events = next((header for _, header in read if header.cards.get("HDUCLAS1") == "EVENTS"), None)
    if events is None:
        return None
    if missing := [name for name in _NEEDED if name not in events.cards]:
        raise FieldInvalid.of("options.dataset", f"{lfn}: its event list has no {', '.join(missing)}")
    rows = [row for hdu, header in read if (row := _hdu_row(hdu, header)) is not None]
    return Run(_with_derived(events.cards), tuple(rows), names.file_name(lfn))


def _with_derived(cards: Mapping[str, Value]) -> dict[str, Value]:
    derived: dict[str, Value] = {"EVENT_COUNT": cards["NAXIS2"]}
    altitude = cards.get("ALT_PNT")
    if isinstance(altitude, int | float):
        derived["ZEN_PNT"] = 90.0 - altitude
    return {**derived, **cards}


def _hdu_row(hdu: Hdu, header: Header) -> tuple[str, str, str, int] | None:
    kind = str(header.cards.get("HDUCLAS1", ""))
    if kind in ("EVENTS", "GTI"):
        return kind.lower(), kind.lower(), header.name, hdu.size_bytes
    response = _RESPONSES.get(str(header.cards.get("HDUCLAS2", "")))
    if kind != "RESPONSE" or response is None:
        return None
    return response, str(header.cards.get("HDUCLAS4", "")).lower(), header.name, hdu.size_bytes


def _written(runs: Sequence[Run], base_dir: str, folder: Path) -> list[Path]:
    observations, hdus = folder / "obs-index.fits.gz", folder / "hdu-index.fits.gz"
    _write(observations, _observation_table(runs))
    _write(hdus, _hdu_table(runs, base_dir))
    return [observations, hdus]


def _observation_table(runs: Sequence[Run]) -> "fits.BinTableHDU":
    columns = []
    for name, (kind, unit) in _OBSERVATION.items():
        values = [run.events.get(name) for run in runs]
        if any(value is not None for value in values):
            columns.append(_column(name, kind, values, unit))
    table = _table(columns, "OBS_INDEX", "OBS")
    for name in _COMMON:
        common = {run.events[name] for run in runs if name in run.events}
        if len(common) > 1:
            raise FieldInvalid.of("options.dataset", f"its runs have different {name}: {sorted(map(str, common))}")
        if common:
            table.header[name] = common.pop()
    return table


def _hdu_table(runs: Sequence[Run], base_dir: str) -> "fits.BinTableHDU":
    rows = [(run, hdu) for run in runs for hdu in sorted(run.hdus)]
    columns = [
        _column("OBS_ID", "K", [run.events["OBS_ID"] for run, _ in rows]),
        _column("HDU_TYPE", "A", [hdu[0] for _, hdu in rows]),
        _column("HDU_CLASS", "A", [hdu[1] for _, hdu in rows]),
        _column("FILE_DIR", "A", [base_dir for _ in rows]),
        _column("FILE_NAME", "A", [run.file_name for run, _ in rows]),
        _column("HDU_NAME", "A", [hdu[2] for _, hdu in rows]),
        _column("SIZE", "K", [hdu[3] for _, hdu in rows]),
    ]
    return _table(columns, "HDU_INDEX", "HDU")


def _column(name: str, kind: str, values: Iterable[Value | None], unit: str = "") -> "fits.Column":
    import numpy as np
    from astropy.io import fits

    if kind == "A":
        texts = ["" if value is None else str(value) for value in values]
        width = max(1, *map(len, texts))
        return fits.Column(name, f"{width}A", array=np.array(texts, dtype=f"U{width}"))
    if kind == "K":
        return fits.Column(
            name, "K", array=np.array([0 if value is None else int(value) for value in values], np.int64)
        )
    numbers = [float("nan") if value is None else float(value) for value in values]
    return fits.Column(name, "D", unit=unit or None, array=np.array(numbers, np.float64))


def _table(columns: "Sequence[fits.Column]", name: str, kind: str) -> "fits.BinTableHDU":
    from astropy.io import fits

    table = fits.BinTableHDU.from_columns(columns, name=name)
    table.header.update({"HDUCLASS": "GADF", "HDUDOC": _DOCUMENT, "HDUVERS": "0.3"})
    table.header.update({"HDUCLAS1": "INDEX", "HDUCLAS2": kind})
    return table


def _write(path: Path, table: "fits.BinTableHDU") -> None:
    from astropy.io import fits

    for hdu in (primary := fits.PrimaryHDU(), table):
        hdu.add_datasum(when="of its data")
        hdu.add_checksum(when="of this HDU")
    plain = BytesIO()
    fits.HDUList([primary, table]).writeto(plain)
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
        stream.write(plain.getvalue())


plugin = GadfIndex()

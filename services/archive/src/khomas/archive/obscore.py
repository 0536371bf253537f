"""The 30 mandatory columns of IVOA ObsCore 1.1 and what may stand in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import cos, isfinite, radians, sin
from typing import Final

Scalar = str | int | float
Record = Mapping[str, Scalar | None]

PRODUCT_TYPES: Final = frozenset(
    {"image", "cube", "spectrum", "sed", "timeseries", "visibility", "event", "measurements"}
)


class Kind(StrEnum):
    """Type of a column, in the words of VOTable."""

    TEXT = "char"
    INTEGER = "int"
    LONG = "long"
    NUMBER = "double"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: what REC-ObsCore-v1.1 says of it (table 6 and appendix C)."""

    name: str
    kind: Kind
    utype: str
    ucd: str
    unit: str = ""
    required: bool = False
    xtype: str = ""


_T, _I, _L, _N = Kind.TEXT, Kind.INTEGER, Kind.LONG, Kind.NUMBER
_SPACE, _TIME, _SPECTRAL, _POL = "Char.SpatialAxis.", "Char.TimeAxis.", "Char.SpectralAxis.", "Char.PolarizationAxis."

COLUMNS: Final = (
    Column("dataproduct_type", _T, "ObsDataset.dataProductType", "meta.code.class"),
    Column("calib_level", _I, "ObsDataset.calibLevel", "meta.code;obs.calib", required=True),
    Column("obs_collection", _T, "DataID.collection", "meta.id", required=True),
    Column("obs_id", _T, "DataID.observationID", "meta.id", required=True),
    Column("obs_publisher_did", _T, "Curation.publisherDID", "meta.ref.ivoid", required=True),
    Column("access_url", _T, "Access.reference", "meta.ref.url"),
    Column("access_format", _T, "Access.format", "meta.code.mime"),
    Column("access_estsize", _L, "Access.size", "phys.size;meta.file", "kbyte"),
    Column("target_name", _T, "Target.name", "meta.id;src"),
    Column("s_ra", _N, _SPACE + "Coverage.Location.Coord.Position2D.Value2.C1", "pos.eq.ra", "deg"),
    Column("s_dec", _N, _SPACE + "Coverage.Location.Coord.Position2D.Value2.C2", "pos.eq.dec", "deg"),
    Column("s_fov", _N, _SPACE + "Coverage.Bounds.Extent.diameter", "phys.angSize;instr.fov", "deg"),
    Column("s_region", _T, _SPACE + "Coverage.Support.Area", "pos.outline;obs.field", xtype="adql:REGION"),
    Column("s_resolution", _N, _SPACE + "Resolution.Refval.value", "pos.angResolution", "arcsec"),
    Column("s_xel1", _L, _SPACE + "numBins1", "meta.number"),
    Column("s_xel2", _L, _SPACE + "numBins2", "meta.number"),
    Column("t_min", _N, _TIME + "Coverage.Bounds.Limits.StartTime", "time.start;obs.exposure", "d"),
    Column("t_max", _N, _TIME + "Coverage.Bounds.Limits.StopTime", "time.end;obs.exposure", "d"),
    Column("t_exptime", _N, _TIME + "Coverage.Support.Extent", "time.duration;obs.exposure", "s"),
    Column("t_resolution", _N, _TIME + "Resolution.Refval.value", "time.resolution", "s"),
    Column("t_xel", _L, _TIME + "numBins", "meta.number"),
    Column("em_min", _N, _SPECTRAL + "Coverage.Bounds.Limits.LoLimit", "em.wl;stat.min", "m"),
    Column("em_max", _N, _SPECTRAL + "Coverage.Bounds.Limits.HiLimit", "em.wl;stat.max", "m"),
    Column("em_res_power", _N, _SPECTRAL + "Resolution.ResolPower.refVal", "spect.resolution"),
    Column("em_xel", _L, _SPECTRAL + "numBins", "meta.number"),
    Column("o_ucd", _T, "Char.ObservableAxis.ucd", "meta.ucd"),
    Column("pol_states", _T, _POL + "stateList", "meta.code;phys.polarization"),
    Column("pol_xel", _L, _POL + "numBins", "meta.number"),
    Column("facility_name", _T, "Provenance.ObsConfig.Facility.name", "meta.id;instr.tel"),
    Column("instrument_name", _T, "Provenance.ObsConfig.Instrument.name", "meta.id;instr"),
)
BY_NAME: Final[Mapping[str, Column]] = {column.name: column for column in COLUMNS}

# Closed ranges.
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "calib_level": (0, 4),
    "access_estsize": (0, 2**63 - 1),
    "s_ra": (0, 360),
    "s_dec": (-90, 90),
    "s_fov": (0, 360),
    "s_resolution": (0, 3600 * 360),
    "t_exptime": (0, 1e12),
    "t_resolution": (0, 1e12),
    "em_min": (0, 1e9),
    "em_max": (0, 1e9),
    "em_res_power": (0, 1e12),
    **dict.fromkeys(("s_xel1", "s_xel2", "t_xel", "em_xel", "pol_xel"), (-1, 2**63 - 1)),
}
_ORDERED: Final = (("t_min", "t_max"), ("em_min", "em_max"))


def problems(record: Record) -> Iterator[tuple[str, str]]:
    """Say what ObsCore forbids in a record: the column and one sentence."""
    for column in COLUMNS:
        value = record.get(column.name)
        if value is None or value == "":
            if column.required:
                yield column.name, "must not be NULL"
        elif isinstance(value, float) and not isfinite(value):
            yield column.name, f"{value} is no finite number"
        elif column.name in _RANGES and not isinstance(value, str):
            low, high = _RANGES[column.name]
            if not low <= value <= high:
                yield column.name, f"{value} is outside of {low:g} to {high:g}"
    yield from _unlikely(record)


def _unlikely(record: Record) -> Iterator[tuple[str, str]]:
    kind = record.get("dataproduct_type")
    if kind is not None and kind not in PRODUCT_TYPES:
        yield "dataproduct_type", f"{kind!r} is none of {', '.join(sorted(PRODUCT_TYPES))}"
    for low, high in _ORDERED:
        first, last = record.get(low), record.get(high)
        if isinstance(first, int | float) and isinstance(last, int | float) and first > last:
            yield low, f"{first} is above {high}, {last}"
    if (record.get("s_ra") is None) != (record.get("s_dec") is None):
        yield "s_ra", "s_ra and s_dec go together"


def unit_vector(record: Record) -> tuple[float, float, float] | None:
    """Return the direction as x, y, z; cone searches compare dot products of these."""
    ra, dec = record.get("s_ra"), record.get("s_dec")
    if not isinstance(ra, int | float) or not isinstance(dec, int | float):
        return None
    a, d = radians(ra), radians(dec)
    return cos(d) * cos(a), cos(d) * sin(a), sin(d)

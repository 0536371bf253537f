"""Writes ObsCore records as a VOTable, a line at a time: memory stays flat whatever the release has."""

from collections.abc import AsyncIterable, AsyncIterator
from xml.sax.saxutils import escape, quoteattr

from khomas.api.archive.v1 import obscore_pb2
from khomas.archive.obscore import COLUMNS, Column, Kind

# ObsCore's times; TT is what gamma-ray files carry, so the frame is said.
_TIMES = frozenset({"t_min", "t_max"})
_SPACE = frozenset({"s_ra", "s_dec", "s_region"})


async def votable(
    records: AsyncIterable[obscore_pb2.ObsCoreRecord], title: str, description: str, timescale: str
) -> AsyncIterator[str]:
    """Yield the document in pieces."""
    yield _head(title, description, timescale)
    async for record in records:
        cells = "".join(f"<TD>{_cell(record, column)}</TD>" for column in COLUMNS)
        yield f"<TR>{cells}</TR>\n"
    yield "</TABLEDATA></DATA>\n</TABLE>\n</RESOURCE>\n</VOTABLE>\n"


def _head(title: str, description: str, timescale: str) -> str:
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">',
        f"<DESCRIPTION>{_text(description or title)}</DESCRIPTION>",
        '<COOSYS ID="icrs" system="ICRS"/>',
        f'<TIMESYS ID="time" refposition="TOPOCENTER" timeorigin="MJD-origin" timescale={quoteattr(timescale)}/>',
        '<RESOURCE type="results">',
        '<INFO name="QUERY_STATUS" value="OK"/>',
        '<TABLE name="obscore" utype="ivo://ivoa.net/std/ObsCore#core-1.1">',
        *(_field(column) for column in COLUMNS),
        "<DATA><TABLEDATA>",
    ]
    return "\n".join(lines) + "\n"


def _field(column: Column) -> str:
    attributes = {
        "name": column.name,
        "datatype": column.kind.value if column.kind is not Kind.TEXT else "unicodeChar",
        "arraysize": "*" if column.kind is Kind.TEXT else "",
        "ucd": column.ucd,
        "unit": column.unit,
        "utype": f"obscore:{column.utype}",
        "xtype": column.xtype,
        "ref": "time" if column.name in _TIMES else "icrs" if column.name in _SPACE else "",
    }
    return "<FIELD {}/>".format(" ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items() if value))


def _cell(record: obscore_pb2.ObsCoreRecord, column: Column) -> str:
    # The fields that are never NULL have no presence where they are plain.
    if not column.required and not record.HasField(column.name):  # type: ignore[arg-type]  # a column is a field
        return ""
    value = getattr(record, column.name)
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    """Escape for XML, without the control characters that it cannot carry."""
    return escape("".join(character for character in text if character >= " " or character in "\t\n"))

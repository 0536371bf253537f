"""How header cards and metadata become records."""

from typing import Any

import pytest

from khomas.api.archive.v1.release_pb2 import Mapping, MappingRule
from khomas.archive.errors import MappingInvalid
from khomas.archive.mapping import Header, Known, Mapped, rule_for, rules

PRIMARY = Header("PRIMARY", {"ORIGIN": "first", "DATE-OBS": "2004-12-04"})
EVENTS = Header(
    "EVENTS",
    {
        "ORIGIN": "second",
        "OBS_ID": 23523,
        "RA_PNT": 83.5,
        "DEC_PNT": 21.5,
        "MJDREFI": 51910,
        "MJDREFF": 0.000742870370370241,
        "TSTART": 123890826.0,
        "SIMULATD": True,
    },
)
CONTEXT: dict[str, str | int] = {
    "did": "ivo://a.b/crab?42",
    "collection": "crab",
    "stem": "run",
    "size_kbyte": 12,
    "format": "application/fits",
}


def mapped(**columns: str) -> Mapped:
    return _mapped(columns)


def _mapped(columns: dict[str, str], hdu: str = "", metadata: dict[str, Any] | None = None) -> Mapped:
    rule = MappingRule(match="*", hdu=hdu, columns={"calib_level": "2", **columns})
    [checked] = rules(Mapping(rules=[rule]))
    return checked.record(Known((PRIMARY, EVENTS), metadata or {}, CONTEXT))


def value(column: str, expression: str, **more: Any) -> Any:
    result = _mapped({column: expression}, **more)
    assert not result.problems
    return result.record[column]


@pytest.mark.parametrize(
    ("column", "expression", "expected"),
    [
        ("target_name", '"Crab Nebula"', "Crab Nebula"),
        ("target_name", "'it is @RA_PNT'", "it is @RA_PNT"),
        ("s_fov", "5", 5.0),
        ("obs_id", "@OBS_ID", "23523"),
        ("obs_id", "@obs_id", "23523"),
        ("target_name", "@{DATE-OBS}", "2004-12-04"),
        ("target_name", "#stem", "run"),
        ("t_xel", "@OBS_ID - 23500", 23),
        ("s_region", '"CIRCLE ICRS {@RA_PNT} {@DEC_PNT} 2.5"', "CIRCLE ICRS 83.5 21.5 2.5"),
        ("s_region", '"{@RA_PNT + 0.5}/{@{DATE-OBS}}"', "84.0/2004-12-04"),
        ("t_min", "@MJDREFI + @MJDREFF + @TSTART / 86400", 53343.92234009259),
        ("em_min", "1.239841984332e-6 / 1e14", 1.239841984332e-6 / 1e14),
        ("target_name", "", None),
    ],
)
def test_expression_gives_value(column: str, expression: str, expected: Any) -> None:
    assert value(column, expression) == expected


def test_defaults_come_from_the_archive() -> None:
    record = mapped().record

    assert (record["obs_id"], record["obs_collection"], record["access_estsize"]) == ("run", "crab", 12)
    assert record["obs_publisher_did"] == "ivo://a.b/crab?42"
    assert record["access_url"] is None


def test_first_hdu_with_the_card_counts_unless_one_is_named() -> None:
    assert value("target_name", "@ORIGIN") == "first"
    assert value("target_name", "@ORIGIN", hdu="events") == "second"


def test_metadata_is_read_by_key() -> None:
    assert value("t_exptime", "$fits.live * 2", metadata={"fits.live": 10.5}) == 21.0


def test_missing_card_is_null_or_a_problem() -> None:
    assert value("target_name", "@NOTHING") is None
    assert value("s_region", '"CIRCLE {@NOTHING} 1"') is None
    assert mapped(obs_id="@NOTHING").problems == (("obs_id", "must not be NULL, and needs the card NOTHING"),)


def test_problems_of_several_columns_are_told_together() -> None:
    result = mapped(
        s_fov="@ORIGIN", t_xel="@OBS_ID / 2", t_exptime="@OBS_ID / (@OBS_ID - @OBS_ID)", target_name='"fine"'
    )

    assert [column for column, _ in result.problems] == ["s_fov", "t_exptime", "t_xel"]
    assert result.record["target_name"] == "fine"


def test_missing_hdu_is_a_problem() -> None:
    assert _mapped({}, hdu="NOWHERE").problems[0] == ("", "the file has no HDU NOWHERE")


@pytest.mark.parametrize(
    ("column", "expression", "hint"),
    [
        ("colour", '"red"', "colour is no column of ObsCore"),
        ("target_name", "RA_PNT", "@RA_PNT for a card"),
        ("target_name", "#nothing", "there is no #nothing"),
        ("s_fov", '"wide"', "is not a number"),
        ("calib_level", "2.5", "is not a whole number"),
        ("s_fov", "2 +", "does not parse"),
        ("s_fov", "__import__('os')", "only these functions exist"),
        ("s_region", '"{2 +}"', "does not parse"),
        ("target_name", r'"a\0b"', "no table takes"),
    ],
)
def test_expression_that_cannot_work_is_refused_at_once(column: str, expression: str, hint: str) -> None:
    with pytest.raises(MappingInvalid, match=hint.replace("(", r"\(")) as refused:
        _mapped({column: expression})
    assert refused.value.metadata["column"] == column


def test_first_rule_that_fits_is_used() -> None:
    checked = rules(
        Mapping(rules=[MappingRule(match="a*.fits", columns={"calib_level": "1"}), MappingRule(match="*.fits")])
    )

    assert rule_for(checked, "ab.fits") is checked[0]
    assert rule_for(checked, "b.fits") is checked[1]
    assert rule_for(checked, "b.png") is None

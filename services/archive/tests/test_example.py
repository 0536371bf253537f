"""The mapping of the worked example."""

from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import ParseDict

from khomas.api.archive.v1.release_pb2 import Mapping
from khomas.archive.mapping import Header, Known, rule_for, rules

FILE = Path(__file__).parents[3] / "examples" / "hess" / "mapping.yaml"
CONTEXT = {"did": "ivo://example.org/crab?x", "collection": "crab", "stem": "x"}
PRIMARY = Header("PRIMARY", {"OBS_ID": 42, "OBJECT": "Crab", "TELESCOP": "HESS", "INSTRUME": "Phase I"})
COUNTS = Header("COUNTS", {"CRVAL1": 83.5, "CRVAL2": 22.0, "CDELT1": -0.5, "CDELT2": 0.5, "NAXIS1": 6, "NAXIS2": 6})
EVENTS = Header("EVENTS", {**PRIMARY.cards, "RA_PNT": 83.5, "DEC_PNT": 22.0, "LIVETIME": 10.0})


@pytest.mark.parametrize(
    ("file_name", "kind", "level", "obs_id"),
    [
        ("hess_dl3_dr1_obs_id_023523.fits.gz", "event", 2, "42"),
        ("simulated_obs_id_900001.fits.gz", "event", 2, "42"),
        ("pha_obs42.fits", "spectrum", 3, "42"),
        ("map_obs42.fits.gz", "cube", 3, "42"),
        ("sed.fits", "sed", 4, "x"),
        ("counts.fits", "image", 3, "x"),
        ("significance.fits", "image", 4, "x"),
    ],
)
def test_every_product_of_the_example_has_a_record(file_name: str, kind: str, level: int, obs_id: str) -> None:
    rule = rule_for(rules(ParseDict(yaml.safe_load(FILE.read_text()), Mapping())), file_name)
    assert rule is not None

    mapped = rule.record(Known((PRIMARY, COUNTS, EVENTS), {}, CONTEXT))

    assert mapped.problems == ()
    assert (mapped.record["dataproduct_type"], mapped.record["calib_level"]) == (kind, level)
    assert (mapped.record["obs_id"], mapped.record["target_name"]) == (obs_id, "Crab")
    assert rule.by_reference is (kind == "event")


@pytest.mark.parametrize("file_name", ["significance.png", "spectrum.json"])
def test_other_files_of_the_example_have_none(file_name: str) -> None:
    assert rule_for(rules(ParseDict(yaml.safe_load(FILE.read_text()), Mapping())), file_name) is None

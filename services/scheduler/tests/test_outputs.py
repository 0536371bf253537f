"""From the files of an exit record to files of the catalogue."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.intake.blueprint import Blueprint, Identity
from khomas.scheduler.intake.frozen import Frozen
from khomas.scheduler.outputs import MetadataUnfit, commits, typed
from khomas.scheduler.records import Attempt


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        (MetadataKey.TYPE_TEXT, 40, {"text": "40"}),
        (MetadataKey.TYPE_INTEGER, "40", {"integer": "40"}),
        (MetadataKey.TYPE_NUMBER, "4e1", {"number": 40.0}),
        (MetadataKey.TYPE_BOOLEAN, True, {"boolean": True}),
        (MetadataKey.TYPE_TIME, "2013-11-02T20:15:00", {"time": "2013-11-02T20:15:00Z"}),
    ],
)
def test_value_gets_the_declared_type(kind: int, value: Any, written: dict[str, Any]) -> None:
    assert MessageToDict(typed("key", value, kind)) == written


def test_value_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(MetadataUnfit, match="zenith is declared as number, which 'high' is not"):
        typed("zenith", "high", MetadataKey.TYPE_NUMBER)


def test_cards_become_metadata_and_what_is_given_wins(any_attempt: Attempt) -> None:
    output = {
        "glob": "*.fits",
        "namePattern": "/hess/{job}/{file}",
        "headerMetadata": ["OBJECT", "RA_PNT=pointing_ra", "ABSENT"],
        "metadata": {"object": "Crab"},
        "datasets": ["datasets/crab"],
    }
    spec = ParseDict({"command": {"executable": "x"}, "outputs": [output]}, JobSpec())
    blueprint = Blueprint(spec, Frozen())
    values = blueprint.values(blueprint.child(0), Identity("u"))
    [commit] = commits(blueprint, any_attempt, values, {"pointing_ra": MetadataKey.TYPE_NUMBER})
    assert (commit.name, commit.index, list(commit.parents)) == ("/hess/u/a.fits", 0, ["/hess/raw"])
    assert list(commit.datasets) == ["datasets/crab"]
    assert {key: MessageToDict(value) for key, value in commit.metadata.items()} == {
        "object": {"text": "Crab"},
        "pointing_ra": {"number": 83.6},
    }
    assert commit.checksums.content_digest == "c" * 64


@pytest.fixture
def any_attempt() -> Attempt:
    """An attempt that left one FITS file."""
    from datetime import UTC, datetime

    made = {
        "output": 0,
        "path": "a.fits",
        "index": 0,
        "sandbox": False,
        "size_bytes": 3,
        "adler32": "024d0127",
        "content_digest": "c" * 64,
        "header": {"OBJECT": "Crab's nebula", "RA_PNT": 83.6},
    }
    return Attempt(
        uid="a",
        job="u",
        number=1,
        backend="local",
        native_id="n",
        queue="",
        node="",
        state=JobState.JOB_STATE_FINISHING,
        reason=Reason.REASON_UNSPECIFIED,
        message="",
        native_state="",
        exit_code=0,
        signal=None,
        usage={},
        outputs=[],
        record={"state": "SUCCEEDED", "outputs": [made]},
        upload="uploads/1",
        inputs=["/hess/raw"],
        script_sha256="",
        create_time=datetime.now(UTC),
    )

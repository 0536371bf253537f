"""Moments and spans that Python cannot hold are found in requests of any shape."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1.value_pb2 import Value
from khomas.kit.boundary.moments import check_spans, moments_of
from khomas.kit.errors import FieldInvalid

FIRST, LAST = Timestamp(seconds=-62_135_596_800), Timestamp(seconds=253_402_300_799, nanos=999_999_999)
TOO_EARLY, TOO_LATE = Timestamp(seconds=-62_135_596_801), Timestamp(seconds=253_402_300_800)
THOUSAND_YEARS = 31_557_600_000


def work_on(moment: Timestamp, *given: Message) -> None:
    with moments_of([*given]):
        moment.ToDatetime()


@pytest.mark.parametrize("moment", [FIRST, LAST])
def test_first_and_last_moment_of_the_calendar_are_taken(moment: Timestamp) -> None:
    work_on(moment, pb.ListFilesRequest(as_of_time=moment))


@pytest.mark.parametrize("moment", [TOO_EARLY, TOO_LATE, Timestamp(nanos=-5), Timestamp(nanos=1_000_000_000)])
def test_moment_outside_of_the_calendar_is_an_invalid_field(moment: Timestamp) -> None:
    with pytest.raises(FieldInvalid, match="as_of_time: is no moment of the years 1 to 9999"):
        work_on(moment, pb.ListFilesRequest(as_of_time=moment))


def test_moment_is_found_in_lists_and_maps() -> None:
    files = [File(), File(replicas=[Replica(), Replica(verify_time=TOO_LATE)])]
    with pytest.raises(FieldInvalid, match=r"files\[1\]\.replicas\[1\]\.verify_time"):
        work_on(TOO_LATE, pb.BatchCreateFilesRequest(files=files))
    files = [File(metadata={"run": Value(integer=1), "begun": Value(time=TOO_LATE)})]
    with pytest.raises(FieldInvalid, match=r"files\[0\]\.metadata\[begun\]\.time"):
        work_on(TOO_LATE, pb.BatchCreateFilesRequest(files=files))


def test_the_last_message_of_a_stream_is_blamed() -> None:
    with pytest.raises(ValueError, match="Timestamp is not valid"):
        work_on(TOO_LATE, pb.ListFilesRequest(as_of_time=TOO_LATE), pb.ListFilesRequest(as_of_time=LAST))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="Timestamp is not valid"):
        work_on(TOO_LATE)


@pytest.mark.parametrize("seconds", [THOUSAND_YEARS, -THOUSAND_YEARS])
def test_spans_of_a_thousand_years_are_taken(seconds: int) -> None:
    check_spans(pb.BatchDeleteFilesRequest(undo_window=Duration(seconds=seconds)))


@pytest.mark.parametrize(
    "span",
    [Duration(seconds=THOUSAND_YEARS + 1), Duration(seconds=-THOUSAND_YEARS - 1), Duration(nanos=1_000_000_000)],
)
def test_longer_spans_are_an_invalid_field(span: Duration) -> None:
    with pytest.raises(FieldInvalid, match="undo_window: is no duration of at most 1000 years"):
        check_spans(pb.BatchDeleteFilesRequest(undo_window=span))

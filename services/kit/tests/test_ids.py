"""Uids: valid, ascending, and with the time in them."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from khomas.kit.ids import is_uid, new_uid, new_uids, uid_time


def test_uids_are_version_seven_of_the_standard_variant() -> None:
    parsed = [uuid.UUID(uid) for uid in new_uids(1000)]
    assert {one.version for one in parsed} == {7}
    assert {one.variant for one in parsed} == {uuid.RFC_4122}


def test_uids_ascend_over_single_and_bulk_calls() -> None:
    uids = [new_uid() for _ in range(5000)] + new_uids(100_000) + [new_uid() for _ in range(5000)]
    assert uids == sorted(uids)
    assert len(set(uids)) == len(uids)


def test_uid_tells_when_it_was_made() -> None:
    assert abs(uid_time(new_uid()) - datetime.now(UTC)) < timedelta(seconds=1)


def test_every_uid_is_recognised_and_nothing_else() -> None:
    assert all(map(is_uid, new_uids(1000)))
    assert not is_uid(str(uuid.uuid4()))
    assert not is_uid(new_uid().upper())
    assert not is_uid(f"jobs/{new_uid()}")


def test_time_of_another_kind_of_id_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a UUIDv7"):
        uid_time(str(uuid.uuid4()))

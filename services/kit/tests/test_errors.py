"""What an error carries to the caller."""

from datetime import UTC, datetime

import grpc
import pytest

from khomas.kit.auth.principal import Kind
from khomas.kit.boundary.status import info_of, status_of, unregistered_reasons
from khomas.kit.errors import DomainError, FieldInvalid, FieldViolation, NotFound


class Misspelt(DomainError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FUOND"
    # No service has this area, so that no service's own test finds this class.
    area = "common"
    template = "There is no {name}."


def test_message_is_made_of_the_metadata() -> None:
    error = NotFound(name="jobs/1")
    assert (error.message, str(error), error.metadata) == ("There is no jobs/1.",) * 2 + ({"name": "jobs/1"},)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (["a", 1], "a, 1"),
        (Kind.USER, "user"),
        (7, "7"),
        ("x" * 600, "x" * 512),
        (["x" * 512, "y" * 510, "z"], f"{'x' * 512}, {'y' * 510}"),
        (["x" * 500] * 3, f"{'x' * 500}, {'x' * 500}"),
    ],
)
def test_metadata_are_texts(value: object, text: str) -> None:
    assert NotFound("gone", name=value).metadata["name"] == text


def test_domain_tells_the_area() -> None:
    assert Misspelt(name="x").domain == "khomas.common"
    assert info_of(status_of(NotFound(name="x"))).domain == "khomas"


def test_many_violations_fit_into_a_reply() -> None:
    violations = [FieldViolation(f"files[{number}].name", "must be absolute, " * 50) for number in range(1000)]
    error = FieldInvalid.all_of(violations)
    assert error.message.endswith("(999 more)")
    assert len(status_of(error).SerializeToString()) < 8000


def test_all_reasons_of_the_kit_are_registered() -> None:
    assert unregistered_reasons("") == []


def test_unregistered_reason_is_found() -> None:
    [found] = unregistered_reasons("common")
    assert found.endswith("Misspelt: NOT_FUOND")

"""What every service has to prove."""

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.bookkeeping import errors
from khomas.kit.boundary.status import unregistered_reasons
from khomas.kit.database.migrations import differences
from khomas.kit.testing import Served
from khomas.kit.testing.auth import assert_methods_declare_access, assert_refuses_bad_tokens

SERVICE = pb.DESCRIPTOR.services_by_name["BookkeepingService"]


def test_every_rpc_declares_who_may_call_it() -> None:
    assert_methods_declare_access(SERVICE)


async def test_every_rpc_refuses_bad_tokens(served: Served) -> None:
    await assert_refuses_bad_tokens(served, SERVICE)


def test_every_reason_is_registered() -> None:
    assert errors.BookkeepingError.area == "bookkeeping"
    assert unregistered_reasons("bookkeeping") == []


async def test_the_migrations_make_the_schema_of_the_code(served: Served) -> None:
    assert await differences(served.services["bookkeeping"].parts) == []

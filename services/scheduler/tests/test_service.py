"""What holds for every rpc."""

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.kit.boundary.status import unregistered_reasons
from khomas.kit.testing.auth import assert_methods_declare_access, assert_refuses_bad_tokens
from khomas.scheduler.testing import Scheduler

SERVICE = pb.DESCRIPTOR.services_by_name["SchedulerService"]


def test_every_rpc_declares_its_capability() -> None:
    assert_methods_declare_access(SERVICE)


async def test_every_rpc_refuses_bad_tokens(scheduler: Scheduler) -> None:
    await assert_refuses_bad_tokens(scheduler.served, SERVICE)


def test_every_reason_is_registered() -> None:
    assert unregistered_reasons("scheduler") == []

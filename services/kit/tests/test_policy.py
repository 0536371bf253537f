"""Access options, compiled."""

from datetime import UTC, datetime
from itertools import count

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from khomas.api.common.v1 import access_pb2, event_pb2
from khomas.kit.auth.policy import PolicyInvalid, policy_of
from khomas.kit.auth.principal import Kind, Principal
from khomas.kit.auth.scopes import capabilities_of
from khomas.kit.errors import CapabilityMissing, FieldInvalid
from khomas.kit.ids import new_uid
from khomas.kit.testing.auth import assert_methods_declare_access
from khomas.kit.testing.echo import DESCRIPTOR

NUMBERS = count()
REPLY = "khomas.api.common.v1.WatchEventsResponse"


def holder(*scopes: str) -> Principal:
    capabilities = capabilities_of(scopes)
    return Principal("hess", "i", "alice", Kind.USER, (), capabilities, (), "1", datetime(2030, 1, 1, tzinfo=UTC))


def rpc(access: access_pb2.Access | None, input_type: str = REPLY) -> MethodDescriptor:
    """Return a method with this access option."""
    number = next(NUMBERS)
    file = descriptor_pb2.FileDescriptorProto(name=f"policy{number}.proto", package=f"policy{number}", syntax="proto3")
    file.dependency.extend(["khomas/api/common/v1/event.proto", "khomas/api/common/v1/access.proto"])
    method = file.service.add(name="S").method.add(name="M", input_type=f".{input_type}", output_type=f".{REPLY}")
    if access is not None:
        method.options.Extensions[access_pb2.access].CopyFrom(access)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindServiceByName(f"policy{number}.S").methods[0]


def by_path(*fields: str) -> MethodDescriptor:
    return rpc(access_pb2.Access(capability="catalog.read", path_fields=fields))


def reply(*subjects: str) -> event_pb2.WatchEventsResponse:
    return event_pb2.WatchEventsResponse(events=[event_pb2.Event(subject=subject) for subject in subjects])


@pytest.mark.parametrize("access", [None, access_pb2.Access(), access_pb2.Access(public=False)])
def test_method_that_declares_nothing_is_closed(access: access_pb2.Access | None) -> None:
    with pytest.raises(CapabilityMissing):
        policy_of(rpc(access)).check_caller(holder("admin"))


@pytest.mark.parametrize(
    "access",
    [
        access_pb2.Access(capability="catalog.raed"),
        access_pb2.Access(capability="compute.read", path_fields=["cursor"]),
        access_pb2.Access(capability="catalog.read", path_fields=["nothing"]),
        access_pb2.Access(capability="catalog.read", path_fields=["events"]),
        access_pb2.Access(capability="catalog.read", path_fields=["cursor.x"]),
    ],
)
def test_option_that_makes_no_sense_is_refused_at_start(access: access_pb2.Access) -> None:
    with pytest.raises(PolicyInvalid):
        policy_of(rpc(access))


def test_paths_in_every_element_are_checked() -> None:
    policy = policy_of(by_path("events.subject"))
    policy.check_request(holder("catalog.read:/vo"), reply("/vo/a", "/vo/b"))
    with pytest.raises(CapabilityMissing) as caught:
        policy.check_request(holder("catalog.read:/vo"), reply("/vo/a", "/other/b"))
    assert caught.value.metadata["path"] == "/other/b"


def test_resource_by_its_uid_may_be_any_path() -> None:
    policy = policy_of(by_path("events.subject"))
    by_uid = reply("/vo/a", f"files/{new_uid()}")

    policy.check_request(holder("catalog.read:/"), by_uid)
    with pytest.raises(CapabilityMissing):
        policy.check_request(holder("catalog.read:/vo"), by_uid)
    with pytest.raises(FieldInvalid):
        policy.check_request(holder("catalog.read:/"), reply("files/a"))


def test_every_path_field_is_checked() -> None:
    policy = policy_of(by_path("events.subject", "cursor"))
    with pytest.raises(CapabilityMissing):
        policy.check_request(holder("catalog.read:/vo"), reply("/vo/a"))


def test_without_path_fields_the_capability_on_any_path_is_enough() -> None:
    policy = policy_of(by_path())
    policy.check_caller(holder("catalog.read:/vo"))
    policy.check_request(holder("catalog.read:/vo"), reply())
    with pytest.raises(CapabilityMissing):
        policy.check_caller(holder("storage.read:/"))


def test_odd_path_is_an_invalid_field() -> None:
    with pytest.raises(FieldInvalid) as caught:
        policy_of(by_path("events.subject")).check_request(holder("catalog.read:/"), reply("/vo/../x"))
    assert caught.value.metadata == {"field": "events.subject"}


def test_missing_declaration_fails_a_services_test() -> None:
    with pytest.raises(AssertionError, match="Closed"):
        assert_methods_declare_access(DESCRIPTOR)

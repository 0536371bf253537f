"""Every rpc says who may call it, in words that its request can answer."""

import importlib
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from khomas.api.common.v1 import access_pb2

SOURCE = Path(__file__).resolve().parent.parent / "src"
SERVICES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.glob("khomas/**/*_service_pb2.py")
)
RPCS = [
    method
    for name in SERVICES
    for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
AREAS = {"catalog", "storage", "compute", "bookkeeping", "archive"}


def field_type(message: Descriptor, path: str) -> int:
    """Follow a dotted path through the messages; raises KeyError where a name is unknown."""
    head, _, rest = path.partition(".")
    field = message.fields_by_name[head]
    if not rest:
        return field.type
    assert field.message_type is not None, f"{head} is no message, yet the policy looks inside it"
    return field_type(field.message_type, rest)


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_rpc_declares_who_may_call_it(rpc: MethodDescriptor) -> None:
    access = rpc.GetOptions().Extensions[access_pb2.access]

    assert access.public or access.capability == "admin" or access.capability.split(".")[0] in AREAS


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_paths_of_the_policy_are_texts_of_the_request(rpc: MethodDescriptor) -> None:
    access = rpc.GetOptions().Extensions[access_pb2.access]

    types = {field_type(rpc.input_type, path) for path in access.path_fields}

    assert types <= {FieldDescriptor.TYPE_STRING}


READING = ("Get", "List", "BatchGet", "Watch", "Stream", "Explain", "Preview", "Scan", "Count", "Read", "Find")
# Grants to read are given anew at each call, nothing is kept of them.
WITHOUT_TRACE = ("khomas.api.storage.v1.StorageService.BatchCreateDownloads",)


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_rpc_that_changes_something_can_be_repeated(rpc: MethodDescriptor) -> None:
    if rpc.name.startswith(READING) or rpc.full_name in WITHOUT_TRACE:
        return

    assert "request_id" in rpc.input_type.fields_by_name

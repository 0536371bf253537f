"""The `access` option of an rpc, compiled once into a check."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from khomas.api.common.v1 import access_pb2
from khomas.kit.auth.paths import odd_path
from khomas.kit.auth.principal import Principal, refused_path
from khomas.kit.auth.scopes import WITH_PATH, WITHOUT_PATH
from khomas.kit.errors import CapabilityMissing, FieldInvalid
from khomas.kit.ids import is_uid

Getter = Callable[[Any], Iterable[str]]


class PolicyInvalid(Exception):
    """The access option of an rpc makes no sense; the server does not start with it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may call one method. With neither `public` nor a capability: nobody."""

    public: bool = False
    capability: str = ""
    paths: tuple[tuple[str, Getter], ...] = ()

    def check_caller(self, principal: Principal) -> None:
        """Refuse a caller who lacks the capability altogether."""
        if self.capability not in principal.covers:
            raise CapabilityMissing(capability=self.capability or "(none: closed to everybody)", path="any path")

    def check_request(self, principal: Principal, request: Message) -> None:
        """Refuse a request for a path that the caller's capability does not cover."""
        if self.capability not in WITH_PATH:
            return
        for field, getter in self.paths:
            self._check_paths(principal, field, list(getter(request)))

    def _check_paths(self, principal: Principal, field: str, paths: Sequence[str]) -> None:
        asked = [path if path.startswith("/") else _asked(path) for path in paths]
        if (odd := odd_path(asked)) is not None:
            raise FieldInvalid.of(field, f"{odd[:200]!r} is not an absolute path without odd segments")
        if (refused := refused_path(principal, self.capability, asked)) is not None:
            raise CapabilityMissing(capability=self.capability, path=refused)


def _asked(path: str) -> str:
    """Return "/" for what may be any path: an unset one, and a resource by its uid ("files/0190…")."""
    return "/" if not path or is_uid(path.partition("/")[2]) else path


def declared_access(method: MethodDescriptor) -> access_pb2.Access:
    """Return the access option of a method, empty where it has none."""
    access: access_pb2.Access = method.GetOptions().Extensions[access_pb2.access]
    return access


def policy_of(method: MethodDescriptor) -> Policy:
    """Compile the policy of a method; one that declares nothing is closed to everybody."""
    access = declared_access(method)
    rule = access.WhichOneof("rule")
    if rule is None or (rule == "public" and not access.public):
        return Policy()
    if rule == "public":
        return Policy(public=True)
    if access.capability not in WITH_PATH | WITHOUT_PATH:
        raise PolicyInvalid(f"{method.full_name}: there is no capability {access.capability!r}")
    if access.path_fields and access.capability not in WITH_PATH:
        raise PolicyInvalid(f"{method.full_name}: {access.capability} has no paths")
    fields = tuple((field, _getter(method.input_type, field)) for field in access.path_fields)
    return Policy(capability=access.capability, paths=fields)


def policies_of(service: ServiceDescriptor) -> dict[str, Policy]:
    """Compile the policies of all methods of a service, by method name."""
    return {method.name: policy_of(method) for method in service.methods}


def _getter(message: Descriptor, path: str) -> Getter:
    """Return what finds the texts at a dotted field path, through every element of repeated fields."""
    name, _, rest = path.partition(".")
    field = message.fields_by_name.get(name)
    if field is None:
        raise PolicyInvalid(f"{message.full_name} has no field {name!r}")
    if not rest:
        return _texts(field)
    if field.message_type is None:
        raise PolicyInvalid(f"{field.full_name} is not a message")
    inner = _getter(field.message_type, rest)
    if not field.is_repeated:
        return lambda request: inner(getattr(request, name))
    return lambda request: (text for element in getattr(request, name) for text in inner(element))


def _texts(field: FieldDescriptor) -> Getter:
    if field.type != FieldDescriptor.TYPE_STRING:
        raise PolicyInvalid(f"{field.full_name} is not a text")
    name = field.name
    if field.is_repeated:
        return lambda request: getattr(request, name)
    return lambda request: (getattr(request, name),)

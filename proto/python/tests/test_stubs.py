"""Every committed stub imports, and every rule written in the contracts can be evaluated."""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import protovalidate
import pytest
from google.protobuf import descriptor, message_factory
from google.protobuf.message import Message

SOURCE = Path(__file__).resolve().parent.parent / "src"
STUBS = sorted(".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.glob("khomas/**/*_pb2*.py"))
MESSAGES = [name for name in STUBS if name.endswith("_pb2")]


def empty_messages(kinds: Iterable[descriptor.Descriptor]) -> Iterator[Message]:
    for kind in kinds:
        yield message_factory.GetMessageClass(kind)()
        yield from empty_messages(kind.nested_types)


@pytest.mark.parametrize("name", STUBS)
def test_stub_imports_with_the_installed_protobuf(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize("name", MESSAGES)
def test_rules_of_every_message_compile(name: str) -> None:
    for message in empty_messages(importlib.import_module(name).DESCRIPTOR.message_types_by_name.values()):
        # Raises CompilationError where a pattern or an expression is wrong; violations are welcome here.
        protovalidate.collect_violations(message)

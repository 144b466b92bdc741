"""The contract as a document: what is in it, and that it explains itself.

Reads what protoc understood of proto/ds4/v1, comments included, so that it does not depend on the
linter that the checks run.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).resolve().parents[2]
PATH_MESSAGE, PATH_ENUM, PATH_SERVICE = 4, 5, 6  # field numbers in FileDescriptorProto
PATH_FIELD, PATH_NESTED_MESSAGE, PATH_NESTED_ENUM, PATH_ONEOF = 2, 3, 4, 8  # in DescriptorProto
PATH_MEMBER = 2  # in EnumDescriptorProto (values) and ServiceDescriptorProto (methods)

METHODS = {
    "Inference": "Generate Attach Cancel Estimate Explain Tokenize Detokenize Render",
    "Sessions": "ListSessions ForkSession RewindSession NameSession PinSession DeleteSession",
    "KvCache": "Open Lookup Fetch Have Put Release Invalidate "
    "Stat List Inspect Evict Pin Verify Compact Purge",
    "Admin": "Status Watch Load Unload Drain Metrics",
}

Element = tuple[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    out = tmp_path_factory.mktemp("contract") / "set.binpb"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={ROOT / 'proto'}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            *map(str, sorted((ROOT / "proto/ds4/v1").glob("*.proto"))),
        ],
        check=True,
    )
    return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def enum_elements(enum: EnumDescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[Element]:
    yield name, path
    for i, value in enumerate(enum.value):
        yield f"{name}.{value.name}", (*path, PATH_MEMBER, i)


def message_elements(
    message: DescriptorProto, name: str, path: tuple[int, ...]
) -> Iterator[Element]:
    yield name, path
    for i, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, PATH_FIELD, i)
    for i, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # what `optional` makes has no place in the file
            yield f"{name}.{oneof.name}", (*path, PATH_ONEOF, i)
    for i, enum in enumerate(message.enum_type):
        yield from enum_elements(enum, f"{name}.{enum.name}", (*path, PATH_NESTED_ENUM, i))
    for i, nested in enumerate(message.nested_type):
        yield from message_elements(
            nested, f"{name}.{nested.name}", (*path, PATH_NESTED_MESSAGE, i)
        )


def file_elements(file: FileDescriptorProto) -> Iterator[Element]:
    for i, message in enumerate(file.message_type):
        yield from message_elements(message, message.name, (PATH_MESSAGE, i))
    for i, enum in enumerate(file.enum_type):
        yield from enum_elements(enum, enum.name, (PATH_ENUM, i))
    for i, service in enumerate(file.service):
        yield service.name, (PATH_SERVICE, i)
        for j, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (PATH_SERVICE, i, PATH_MEMBER, j)


def without_comment(contract: Sequence[FileDescriptorProto]) -> list[str]:
    bare = []
    for file in contract:
        comments = {
            tuple(place.path): place.leading_comments for place in file.source_code_info.location
        }
        bare += [name for name, path in file_elements(file) if not comments.get(path, "").strip()]
    return bare


def test_every_element_is_explained(contract: list[FileDescriptorProto]) -> None:
    """Every service, method, message, field, enum and value of the contract has a comment."""
    assert sum(len(list(file_elements(file))) for file in contract) > 500
    assert without_comment(contract) == []


def test_a_missing_comment_is_found(contract: list[FileDescriptorProto]) -> None:
    """The search for comments finds the element whose comment is taken away."""
    file = FileDescriptorProto()
    file.CopyFrom(next(f for f in contract if f.name == "ds4/v1/inference.proto"))
    for place in file.source_code_info.location:
        if tuple(place.path) == (PATH_MESSAGE, 0, PATH_FIELD, 0):
            place.ClearField("leading_comments")
    assert without_comment([file]) == [f"{file.message_type[0].name}.text"]


def test_services_are_complete(contract: list[FileDescriptorProto]) -> None:
    """The four services have the methods that the architecture names, and no others."""
    found = {s.name: {m.name for m in s.method} for f in contract for s in f.service}
    assert found == {name: set(methods.split()) for name, methods in METHODS.items()}


def test_path_is_package(contract: list[FileDescriptorProto]) -> None:
    """Every file is in the package that its path says, so that imports need no fix-ups."""
    assert {(Path(f.name).parent.as_posix(), f.package) for f in contract} == {("ds4/v1", "ds4.v1")}

"""caffe.proto against the table of facts, its bindings, and life beside another caffe_pb2."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
)

import caffe_proto
from caffe_proto import caffe_pb2, limits, regenerate

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = FileDescriptorProto.FromString(caffe_pb2.DESCRIPTOR.serialized_pb)
UNREAD_KIND = "UnreadField.Kind"  # of this reader, met in no file
LABELS = {
    FieldDescriptorProto.LABEL_OPTIONAL: "optional",
    FieldDescriptorProto.LABEL_REQUIRED: "required",
    FieldDescriptorProto.LABEL_REPEATED: "repeated",
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def type_name(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name.removeprefix(f".{SCHEMA.package}.")
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def default(kind: str, text: str) -> str | np.float32:
    """A default for comparison: some runtimes spell out 0.1 as the float32 that it is."""
    return np.float32(text) if kind == "float" and text else text


def test_every_field_of_the_facts_table(shared: Path) -> None:
    facts = rows(shared / "caffe_schema_fields.tsv")
    ours = {(m.name, f.name): f for m in SCHEMA.message_type for f in m.field}
    known = {(row["message"], row["field"]) for row in facts}
    # What the table lacks has a private number, so that it cannot collide with what it has.
    assert known <= ours.keys()
    assert all(ours[name].number >= 9000 for name in ours.keys() - known)
    for row in facts:
        field = ours[row["message"], row["field"]]
        kind = type_name(field)
        assert (LABELS[field.label], kind) == (row["label"], row["type"]), row
        assert default(kind, field.default_value) == default(kind, row["default"]), row
        assert field.options.packed == bool(row["packed"]), row
        if "unused number" in row["fork"]:
            taken = {r["number"] for r in facts if r["message"] == row["message"]}
            assert str(field.number) not in taken, row
        else:
            assert field.number == int(row["number"]), row


def test_every_enum_of_the_facts_table(shared: Path) -> None:
    facts = rows(shared / "caffe_schema_enums.tsv")
    ours = {enum.name: enum for enum in SCHEMA.enum_type}
    for message in SCHEMA.message_type:
        ours |= {f"{message.name}.{enum.name}": enum for enum in message.enum_type}
    expected = {(row["enum"], row["value"], int(row["number"])) for row in facts}
    found = {(n, v.name, v.number) for n, enum in ours.items() for v in enum.value}
    assert expected <= found
    private = {(name, number) for name, _, number in found - expected if name != UNREAD_KIND}
    assert all(number >= 9000 for _, number in private)
    assert private == {("PoolingParameter.PoolMethod", 9000)}


def test_the_names_are_private() -> None:
    assert SCHEMA.package == "int8calib_caffe"
    assert SCHEMA.name == "caffe_proto/caffe.proto"
    assert SCHEMA.syntax in ("", "proto2")


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="the extra proto is not installed"
)
def test_regeneration_gives_what_is_committed() -> None:
    for name, text in regenerate.generate().items():
        assert (ROOT / "caffe_proto" / name).read_text("utf-8") == text, name


def test_bindings_hold_what_the_schema_file_says() -> None:
    """Without protoc: names, numbers and defaults of caffe.proto, read by regular expression."""
    text = (ROOT / "caffe_proto" / "caffe.proto").read_text("utf-8")
    line = re.compile(r"^  (optional|required|repeated) ([\w.]+) (\w+) = (\d+)(?: \[(.*)\])?;$")
    message = ""
    found = set()
    for row in text.splitlines():
        if opened := re.match(r"message (\w+) {", row):
            message = opened[1]
        elif match := line.match(row):
            label, kind, name, number, options = match.groups()
            value = re.search(r'default = "?([^",]*)"?', options or "")
            known = default(kind, value[1] if value else "")
            found.add((message, label, kind, name, int(number), known))
    bound = set()
    for one in SCHEMA.message_type:
        for field in one.field:
            kind = type_name(field).removeprefix(f"{one.name}.")
            known = default(kind, field.default_value)
            bound.add((one.name, LABELS[field.label], kind, field.name, field.number, known))
    assert found == bound


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD_FOREIGN = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
net = file.message_type.add(name="NetParameter")
net.field.add(name="name", number=1, type=5, label=1)        # an int32 where ours has a string
net.field.add(name="layer", number=2, type=11, label=3, type_name=".caffe.LayerParameter")
layer = file.message_type.add(name="LayerParameter")
layer.field.add(name="odd_param", number=147, type=9, label=1)
file.enum_type.add(name="Phase").value.add(name="OTHER", number=0)
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
Foreign = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
"""
LOAD_OURS = "from caffe_proto import parse_prototxt\n"
USE_BOTH = """
foreign = Foreign(name=7)
foreign.layer.add(odd_param="x")
assert Foreign.FromString(foreign.SerializeToString()).layer[0].odd_param == "x"
net = parse_prototxt('name: "n" layer { name: "a" type: "Swish" swish_param { beta: 2 } }')
assert net.layer[0].swish_param.beta == 2
again = type(net).FromString(net.SerializeToString())
assert again == net
print(net.DESCRIPTOR.full_name, Foreign.DESCRIPTOR.full_name)
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize("first", ["ours", "foreign"])
def test_lives_beside_another_caffe_proto(first: str, implementation: str) -> None:
    both = [LOAD_OURS, LOAD_FOREIGN] if first == "ours" else [LOAD_FOREIGN, LOAD_OURS]
    names = run("".join([*both, USE_BOTH]), PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation)
    assert names == "int8calib_caffe.NetParameter caffe.NetParameter"


def test_needs_protobuf_and_numpy_only() -> None:
    code = (
        "import sys, caffe_proto, caffe_proto.regenerate\n"
        "tops = {name.split('.')[0] for name in sys.modules}\n"
        "print(*sorted(tops & {'int8calib', 'numba', 'cv2', 'rich', 'threadpoolctl', 'grpc'}))"
    )
    assert run(code) == ""


def test_public_names_are_listed() -> None:
    for name in caffe_proto.__all__:
        assert hasattr(caffe_proto, name)
    modules = {p.stem for p in (ROOT / "caffe_proto").glob("*.py")}
    visible = {n for n in vars(caffe_proto) if not n.startswith("_")} - modules
    visible -= {"annotations", "Any", "TYPE_CHECKING"}
    assert visible <= set(caffe_proto.__all__)


def test_limits_are_those_of_the_guide() -> None:
    guide = (ROOT / "docs" / "guide" / "calibrate.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([a-z][^|]*) \| (\d[^|]*) \|$", guide, re.MULTILINE))
    assert rows["bytes of a prototxt"] == f"{limits.MAX_TEXT_BYTES >> 20} MiB"
    assert rows["layers of a network"].replace(" ", "") == str(limits.MAX_LAYERS)
    assert (
        rows["fields of a prototxt that are not known"]
        .replace(" ", "")
        .startswith(f"{limits.MAX_UNREAD},{limits.MAX_DEPTH}messages")
    )
    assert limits.MAX_MODEL_BYTES == 2**31 - 1
    assert rows["blobs of a layer"] == str(limits.MAX_BLOBS)
    assert rows["axes of a blob"].startswith(f"{limits.MAX_AXES},")
    assert limits.MAX_VALUES == 2**31 - 1

"""Text -> NetParameter, against protobuf's own text parser and hand-counted places."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_proto import (
    CaffeFormatError,
    NetParameter,
    caffe_pb2,
    parse_prototxt,
    read_prototxt,
)
from caffe_proto.lexer import Tokens
from caffe_proto.text import Parser

LAYER = 'layer { name: "a" type: "ReLU" bottom: "x" top: "x" }\n'


def parsed(text: str) -> NetParameter:
    """The text by our parser, without the upgrade to today's form."""
    net = NetParameter()
    Parser(Tokens(text, "net")).parse(net)
    return net


@pytest.mark.parametrize(
    "text",
    [
        "",
        " # nothing but a comment",
        "name: 'single' force_backward: true debug_info: 0",
        'name: "two" " parts" \'of one\' # comment\n\n"!"',
        r'name: "tab\t nl\n quote\" \' back\\ oct\101 hex\x41 \u00e9\U0001F600 \a\b\f\v\r"',
        'name: "ärger 网络"',
        "input_dim: 1 input_dim: 0x1F input_dim: 017 input_dim: -5",
        "input_dim: [1, 2, 3], input_dim: []; input_dim: 4;",
        "input_shape { dim: 1 dim: [2, 3] } input_shape: { dim: 9223372036854775807 }",
        "input_shape < dim: -9223372036854775808 > input_shape: < >",
        "input_shape [ { dim: 1 }, < dim: 2 > ]",
        "state { phase: TEST level: 3 stage: 'a' stage: 'b' } ",
        "state { phase: 1 }",
        "layer { loss_weight: 1.5 loss_weight: 2f loss_weight: .5 loss_weight: 3. }",
        "layer { loss_weight: 1e-7 loss_weight: -inf loss_weight: Infinity loss_weight: 1.5E+3F }",
        "layer { loss_weight: -2 loss_weight: 16777217 }",
        "layer { relu_param { } propagate_down: [true, false, t, f, True, False, 1, 0] }",
        'layers { type: CONVOLUTION layer { name: "old" type: "conv" } blobs_lr: 1 }',
        "layer { blobs { data: [1, 2.5, -3e9] shape { dim: 3 } double_data: 0.1 } }",
    ],
)
def test_agrees_with_protobufs_parser(text: str) -> None:
    assert parsed(text) == text_format.Parse(text, NetParameter())


def test_accepts_what_only_caffes_cpp_parser_accepts() -> None:
    net = parsed(r"""input_dim: - 6 name: "\?" layer { loss_weight: - 1.5 }""")
    assert (list(net.input_dim), net.name, list(net.layer[0].loss_weight)) == ([-6], "?", [-1.5])


def test_bytes_fields_agree_with_protobufs_parser() -> None:
    datum_text = r'data: "\000\377\xfe abc" label: 3 encoded: true'
    datum = caffe_pb2.Datum()
    Parser(Tokens(datum_text, "datum")).parse(datum)
    assert datum == text_format.Parse(datum_text, caffe_pb2.Datum())


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=7)
floats = st.floats(width=32, allow_nan=False)
dims = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
layers = st.builds(
    caffe_pb2.LayerParameter,
    name=names,
    type=names,
    bottom=st.lists(names, max_size=3),
    loss_weight=st.lists(floats, max_size=3),
    convolution_param=st.builds(
        caffe_pb2.ConvolutionParameter,
        num_output=st.integers(0, 2**32 - 1),
        kernel_size=st.lists(st.integers(0, 2**32 - 1), max_size=3),
        engine=st.sampled_from([0, 1, 2]),
        bias_term=st.booleans(),
    ),
    power_param=st.builds(caffe_pb2.PowerParameter, power=floats, scale=floats),
)
nets = st.builds(
    NetParameter,
    name=names,
    input_shape=st.lists(st.builds(caffe_pb2.BlobShape, dim=dims), max_size=3),
    layer=st.lists(layers, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(nets, st.booleans(), st.booleans())
def test_reads_what_protobuf_prints(net: NetParameter, utf8: bool, one_line: bool) -> None:
    text = text_format.MessageToString(
        net, as_utf8=utf8, as_one_line=one_line, use_short_repeated_primitives=utf8
    )
    assert parsed(text) == net


def test_real_files_agree_with_protobufs_parser(shared: Path) -> None:
    files = sorted(shared.glob("models/*/*.prototxt")) + sorted(shared.glob("networks/*.prototxt"))
    assert len(files) > 40
    for path in files:
        text = path.read_text("utf-8")
        assert parsed(text) == text_format.Parse(text, NetParameter()), path
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net = read_prototxt(path)
        assert len(net.layer) > 1, path
        assert not net.layers, path
        assert not net.input, path


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("layer {\n  name: 5\n}", "2:9", "text in quotes for name, found '5'"),
        ("layer {\n  name: conv\n}", "2:9", "text in quotes"),
        ('layer {\n\tname "a"\n}', "2:7", "':' after name"),
        ('layer { name: "a }\n', "1:15", "string does not end on its line"),
        ('layer { name: "a\\q" }', "1:15", r"escape \\q is not known"),
        ('layer { name: "\\400" }', "1:15", "is no byte"),
        ('layer { name: "\\uD800" }', "1:15", "is no character"),
        ('layer { name: "\\377" }', "1:15", "not valid UTF-8"),
        ('layer {\n name: "a"\n\n', "4:1", "'}' for the '{' of line 1, found the end of the file"),
        ('layer < name: "a" }', "1:19", "name of a field, found '}'"),
        ("layer { }\n}", "2:1", "name of a field, found '}'"),
        ("layer { include { phase: 'TEST' } }", "1:26", "one of TRAIN, TEST for phase"),
        (
            "layers { type: 'Convolution' }",
            "1:16",
            "a name without quotes for type, such as CONVOLUTION, in 'layers' \\(with 'layer'",
        ),
        ("layers {\n type: ? }", "2:8", "'\\?' is not understood"),
        ("input_dim: 1.5", "1:12", "whole number for input_dim, found '1.5'"),
        ("input_dim: 08", "1:12", "whole number"),
        ("input_dim: 3x", "1:12", "'3x' is not understood"),
        ("input_dim: 99999999999", "1:12", "99999999999 is out of range"),
        ("layer { include { min_level: 3000000000 } }", "1:30", "3000000000 is out of range"),
        ("layer { bottom: [ 'a' 'b', 'c' ; ] }", "1:32", "',' or ']' in the list of bottom"),
        ("force_backward: yes", "1:17", "true or false for force_backward"),
        ("layer: 3", "1:8", "'{' after layer, found '3'"),
        ("layer {\n clip_param { min: 1 } }", "2:13", "clip_param.max must be given"),
        ("layer { ? }", "1:9", "'\\?' is not understood"),
        ("5: 3", "1:1", "name of a field, found '5'"),
        ("layer { loss_weight: 1 ? }", "1:24", "'\\?' is not understood"),
        ("strange 5", "1:9", "':' or '{' after strange"),
        ("strange: ,", "1:10", "a value for strange"),
        ("strange { a [ b } }", "1:13", "':' or '{' after a, found '\\['"),
        ("strange { a: [ b } }", "1:18", "',' or '\\]' in the list of a, found '}'"),
        ("strange < a: 1 } >", "1:16", "name of a field, found '}'"),
        ("strange {\n a: 1", "2:6", "'}' for the '{' of line 1"),
        ("[some.ext", "1:10", "expected ']'"),
        ("layer { " + "strange: 1 " * 3 + "name: }", "1:48", "text in quotes for name"),
    ],
)
def test_errors_say_where(text: str, place: str, words: str) -> None:
    with pytest.raises(CaffeFormatError, match=rf"^net\.prototxt:{place}: .*{words}") as caught:
        parse_prototxt(text, "net.prototxt")
    assert "\n" not in str(caught.value)


def test_errors_count_lines_with_any_line_end() -> None:
    for end in ("\n", "\r\n", "\r"):
        with pytest.raises(CaffeFormatError, match=r"^<string>:3:8: "):
            parse_prototxt(end.join(["\ufefflayer { # é", ' name: "a" # b', " type: 1 }"]))


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    with pytest.raises(CaffeFormatError, match=r"odd: more than 100 messages deep"):
        parse_prototxt("odd {" * 10000)
    assert parse_prototxt("layer { " + "odd {" * 100 + "}" * 101, warn=False)


@pytest.mark.parametrize(
    "text",
    [
        "input_dim: " + "1" * 20_000 + "x",
        "input_dim: " + "1." * 500_000,
        "input_dim: " + "1e" * 500_000,
        "input_dim: 0x" + "f" * 1_000_000,
        "input_dim: " + "7" * 1_000_000,
        "x: '" + "\\" * 999_999,
        "x: " + "'a' " * 100_000,
        "x: [" + "1, " * 30_000,
        "layer { " + "odd: 1\n" * 30_000,
        "layer { odd_param { " + "a { } " * 20_000,
        "# " * 500_000,
        " \t" * 500_000 + "?",
        "[" + "a." * 500_000,
    ],
    ids=lambda text: text[:20],
)
def test_hostile_texts_end_in_one_short_line_in_a_short_time(text: str) -> None:
    start = time.process_time()
    with pytest.raises(CaffeFormatError) as caught:
        parse_prototxt(text, "net", warn=False)
    # The slowest takes half a second on an idle machine; a square would take minutes.
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_too_many_layers_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_proto.text.MAX_LAYERS", 1000)
    monkeypatch.setattr("caffe_proto.unread.MAX_UNREAD", 1000)
    assert len(parse_prototxt("layer { }\n" * 1000).layer) == 1000
    with pytest.raises(CaffeFormatError, match=r"^net:1001:7: more than 1000 layers"):
        parse_prototxt("layer { }\n" * 1001, "net")
    with pytest.raises(CaffeFormatError, match="1:7009: more than 1000 fields that are not known"):
        parse_prototxt("layer { " + "odd: 1 " * 1001)


def test_a_text_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    with path.open("wb") as file:
        file.write(b"#" * 4096)
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(CaffeFormatError, match="not a prototxt: larger than 16 MiB"):
        read_prototxt(path)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "net.prototxt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"\n# only a comment\n", "not a network: no layer and no input"),
        (b"404: Not Found", "an HTTP error page, 404: Not Found"),
        (b'{"message": "Not Found"}', "JSON text"),
        (b"\n <!DOCTYPE html><html>404</html>", "an HTML or XML page"),
        (b"\xef\xbb\xbf<html>", "an HTML or XML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1f2e\nsize 4944447\n",
            r"a Git LFS pointer \(oid sha256:1f2e, 4,944,447 bytes\).*git lfs pull",
        ),
        (b"\n\x04LeNet\xa2\x06\x10\n\x04data\x12\x04Data", "looks like a caffemodel.*swapped"),
        (b"\xa2\x06\x08\n\x01a\x12\x03Foo", "looks like a caffemodel.*swapped"),
        (b"GIF89a\x00\x01\x02", "binary data$"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "an HDF5 file"),
        (b"7767517\n75 83\nInput data", "an ncnn .param file"),
        ("layer { }".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b'net: "train_val.prototxt"\nbase_lr: 0.1\n', "looks like a solver's prototxt"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(CaffeFormatError, match=f"^{re.escape(str(path))}: .*{words}") as caught:
        read_prototxt(path)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_line_ends_and_foreign_comments(tmp_path: Path) -> None:
    text = LAYER.replace("\n", "\r\n") + "# \u5377\u79ef\r\n" + 'layer { name: "\u5c42/1.\u03b1" }'
    net = read_prototxt(write(tmp_path, b"\xef\xbb\xbf" + text.encode("utf-8") + b"# \xbe\xed\xbb"))
    assert [layer.name for layer in net.layer] == ["a", "\u5c42/1.\u03b1"]
    with pytest.raises(CaffeFormatError, match=r"net\.prototxt:1:15: name is not valid UTF-8"):
        read_prototxt(write(tmp_path, b'layer { name: "\xbe\xed" }'))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_prototxt(tmp_path / "absent.prototxt")

"""What the reader of a prototxt does not know: harmless, in a layer that never runs, or a stop."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf import text_format

import caffe_proto
import int8calib
from caffe_proto import UnknownFieldWarning
from int8calib.caffe.layers import registry
from int8calib.caffe.network.build import build_graph
from int8calib.caffe.network.graph import Graph
from int8calib.caffe.network.load import load_graph
from int8calib.cli.main import main
from int8calib.errors import ModelError, UnsupportedLayerError
from tests.generated import generate_weights
from tests.network_styles import conv, data, layer

INPUT = data(1, 3, 13, 11)
POINT = "num_output: 7 kernel_size: 1"
FIRST = INPUT + conv("c1", "data", POINT)
LAST = conv("c2", "p", POINT, relu=False)


def load(folder: Path, text: str, ignore: tuple[str, ...] | str = ()) -> Graph:
    proto = folder / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownFieldWarning)
        return load_graph(proto, None, ignore_fields=ignore)[0]


def pool(options: str) -> str:
    return layer("Pooling", "p", "c1", param=f"pooling_param {{ kernel_size: 2 {options} }}")


def notes(graph: Graph) -> list[tuple[str, str, str]]:
    return [(note.layer, note.what, note.reason) for note in graph.notes]


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ("strange: 3", "pooling_param.strange", "pooling_param.strange: 3 is not known (line "),
        ("odd { a: 1 }", "pooling_param.odd", "pooling_param.odd is not known"),
        ("pool: MEDIAN", "pooling_param.pool", "pooling_param.pool: MEDIAN is not a known value"),
        ("pool: 7", "pooling_param.pool", "pooling_param.pool: 7 is not a known value"),
        ("stride: 2 stride: 3", "pooling_param.stride", "pooling_param.stride is given twice"),
        (
            "kernel_size: 2 kernel_size: 2",
            "pooling_param.kernel_size",
            "pooling_param.kernel_size is given 3 times (3-d is not supported)",
        ),
        ("pad_type: 1", "pooling_param.pad_type", "pooling_param.pad_type: 1 is not known"),
    ],
)
def test_a_layer_before_a_quantized_one_cannot_run(
    tmp_path: Path, options: str, field: str, words: str
) -> None:
    text = FIRST + pool(options) + LAST
    with pytest.raises(UnsupportedLayerError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    line = 1 + text[: text.index("Pooling")].count("\n")
    assert message.startswith(
        f"{tmp_path / 'net.prototxt'}: layer 'p' (Pooling) cannot run as written: "
    )
    assert words in message
    assert f"(line {line})" in message
    assert f"--ignore-field {field}" in message
    # Behind the last quantized layer the same is a note.
    graph = load(tmp_path, FIRST + pool(options))
    assert ("p", "no quantized layer needs the layer") in [(a, c) for a, _, c in notes(graph)]
    # At the user's word it is left out, whether by its own name or by that of its message.
    for name in (field, "pooling_param"):
        graph = load(tmp_path, text, (name,))
        plain = load(tmp_path, FIRST + pool("") + LAST)
        assert [x.params.pooling_param.pool for x in graph.layers] == [
            x.params.pooling_param.pool for x in plain.layers
        ]
        assert notes(load(tmp_path, text, name)) == notes(graph)  # one name as plain text
        ((who, what, why),) = notes(graph)
        assert (who, why) == ("p", "left out as told (--ignore-field)")
        assert what in words or words.startswith(what)


def test_the_quantized_layer_itself_and_a_folded_one_must_be_understood(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layer 'c1' \(Convolution\) .*convolution_param.odd"):
        load(tmp_path, INPUT + conv("c1", "data", POINT + " odd: 1"))
    norm = layer("BatchNorm", "bn", "c1", param="batch_norm_param { scale_bias: true }")
    with pytest.raises(ModelError, match=r"layer 'bn' \(BatchNorm\) .*batch_norm_param.scale_bias"):
        load(tmp_path, INPUT + conv("c1", "data", POINT, relu=False) + norm)


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ("param { lr_mult: 1 odd_lr_filler: 3 }", ""),
        ("", "weight_filler { odd: 1 variance_norm: FAN_MAX }"),
        ("", "engine: MKL2017"),
        ("", "engine: CAFFE engine: CUDNN"),
        ("", "cudnn_algo: 3 pad_type: 0 output_scale: 1"),
        ("quantization_param { bw_params: 8 }", ""),
        ("blobs_lr: 1 blobs_lr: 2 weight_decay: 0", ""),
        ("transform_param { odd: 1 }", ""),
        ("visualize: true phase: VAL forward_type: FLOAT16", ""),
    ],
)
def test_what_does_no_harm_is_a_note(tmp_path: Path, outside: str, inside: str) -> None:
    param = f"{outside} convolution_param {{ {POINT} {inside} }}"
    first = layer("Convolution", "c1", "data", param=param)
    graph = load(tmp_path, INPUT + first + pool("") + LAST)
    assert not any(layer.unread for layer in graph.layers)
    assert {(who, why) for who, _, why in notes(graph)} == {("c1", "it changes nothing here")}


def test_what_never_runs_never_stops_a_file(tmp_path: Path) -> None:
    graph = load(
        tmp_path,
        'layer { name: "d" type: "Data" top: "data" include { phase: TRAIN } odd: 1 }\n'
        'layer { name: "i" type: "Input" top: "data" include { phase: TEST }\n'
        "  input_param { shape { dim: [1, 3, 13, 11] } odd: 2 } }\n"
        + conv("c1", "data", POINT, relu=False)
        + 'layer { name: "t" type: "Pooling" bottom: "c1" include { phase: TRAIN }\n'
        "  pooling_param { pool: FOO } }\n"
        'layer { name: "l" type: "SoftmaxWithLoss" bottom: "c1" softmax_param { axis: 1 axis: 2 } }'
        '\nlayer { name: "m" type: "OddLoss" bottom: "c1" odd_loss_param { } }\n',
    )
    assert notes(graph) == [
        ("d", "odd: 1 is not known", "the layer does not run here"),
        ("i", "input_param.odd: 2 is not known", "the layer does not run here"),
        ("t", "pooling_param.pool: FOO is not a known value", "the layer does not run here"),
        ("l", "softmax_param.axis is given twice", "the layer does not run here"),
        ("m", "odd_loss_param is not known", "the layer does not run here"),
    ]


def test_outside_of_the_layers(tmp_path: Path) -> None:
    graph = load(tmp_path, "base_lr: 0.1 odd { a: 1 }\n" + FIRST, ("nowhere",))
    assert notes(graph) == [
        ("", "base_lr: 0.1 is not known", "it stands outside of the layers"),
        ("", "odd is not known", "it stands outside of the layers"),
        ("", "nowhere is not in the file", "given to --ignore-field, but the file has no such "
         "field that is not known"),
    ]  # fmt: skip
    lost = FIRST + '\nlyer { name: "p" type: "Pooling" bottom: "c1" top: "p" }'
    with pytest.raises(ModelError, match=r"net.prototxt:\d+: lyer is not known and looks like a"):
        load(tmp_path, lost)
    load(tmp_path, lost, ("lyer",))


def test_a_phase_rule_that_is_not_understood_keeps_its_layer(tmp_path: Path) -> None:
    for rule, kept in [
        ("exclude { phase: VAL }", True),
        ("include { phase: VAL }", True),
        ("include { phase: TRAIN odd: 1 }", False),
    ]:
        text = FIRST + layer("ReLU", "p", "c1", param=rule) + conv("c2", "c1", POINT, relu=False)
        graph = load(tmp_path, text)
        assert ("p" in [layer.name for layer in graph.layers]) == kept


@pytest.mark.parametrize("phases", ["VAL", "TEST phase: TRAIN", "TRAIN phase: TEST"])
@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_phase_rule_that_is_not_understood_stops(kind: str, phases: str, tmp_path: Path) -> None:
    rule = f"{kind} {{ phase: {phases} }}"
    text = FIRST + layer("ReLU", "p", "c1", "c1", rule) + conv("c2", "c1", POINT, relu=False)
    with pytest.raises(text_format.ParseError):  # nor does Caffe's reader take it
        text_format.Parse(text, caffe_proto.NetParameter())
    with pytest.raises(ModelError, match=rf"'p' .* cannot run as written: {kind}.phase[: ].*line"):
        load(tmp_path, text)


def test_a_warning_names_what_was_left_out(tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    text = FIRST + pool("engine: MKL2017") + LAST
    proto.write_text(text + "".join(pool(f"odd{i}: 1").replace('"p"', f'"q{i}"') for i in range(9)))
    with pytest.warns(UnknownFieldWarning) as caught:
        int8calib.load_caffe(proto, None)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"{proto}: not understood: pooling_param.engine: MKL2017 is not a ")
    assert "it changes nothing here; pooling_param.odd0: 1 is not known" in message
    assert len(message) <= 500


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(registry._types)
    yield
    registry._types.clear()
    registry._types.update(before)


@pytest.mark.usefixtures("registered")
def test_a_layer_from_outside_reads_its_own_options(tmp_path: Path) -> None:
    def run(params, weights, bottoms):
        (options,) = caffe_proto.unknown_fields(params)["blur_param"]
        (kernel,) = options["kernel"]
        return [
            np.stack([[cv2.blur(c, (int(kernel["width"][0]), 1)) for c in x] for x in bottoms[0]])
        ]

    int8calib.register_layer("Blur", run, lambda params, shapes: [shapes[0]])
    proto = tmp_path / "net.prototxt"
    blur = layer("Blur", "b", "data", param="blur_param { kernel { width: 5 } engine: FAST }")
    proto.write_text(INPUT + blur)
    x = np.random.default_rng(3).normal(0, 1, (1, 3, 13, 11)).astype(np.float32)
    (top,) = int8calib.load_caffe(proto, None).forward({"data": x}).values()
    assert np.array_equal(top[0, 2], cv2.blur(x[0, 2], (5, 1)))


def test_the_report_holds_every_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto, model, table = (tmp_path / name for name in ("n.prototxt", "n.caffemodel", "n.table"))
    proto.write_text(FIRST + pool("") + LAST)
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), generate_weights(proto))
    proto.write_text(FIRST + pool("odd: 3 engine: MKL") + LAST)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(0, 9, (3, 13, 11)).astype("f4"))
    command = ["calibrate", "--proto", str(proto), "--model", str(model), "--quiet"]
    command += ["--images", str(tmp_path / "x.npy"), "--output", str(table)]
    assert main(command) == 2
    assert "pooling_param.odd: 3 is not known" in capsys.readouterr().err
    assert not table.exists()
    assert main([*command, "--ignore-field", "pooling_param.odd"]) == 0
    assert capsys.readouterr().err == ""
    report = json.loads(Path(f"{table}.json").read_text())
    assert [(n["layer"], n["field"], n["reason"]) for n in report["meta"]["ignored_fields"]] == [
        ("p", "pooling_param.odd", "left out as told (--ignore-field)"),
        ("p", "pooling_param.engine", "it changes nothing here"),
    ]
    assert report["meta"]["arguments"]["ignore_field"] == ["pooling_param.odd"]
    # The same, over a file of statistics.
    stats, later = tmp_path / "stats.npz", tmp_path / "later.table"
    collect = ["collect", *command[1:-1], str(stats), "--ignore-field", "pooling_param.odd"]
    assert main(collect) == 0
    assert main(["thresholds", str(stats), "--output", str(later), "--quiet"]) == 0
    assert later.read_bytes() == table.read_bytes()
    kept = json.loads(Path(f"{later}.json").read_text())
    assert kept["meta"]["ignored_fields"] == report["meta"]["ignored_fields"]
    again = table.read_bytes()
    assert main(["calibrate", "--config", f"{table}.toml", "--quiet"]) == 0
    assert table.read_bytes() == again


def chain(count: int) -> list[str]:
    """A network of in-place and other layers, some blobs with several readers."""
    rng = np.random.default_rng(count)
    blobs, lines = ["data"], []
    for i in range(count):
        bottom = blobs[-1] if rng.random() < 0.7 else blobs[int(rng.integers(len(blobs)))]
        top = bottom if rng.random() < 0.3 and bottom != "data" else f"b{i}"
        if top != bottom:
            blobs.append(top)
        lines.append(layer("ReLU", f"l{i}", bottom, top))
    return lines


def test_layers_in_any_order_run_in_the_same_order_as_by_the_plain_rule() -> None:
    rng = np.random.default_rng(5)
    for count in range(3, 40):
        lines = chain(count)
        text = "".join([*(lines[i] for i in rng.permutation(count)), INPUT])
        net = caffe_proto.parse_prototxt(text)
        # Each time the earliest layer that is ready, in-place layers first.
        waiting, made, order = list(net.layer), set[str](), []
        while waiting:
            ready = [x for x in waiting if made.issuperset(x.bottom)]
            chosen = next((x for x in ready if set(x.bottom) & set(x.top)), ready[0])
            waiting.remove(chosen)
            order.append(chosen.name)
            made.update(chosen.top)
        graph = build_graph(net, "net")
        assert [x.name for x in graph.layers] == order


def test_many_layers_in_reverse_order_take_no_longer_than_in_order() -> None:
    lines = [layer("ReLU", f"l{i}", f"b{i}", f"b{i + 1}") for i in range(4000)]
    head = INPUT.replace('"data"', '"b0"')
    net = caffe_proto.parse_prototxt("".join([*reversed(lines), head]))
    graph = build_graph(net, "net")
    assert [x.name for x in graph.layers[1:]] == [f"l{i}" for i in range(4000)]


@pytest.mark.parametrize(
    ("folder", "file", "quantized", "stopped"),
    [
        ("a1_pool_enum", "net", ["c1", "c2"], {}),
        ("a3_v1_type", "net", ["c1"], {"u1": "of a type that does not run", "cr": "of a type"}),
        ("d4_3d", "c", [], {"c": "3-d convolution is not supported"}),
        (
            "d4_3d",
            "net",
            [],
            {
                "c": "3-d convolution is not supported",
                "p": "pooling_param.kernel_size is given 3 times (3-d is not supported)",
            },
        ),
        ("loss_enum", "net", ["conv"], {}),
        ("twice", "net", ["conv"], {}),
    ],
)
def test_constructs_of_public_files(
    shared: Path, folder: str, file: str, quantized: list[str], stopped: dict[str, str]
) -> None:
    prototxt = shared / "cases" / folder / f"{file}.prototxt"
    found = int8calib.inspect(prototxt)
    assert [layer.name for layer in found.layers if layer.quantized] == quantized
    for name, words in stopped.items():
        assert any(f"layer '{name}' (" in text and words in text for text in found.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownFieldWarning)
        if "net" in file and quantized:
            assert int8calib.load_caffe(prototxt, None).graph.layers


def test_every_option_of_a_fork_in_the_schema_is_read_by_a_layer() -> None:
    """An option that the schema knows and no layer reads would count as its default, unnoticed."""
    folder = Path(registry.__file__).parent
    sources = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    messages = {
        field.name: field.message_type
        for field in caffe_proto.LayerParameter.DESCRIPTOR.fields
        if field.message_type is not None and field.name != "unread"
    }
    private = {
        f"{name}.{field.name}"
        for name, message in messages.items()
        for field in message.fields
        if field.number >= 9000
    }
    assert len(private) > 20
    harmless = {"bn_param.momentum", "bn_param.frozen"}
    for option in private - harmless:
        assert re.search(rf"\b{option.partition('.')[2]}\b", sources), option

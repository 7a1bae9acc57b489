"""What reads a file of each kind, and what must hold where it succeeds."""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import caffe_proto
import int8calib
from int8calib.analysis.results import read_analysis
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.shapes import multiply_adds, reach
from int8calib.calibration.collected import load_collected
from int8calib.calibration.statistics.checkpoint import Checkpoint
from int8calib.calibration.statistics.file import _digest, load_statistics
from int8calib.cli.config import read_config
from int8calib.cli.labels import read_labels
from int8calib.cli.main import main
from int8calib.errors import Int8CalibError
from int8calib.evaluation.stored import read_evaluation
from int8calib.images.boxes import Truth, read_boxes
from int8calib.images.decode import read_image
from int8calib.images.mean import read_mean
from int8calib.images.source import open_source
from int8calib.ncnn.model import encode_model, load_model
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.quantize import quantize_model, read_rows
from int8calib.ncnn.requirements import read_param
from int8calib.ncnn.translate.network import obstacles, translate_model
from int8calib.table import read_table, read_table_lenient
from int8calib.table import read_text as read_table_text
from int8calib.table.rules import lint_layers
from tests.fuzz import mutate
from tests.fuzz.seeds import write_anew

REFUSED = (Int8CalibError, caffe_proto.CaffeFormatError)
Damage = Callable[..., bytes]
SMALL = 1 << 22  # multiply-adds and values of a network that a case runs


@dataclass(frozen=True)
class Target:
    """How files of a kind are damaged, named and read.

    `read(path, folder, rng)` reads the file; `folder` holds the sound model.
    """

    damage: Damage
    suffix: str
    read: Callable[[Path, Path, random.Random], None]


def refusing(function: Callable[[], object]) -> bool:
    """Call what may refuse with our own errors; tell whether it did."""
    try:
        function()
    except REFUSED as error:
        text = str(error)
        assert text.isprintable(), text
        assert 0 < len(text) <= 500, len(text)
        return True
    return False


def command(*words: str | Path) -> int:
    """Run a command; a code other than 0, 1 or 2, or an internal error, is a failure."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    said = err.getvalue()
    if code not in (0, 1, 2) or "internal error" in said or "Traceback" in said:
        raise AssertionError(f"{words[0]}: exit code {code}: {said[-600:]}")
    if code == 2:
        assert said.count("\n") >= 1, "an error without a line"
        raise Int8CalibError(said.splitlines()[-1][:400])
    return code


def _network(path: Path, model: Path, rng: random.Random) -> None:
    """Inspect, load and, where it is small, run a network."""
    inspected: list[object] = []
    cannot = refusing(lambda: inspected.append(int8calib.inspect(path)))
    refusing(lambda: int8calib.inspect(path, model))
    loaded: list[Net] = []
    first = refusing(lambda: loaded.append(int8calib.load_caffe(path, model)))
    if loaded:
        assert not cannot, "load_caffe takes what inspect refuses"
        refusing(lambda: _forward(loaded[0]))
    if rng.random() < 0.03:
        folder = path.parent
        done = refusing(
            lambda: command(
                *("calibrate", "--proto", path, "--model", model, "--workers", "1", "--quiet"),
                *("--images", model.parent / "images", "--output", folder / "out.table"),
                *("--limit", "2"),
            )
        )
        if not done:
            _sound_table(folder / "out.table")
            refusing(lambda: command("table", "check", folder / "out.table", "--proto", path))
        for left in folder.glob("out.table*"):
            left.unlink()
    if first:
        raise Int8CalibError("refused")


def _forward(net: Net) -> None:
    shapes = net.input_shapes
    values = sum(math.prod(shape) for shape in shapes.values())
    if values > SMALL or multiply_adds(net.graph, shapes) > SMALL:
        return
    rng = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        net.forward({name: rng.normal(0, 60, shape) for name, shape in shapes.items()})


def _sound_table(path: Path) -> None:
    table = read_table(path)
    for layer in table.layers:
        # The tool-v1 format holds scales of blobs in place of those of bottoms.
        bottoms = [] if table.blob_scales else [layer.bottom_scale]
        scales = [*bottoms, *layer.weight_scales]
        if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
            # Read as it stands, which JSON can hold: then a check of the table tells.
            assert lint_layers(table), layer.name


def _prototxt(path: Path, folder: Path, rng: random.Random) -> None:
    _network(path, folder / "all.caffemodel", rng)


def _caffemodel(path: Path, folder: Path, rng: random.Random) -> None:
    weights = caffe_proto.read_weights(path)
    assert all(blob.dtype == np.float32 for blobs in weights.values() for blob in blobs)
    proto = folder / "net.prototxt"
    refusing(lambda: int8calib.inspect(proto, path))
    net = int8calib.load_caffe(proto, path)
    if rng.random() < 0.2:
        _forward(net)
    if rng.random() < 0.02:
        command(
            *("calibrate", "--proto", proto, "--model", path, "--workers", "1", "--quiet"),
            *("--images", folder / "images", "--output", path.parent / "out.table"),
        )
        _sound_table(path.parent / "out.table")


def _binaryproto(path: Path, folder: Path, rng: random.Random) -> None:
    assert caffe_proto.read_blob(path).size
    assert np.isfinite(read_mean(str(path))).all()


def _image(path: Path, folder: Path, rng: random.Random) -> None:
    image = read_image(path, gray=rng.random() < 0.3)
    assert image.dtype == np.uint8
    assert image.size
    if rng.random() < 0.02:
        command(
            *("calibrate", "--proto", folder / "net.prototxt", "--workers", "1", "--quiet"),
            *("--model", folder / "net.caffemodel", "--images", path),
            *("--output", path.parent / "out.table"),
        )


def _array(path: Path, folder: Path, rng: random.Random) -> None:
    source = open_source(path, blob="data")
    for i in range(min(len(source), 3)):
        assert source.load(i).dtype == np.float32


def _table(path: Path, folder: Path, rng: random.Random) -> None:
    refusing(lambda: read_table_lenient(path))
    words = ["table", "check", path]
    if rng.random() < 0.05:
        words += ["--proto", folder / "net.prototxt", "--model", folder / "net.caffemodel"]
        refusing(lambda: command(*words))
    _sound_table(path)


def _param(path: Path, folder: Path, rng: random.Random) -> None:
    read_param(path)


def _ncnn(path: Path, folder: Path, rng: random.Random) -> None:
    """An ncnn model goes through all that is made of one: optimized, quantized, written, read."""
    param, binary = _pair(path)
    layers = load_model(param, binary).layers
    table = read_table_text(folder / "net.table")
    if b"LSTM" in param.read_bytes():
        scales = " 50" * 12
        table += f"l_param_0{scales}\nl_param_1{scales}\n"
    rows = read_rows(table, "net.table")
    refusing(lambda: _written(optimize_model(layers), param, binary))
    _written(quantize_model(layers, rows), param, binary)


def _pair(path: Path) -> tuple[Path, Path]:
    """A file of both parts of an ncnn model as two files."""
    structure, _, weights = path.read_bytes().partition(mutate.PAIR)
    return (
        write_anew(path.with_suffix(".param"), structure),
        write_anew(path.with_suffix(".bin"), weights),
    )


def _written(layers: Iterable[NcnnLayer], param: Path, binary: Path) -> None:
    structure, weights = encode_model(layers)
    write_anew(param, structure.encode())
    write_anew(binary, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* is no parameter of this type")  # as it came
        again = encode_model(load_model(param, binary).layers)
    assert again == (structure, weights)


def _translate(path: Path, folder: Path, rng: random.Random) -> None:
    """An ncnn model becomes a network in numpy and runs there where that is small."""
    param, binary = _pair(path)
    model = load_model(param, binary)
    names = [top for layer in model.layers if layer.type == "Input" for top in layer.tops]
    net = translate_model(model, dict.fromkeys(names, (1, 7, 11, 13)))
    for line in obstacles(net):
        assert line.isprintable(), line
    shapes = reach(net.graph, net.input_shapes).shapes
    if sum(math.prod(shape) for shape in shapes.values()) < SMALL:
        tops = [blob.name for blob in shapes if blob.name not in net.input_shapes]
        values = np.random.default_rng(1).normal(0, 60, (2, 7, 11, 13))
        with np.errstate(all="ignore"):
            net.forward(dict.fromkeys(names, values), outputs=tops)


def _quantize(path: Path, folder: Path, rng: random.Random) -> None:
    """A damaged table for a sound ncnn model."""
    model = load_model(folder / "net.param", folder / "net.bin")
    rows = read_rows(read_table_text(path), "net.table")
    encode_model(quantize_model(model.layers, rows))


def _statistics(path: Path, folder: Path, rng: random.Random) -> None:
    load_statistics(path)
    refusing(lambda: load_collected(path))
    if rng.random() < 0.1:
        command("thresholds", path, "--output", path.parent / "out.table", "--quiet")
        _sound_table(path.parent / "out.table")


def _checkpoint(path: Path, folder: Path, rng: random.Random) -> None:
    Checkpoint(path, {}, 0.0).load()


def _evaluation(path: Path, folder: Path, rng: random.Random) -> None:
    read_evaluation(path)


def _analysis(path: Path, folder: Path, rng: random.Random) -> None:
    read_analysis(path)


def _toml(path: Path, folder: Path, rng: random.Random) -> None:
    read_config(str(path))


def _labels(path: Path, folder: Path, rng: random.Random) -> None:
    label_of = read_labels(str(path))
    for name in ("0.png", "sub/7.png", "absent.png", ""):
        refusing(lambda name=name: label_of(name))


def _coco(path: Path, folder: Path, rng: random.Random) -> None:
    names = ("background", "cat", "dog") if rng.random() < 0.5 else ()
    _sound_boxes(read_boxes(str(path), names))


def _voc(path: Path, folder: Path, rng: random.Random) -> None:
    place = path.parent / "voc"
    place.mkdir(exist_ok=True)
    (place / "0.xml").write_bytes(path.read_bytes())
    _sound_boxes(read_boxes(str(place), ("background", "cat", "dog")))


def _sound_boxes(boxes_of: Callable[[str], Iterable[Truth]]) -> None:
    boxes: list[Truth] = []
    if refusing(lambda: boxes.extend(boxes_of("0.png"))):
        raise Int8CalibError("refused")
    assert all(truth.label >= 0 for truth in boxes)
    assert all(math.isfinite(corner) for truth in boxes for corner in truth.box)


def _list(path: Path, folder: Path, rng: random.Random) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        source = open_source(path)
        for i in range(min(len(source), 3)):
            refusing(lambda i=i: source.load(i))
    finally:
        os.chdir(before)


def _signed_npz(data: bytes, rng: random.Random, others: object = ()) -> bytes:
    """Damaged statistics whose checksum fits, so that their content is looked at."""
    damaged = mutate.damaged_npz(data, rng)
    if rng.random() < 0.2:
        return damaged
    try:
        with np.load(io.BytesIO(damaged), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays.pop("digest", None)
        arrays["digest"] = _digest(arrays)
    except Exception:  # noqa: BLE001 - a damaged archive stays as it is
        return damaged
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


_pb = caffe_proto.caffe_pb2
TARGETS: dict[str, Target] = {
    "prototxt": Target(mutate.damaged_prototxt, ".prototxt", _prototxt),
    "caffemodel": Target(mutate.damaged_message(_pb.NetParameter), ".caffemodel", _caffemodel),
    "binaryproto": Target(mutate.damaged_message(_pb.BlobProto), ".binaryproto", _binaryproto),
    "image": Target(mutate.damaged_bytes, ".png", _image),
    "npy": Target(mutate.damaged_bytes, ".npy", _array),
    "npz": Target(mutate.damaged_npz, ".npz", _array),
    "table": Target(mutate.damaged_text, ".table", _table),
    "param": Target(mutate.damaged_text, ".param", _param),
    "ncnn": Target(mutate.damaged_pair, ".ncnn", _ncnn),
    "translate": Target(mutate.damaged_pair, ".ncnn", _translate),
    "quantize": Target(mutate.damaged_text, ".table", _quantize),
    "statistics": Target(_signed_npz, ".npz", _statistics),
    "checkpoint": Target(_signed_npz, ".npz", _checkpoint),
    "evaluation": Target(mutate.damaged_json, ".json", _evaluation),
    "analysis": Target(mutate.damaged_json, ".json", _analysis),
    "toml": Target(mutate.damaged_text, ".toml", _toml),
    "labels": Target(mutate.damaged_text, ".txt", _labels),
    "coco": Target(mutate.damaged_json, ".json", _coco),
    "voc": Target(mutate.damaged_text, ".xml", _voc),
    "list": Target(mutate.damaged_text, ".txt", _list),
}

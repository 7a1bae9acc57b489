"""Sound files of every kind, made once, from which damaged ones are made."""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

import caffe_proto
import int8calib
from int8calib.calibration.statistics.checkpoint import Checkpoint
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.cli.main import main
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.param import format_param, parse_param
from int8calib.ncnn.weights import write_weights
from int8calib.table import CalibrationTable, read_table, write_table
from tests.fuzz.mutate import PAIR
from tests.generated import generate_weights, make_model
from tests.ncnn.translate.cases import CASES, IMAGE
from tests.ncnn.translate.models import model_of
from tests.network_styles import conv, conv_bn, data, layer, pool
from tests.table_helpers import layer as table_layer

NET = (
    'name: "small"\n'
    + data(1, 3, 11, 13)
    + conv_bn("c1", "data", "num_output: 5 kernel_size: 3 pad: 1")
    + pool("p1", "c1", "pool: MAX kernel_size: 3 stride: 2")
    + conv("dw", "p1", "num_output: 5 kernel_size: 3 group: 5")
    + conv("c2", "dw", "num_output: 7 kernel_size: 1")
    + layer("Concat", "cat", "c2 dw")
    + layer("InnerProduct", "fc", "cat", param="inner_product_param { num_output: 4 }")
    + layer("Softmax", "prob", "fc")
)
V1 = """name: "older"
input: "data" input_dim: 1 input_dim: 3 input_dim: 11 input_dim: 13
layers { name: "v1" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1 weight_decay: 0
  convolution_param { num_output: 5 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } } }
layers { name: "r" type: RELU bottom: "c" top: "c" }
layers { name: "n" type: LRN bottom: "c" top: "n" lrn_param { local_size: 5 alpha: 0.1 } }
layers { name: "l" type: SOFTMAX_LOSS bottom: "n" bottom: "n" top: "l" }
"""
V0 = """input: "data" input_dim: 1 input_dim: 3 input_dim: 11 input_dim: 13
layers { layer { name: "p" type: "padding" pad: 2 } bottom: "data" top: "p" }
layers { layer { name: "v0c" type: "conv" num_output: 5 kernelsize: 5 stride: 2 } bottom: "p" top: "c" }
layers { layer { name: "v0f" type: "innerproduct" num_output: 3 } bottom: "c" top: "f" }
"""
MANY_TYPES = (
    data(2, 4, 12, 10)
    + layer("BatchNorm", "bn", "data")
    + layer("PReLU", "pr", "bn")
    + layer("Deconvolution", "up", "pr", param="convolution_param { num_output: 3 kernel_size: 2 }")
    + layer("LRN", "lrn", "up", param="lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }")
    + layer("Reshape", "re", "lrn", param="reshape_param { shape { dim: 0 dim: -1 } }")
    + layer("Slice", "sa", "data", param="slice_param { axis: 1 slice_point: 1 }").replace(
        'top: "sa"', 'top: "sa" top: "sb"'
    )
    + layer("Eltwise", "el", "bn pr", param="eltwise_param { operation: SUM coeff: 1 coeff: -1 }")
    + layer("Permute", "pe", "el", param="permute_param { order: 0 order: 2 order: 3 order: 1 }")
    + layer("Flatten", "fl", "pe", param="flatten_param { axis: 1 }")
    + layer("PriorBox", "pb", "el data", param="prior_box_param { min_size: 4 aspect_ratio: 2 }")
    + layer("SPP", "spp", "el", param="spp_param { pyramid_height: 2 pool: AVE }")
    + layer("MVN", "mvn", "el")
    + layer("Crop", "cr", "el data", param="crop_param { axis: 2 offset: 0 }")
)
ODD = layer("Odd", "odd", "el", param="odd_param { a: 1 b { c: 'x' } }")
LABELS = "".join(f"{i}.png {i % 4}\n" for i in range(5)) + "sub/7.png 3\n"
COCO = {
    "images": [
        {"id": 3, "file_name": "0.png", "width": 19, "height": 17},
        {"id": 5, "file_name": "sub/7.png", "width": 11, "height": 13},
    ],
    "annotations": [
        {"image_id": 3, "category_id": 1, "bbox": [2, 3.5, 7, 11], "iscrowd": 0},
        {"image_id": 5, "category_id": 2, "bbox": [0, 0, 5, 7], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
VOC = """<annotation><filename>0.png</filename>
<size><width>19</width><height>17</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>15</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>7</ymax></bndbox>
</object></annotation>
"""
TOML = (
    'proto = "net.prototxt"\nmodel = "net.caffemodel"\nimages = ["images"]\nmean = [104, 117, 123]'
    '\nnorm = [0.5]\nmethod = "kl"\nbatch = 2\nwinograd = false\nexclude = ["fc", "c*"]\n'
)


@dataclass(frozen=True)
class Seeds:
    """Sound files.

    Attributes
    ----------
    folder
        A model and what belongs to it, for targets that need more than one file.
    files
        Kind -> the contents of files of it.
    """

    folder: Path
    files: dict[str, list[bytes]]


def make_seeds(folder: Path) -> Seeds:
    """Make a small model, and files of every kind with its own commands."""
    proto, model = make_model(folder, NET)
    _write_weights_of_all(folder)
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(11)
    pictures = [rng.integers(0, 256, (17, 19, 3), np.uint8) for _ in range(4)]
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(images / f"{i}.png"), picture)
    (folder / "labels.txt").write_text("".join(f"{i}.png {i % 4}\n" for i in range(4)))
    run = ["--proto", str(proto), "--model", str(model), "--images", str(images), "--workers", "1"]
    table = folder / "net.table"
    _succeed(["calibrate", *run, "--output", str(table)])
    _succeed(["collect", *run, "--output", str(folder / "stats.npz")])
    labels = ["--labels", str(folder / "labels.txt")]
    evaluation = _succeed(["evaluate", *run, *labels, "--table", str(table), "--json"])
    analysis = _succeed(["analyze", *run, "--table", str(table), "--json"])
    mean = caffe_proto.caffe_pb2.BlobProto(num=1, channels=3, height=2, width=2)
    mean.data.extend(range(12))
    files = {
        "prototxt": [text.encode() for text in (NET, V1, V0, MANY_TYPES + ODD)],
        "caffemodel": [model.read_bytes()],
        "binaryproto": [mean.SerializeToString()],
        "image": _images(pictures[0]),
        "npy": _arrays(),
        "npz": _archives(),
        "table": _tables(folder, read_table(f"{table}.json")),
        "param": [_param()],
        "ncnn": _ncnn_models(folder, run),
        "translate": _ncnn_layers(),
        "quantize": [table.read_bytes()],
        "statistics": [(folder / "stats.npz").read_bytes()],
        "checkpoint": [_checkpoint(folder)],
        "evaluation": [evaluation],
        "analysis": [analysis],
        "toml": [TOML.encode(), Path(f"{table}.toml").read_bytes()],
        "labels": [LABELS.encode()],
        "coco": [json.dumps(COCO).encode()],
        "voc": [VOC.encode()],
        "list": [b"images/0.png\n# x\nimages/1.png 3\n'images/2.png'\n", b"./images/0.png 1 2\r\n"],
    }
    return Seeds(folder, files)


def write_anew(path: Path, data: bytes) -> Path:
    """Write a file in place of an older one, which some file systems write out if it is kept."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def _write_weights_of_all(folder: Path) -> None:
    """One caffemodel, `all.caffemodel`, with the weights of every prototxt."""
    every: dict[str, tuple[np.ndarray, ...]] = {}
    for i, text in enumerate((NET, V1, V0, MANY_TYPES)):
        path = folder / f"part{i}.prototxt"
        path.write_text(text)
        every |= generate_weights(path)
    net = caffe_proto.NetParameter()
    for name in every:
        net.layer.add(name=name)
    caffe_proto.write_caffemodel(folder / "all.caffemodel", net, every)


def _succeed(words: list[str]) -> bytes:
    """Run a command that must work; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(words) == 0, words
    return out.getvalue().encode()


def _images(picture: np.ndarray) -> list[bytes]:
    suffixes = (".png", ".jpg", ".bmp", ".ppm", ".webp", ".tiff", ".gif")
    found = []
    for suffix in suffixes:
        with contextlib.suppress(cv2.error):
            done, encoded = cv2.imencode(suffix, picture)
            if done:
                found.append(encoded.tobytes())
    return [*found, cv2.imencode(".png", picture[..., 0])[1].tobytes()]


def _arrays() -> list[bytes]:
    found = []
    for shape, dtype in (((2, 3, 11, 13), "f4"), ((3, 11, 13), "f8"), ((143,), "i2")):
        buffer = io.BytesIO()
        np.save(buffer, np.ones(shape, dtype))
        found.append(buffer.getvalue())
    return found


def _archives() -> list[bytes]:
    buffer, packed = io.BytesIO(), io.BytesIO()
    arrays = {"data": np.ones((2, 3, 11, 13), "f4"), "im_info": np.ones((2, 3), "f4")}
    np.savez(buffer, **arrays)
    np.savez_compressed(packed, **arrays)
    return [buffer.getvalue(), packed.getvalue()]


def _tables(folder: Path, table: CalibrationTable) -> list[bytes]:
    found = []
    plain = CalibrationTable((table_layer("conv1", [2, 3, 5], 0.5), table_layer("fc", [7], 0.1)))
    for form in ("ncnn", "tool", "json"):
        for one in (table, plain):
            path = folder / f"written.{form}"
            write_table(path, one, form)
            found.append(path.read_bytes())
    return found


def _param() -> bytes:
    return (
        b"7767517\n5 6\nInput data 0 1 data 0=13 1=11 2=3\n"
        b"Convolution c1 1 1 data c1 0=5 1=3 4=1 5=1 6=135 9=1 8=2\n"
        b"Split s 1 2 c1 a b\n"
        b"ConvolutionDepthWise dw 1 1 a dw 0=5 1=3 5=1 6=45 7=5 -23303=2,1,2\n"
        b"InnerProduct fc 1 1 b fc 0=4 1=1 2=100\n"
    )


NCNN = """7767517
13 15
Input data 0 1 data 0=13 1=11 2=3
Convolution c1 1 1 data c1 0=5 1=3 4=1 5=1 6=135
BatchNorm bn 1 1 c1 bn 0=5 1=1e-3
Scale sc 1 1 bn sc 0=5 1=1
ConvolutionDepthWise dw 1 1 sc dw 0=5 1=3 5=1 6=45 7=5 9=2 -23310=1,0.1
MemoryData md 0 1 md 0=1
BinaryOp mul 2 1 dw md mul 0=2
Split s 1 3 mul a b c
Convolution c2 1 1 a c2 0=7 1=1 6=35
PReLU pr 1 1 b pr 0=1
Pooling p 1 1 pr p 0=1 4=1
InnerProduct fc 1 1 p fc 0=4 1=1 2=20
LSTM l 1 1 fc l 0=3 1=48 2=0
"""


def _ncnn_models(folder: Path, run: list[str]) -> list[bytes]:
    """Structure and weights of a converted model and of one with other layers of ncnn."""
    param, weights = folder / "net.param", folder / "net.bin"
    _succeed(["convert", *run[:4], "--output", str(param), str(weights)])
    layers = parse_param(NCNN, "net.param")
    rng = np.random.default_rng(13)
    blobs = [[rng.uniform(0.5, 1, b.size).astype("f4") for b in blob_layout(la)] for la in layers]
    filled = [replace(la, weights=tuple(b)) for la, b in zip(layers, blobs, strict=True)]
    return [
        param.read_bytes() + PAIR + weights.read_bytes(),
        NCNN.encode() + PAIR + write_weights(filled),
    ]


def _ncnn_layers() -> list[bytes]:
    """Models of a few ncnn layers each, side by side, of the kinds that run in numpy."""
    cases = [case for case in CASES if set(case.bottoms) == {IMAGE}]
    seeds = []
    for first in range(9):
        models = [model_of(case) for case in cases[first::27]]
        layers = [models[0].layers[0]]
        for number, model in enumerate(models):
            layer = model.layers[-1]
            bottoms = ("in0",) * len(layer.bottoms)
            tops = tuple(f"{top}_{number}" for top in layer.tops)
            layers.append(replace(layer, name=f"l{number}", bottoms=bottoms, tops=tops))
        seeds.append(format_param(layers).encode() + PAIR + write_weights(layers))
    return seeds


def _checkpoint(folder: Path) -> bytes:
    """What a run leaves that has counted its images and was not told to remove its checkpoint."""
    path = folder / "checkpoint.npz"
    executor = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel").executor()
    rows = np.random.default_rng(zlib.crc32(b"rows")).normal(0, 60, (3, 3, 11, 13))
    batches = [{"data": row[None].astype(np.float32)} for row in rows]
    blobs = [layer.blob for layer in executor.layers]
    checkpoint = Checkpoint(path, {}, 0.0)
    collect_statistics(executor, lambda: iter(batches), blobs, checkpoint=checkpoint)
    return path.read_bytes()

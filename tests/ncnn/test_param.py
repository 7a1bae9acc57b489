"""ncnn structure files: the real ones of ncnn's own tools, and small ones with every corner."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from int8calib.errors import ModelFileError, OutputError
from int8calib.ncnn.model import save_model
from int8calib.ncnn.param import parse_param
from int8calib.ncnn.requirements import read_param, requirements_from_param
from int8calib.table import check_table

SMALL = """7767517
9 11
Input data 0 1 data -23330=5,3,7,5,1,3 0=7 1=5 2=3
Split s0 1 2 data d0 d1
Split s1 1 2 d1 e0 e1
Convolution a 1 1 d0 a 0=5 1=3 4=1 5=1 6=135
Convolution b 1 1 e1 b 0=3 1=3 11=1 6=27
ConvolutionDepthWise c 1 1 e0 c -23309=2,0.1,6.0 0=6 1=3 7=3
Convolution wide 2 1 a b wide 0=4 19=1
Deconvolution up 1 1 c up 0=2 1=2
InnerProduct fc 1 1 up fc 0=11 1=1 2=22
"""


def test_a_small_file() -> None:
    rows = [
        (r.name, r.ncnn_type, r.weight_count, r.levels, r.bottom)
        for r in requirements_from_param(SMALL, "m.param")
    ]
    assert rows == [
        ("a", "Convolution", 5, 31, "data"),
        ("b", "Convolution", 3, 127, "data"),
        ("c", "ConvolutionDepthWise", 3, 127, "data"),
        ("fc", "InnerProduct", 11, 127, "up"),
    ]
    depthwise = parse_param(SMALL, "m.param")[5]
    assert depthwise.params == {9: (0.1, 6.0), 0: 6, 1: 3, 7: 3}


@pytest.mark.parametrize(
    ("parameters", "levels"),
    [
        ("1=3", 31),
        ("1=3 3=1 2=1 11=3 13=1 12=1", 31),
        ("1=3 3=2", 127),
        ("1=3 2=2", 127),
        ("1=3 13=2", 127),
        ("1=3 12=2", 127),
        ("1=5", 127),
        ("1=1", 127),
    ],
)
def test_winograd_head_room(parameters: str, levels: int) -> None:
    text = f"7767517\n1 2\nConvolution a 1 1 x y 0=2 {parameters}\n"
    assert requirements_from_param(text, "m")[0].levels == levels


@pytest.mark.parametrize("model", ["squeezenet_v1.0", "squeezenet_v1.1", "bons_imagenet_mod11l"])
@pytest.mark.parametrize("stage", ["converted", "optimized"])
def test_ncnns_own_tables_are_clean(shared: Path, model: str, stage: str) -> None:
    folder = shared / "golden" / f"ncnn_{model}"
    text = (folder / "kl.table").read_text()
    requirements = read_param(folder / f"{stage}.param")
    findings = check_table(text, requirements=requirements)
    # Dead channels (inf) are all that there is to say.
    assert [f for f in findings if "channels without weights" not in f.message] == []
    rows = [line.split() for line in text.splitlines() if "_param_0" in line]
    assert [(f"{r.name}_param_0", r.weight_count) for r in requirements] == [
        (row[0], len(row) - 1) for row in rows
    ]


@pytest.mark.parametrize("model", ["squeezenet_v1.0", "squeezenet_v1.1", "bons_imagenet_mod11l"])
def test_ncnn2int8_quantizes_exactly_the_required_layers(shared: Path, model: str) -> None:
    folder = shared / "golden" / f"ncnn_{model}"
    # ncnn2int8 marks what it quantized: key 8 on each layer.
    int8 = parse_param((folder / "int8.param").read_text(), "int8.param")
    quantized = [layer.name for layer in int8 if 8 in layer.params]
    assert quantized == [r.name for r in read_param(folder / "optimized.param")]


def test_a_convolution_after_global_pooling_becomes_inner_product(shared: Path) -> None:
    folder = shared / "golden" / "ncnn_bons_imagenet_mod11l"
    before, after = (
        {r.name: r for r in read_param(folder / f"{stage}.param")}["fc"]
        for stage in ("converted", "optimized")
    )
    assert (before.ncnn_type, after.ncnn_type) == ("Convolution", "InnerProduct")
    assert before.weight_count == after.weight_count == 1000


def test_consumers_behind_a_split_share_their_bottom(shared: Path) -> None:
    required = read_param(shared / "golden" / "ncnn_squeezenet_v1.1" / "optimized.param")
    bottoms = {r.name: r.bottom for r in required}
    assert bottoms["fire2/expand1x1"] == bottoms["fire2/expand3x3"]
    assert bottoms["fire2/expand1x1"] == "fire2/squeeze1x1_fire2/relu_squeeze1x1"
    assert bottoms["fire3/squeeze1x1"] == "fire2/concat"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^m\.param:1: no ncnn structure file"),
        ("name: 'net'\n", r"^m\.param:1: no ncnn structure file"),
        ("7767517\n", r"^m\.param:2: the counts"),
        ("7767517\n1 x\n", r"^m\.param:2: the counts"),
        ("7767517\n2 2\nInput a 0 1 a\n", r"^m\.param: 1 layers found, 2 announced"),
        ("7767517\n1 1\nInput a 0\n", r"^m\.param:3: <type> <name>"),
        ("7767517\n1 1\nInput a 0 2 a\n", r"^m\.param:3: 1 blobs and parameters, 2 announced"),
        ("7767517\n1 1\nInput a 0 1 a b\n", r"^m\.param:3: 'b' is no parameter"),
        (
            "7767517\n1 1\nInnerProduct a 0 1 a 0=x\n",
            r"^m\.param:3: layer 'a': 0=x, one whole number",
        ),
        (
            "7767517\n1 1\nInnerProduct a 0 1 a 0=1,2\n",
            r"^m\.param:3: layer 'a': 0=1,2, one whole number",
        ),
    ],
)
def test_broken_structure_files(text: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        requirements_from_param(text, "m.param")


def test_unreadable_structure_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.param: cannot be read"):
        read_param(tmp_path / "none.param")
    (tmp_path / "m.bin").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ModelFileError, match=r"m\.bin: no text, name the \.param file"):
        read_param(tmp_path / "m.bin")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(encoding: str, tmp_path: Path) -> None:
    """ncnn reads the magic number as the first thing of the file."""
    path = tmp_path / "bom.param"
    path.write_bytes("7767517\n1 1\nInput data 0 1 data\n".encode(encoding))
    with pytest.raises(ModelFileError, match=r"bom.param: begins with a byte order mark, .*save"):
        read_param(path)


def test_digits_without_an_end_take_a_time_that_grows_with_them() -> None:
    text = f"7767517\n1 1\nInput data 0 1 data 0={'1' * 400_000}x\n"
    started = time.process_time()
    with pytest.raises(ModelFileError):
        parse_param(text, "net.param")
    assert time.process_time() - started < 5


def test_names_of_a_model_that_are_swapped_are_refused(tmp_path: Path) -> None:
    layers = parse_param("7767517\n1 1\nInput in 0 1 in 0=3\n", "net.param")
    with pytest.raises(OutputError, match="are swapped: the structure"):
        save_model(layers, tmp_path / "net.bin", tmp_path / "net.param")
    assert not list(tmp_path.iterdir())
    save_model(layers, tmp_path / "structure", tmp_path / "weights")

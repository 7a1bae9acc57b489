"""The complete programs of docs/guide/embedding.md, run as they stand there.

Thresholds of method minmax are held to the largest values that the framework itself gives, and
those of mse to the same network calibrated as a Caffe or ncnn model. A program is skipped where
its packages are missing; the extra `frameworks` has them all.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import int8calib
from int8calib.cli.main import main
from tests.framework_nets import (
    IMAGES,
    NAMES,
    READ,
    SHAPE,
    torch_net,
    write_caffe,
    write_onnx,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/guide/embedding.md").read_text(encoding="utf-8")
TEXTS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BIN = 1 / 2048
"""A histogram's bin as a share of the largest value."""
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


def need(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name} is not installed (extra frameworks)")


def run(folder: Path, *words: str) -> str:
    """Run a program in a folder; returns what it prints."""
    done = subprocess.run(
        words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_program(folder: Path, name: str, change: Callable[[str], str] = lambda text: text) -> str:
    (folder / name).write_text(change(TEXTS[name]))
    return run(folder, sys.executable, name)


def by_minmax(text: str) -> str:
    """The program with method minmax, whose thresholds are the largest values."""
    found = re.subn(r"(Observer\(layers|calibrate\(net, lambda: batches)\)", r"\1, METHOD)", text)
    assert found[1] == 1
    keyword = "options=int8calib.Options(method='minmax')"
    return found[0].replace("METHOD", keyword)


def thresholds(table: int8calib.CalibrationTable) -> dict[str, float]:
    return {row.name: 127 / row.bottom_scale for row in table.layers}


def hold(folder: Path, program: str, largest: dict[str, float], like: dict[str, float]) -> None:
    """Run a program with both methods; its thresholds are the largest values, and those `like`."""
    run_program(folder, program, by_minmax)
    found = thresholds(int8calib.read_table(folder / "net.table"))
    assert list(found) == list(largest)
    np.testing.assert_allclose(list(found.values()), list(largest.values()), rtol=1e-5)
    run_program(folder, program)
    found = thresholds(int8calib.read_table(folder / "net.table"))
    # Summed in another order, a value may fall into the next bin.
    for name, value in found.items():
        assert abs(value - like[name]) <= BIN * largest[name] + 1e-6 * value, name
    assert any(like[name] < largest[name] * 0.99 for name in like), "no threshold clips"


def calibrated(net: Any, name: str) -> int8calib.CalibrationTable:
    return int8calib.calibrate(net, lambda: [{name: IMAGES}]).table


def largest_of(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.abs(array).max()) for name, array in arrays.items()}


@pytest.mark.parametrize("name", TEXTS)
def test_programs_are_tested(name: str) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert f'"{name}"' in source


def test_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conv, _ = rng.normal(size=(8, 3, 1, 1)), rng.normal(size=(10, 8 * 6 * 6))
    images = rng.normal(size=(40, 3, 6, 6))
    relu1 = np.maximum(np.tensordot(images, conv[:, :, 0, 0], ((1,), (1,))), 0)
    run_program(tmp_path, "with_numpy.py", by_minmax)
    found = thresholds(int8calib.read_table(tmp_path / "net.table"))
    expected = largest_of({"conv1": images, "fc": relu1})
    assert found == pytest.approx(expected, rel=1e-5)
    assert "conv1" in run_program(tmp_path, "with_numpy.py")


def test_onnxruntime(tmp_path: Path) -> None:
    need("onnx", "onnxruntime")
    import onnx
    import onnxruntime

    write_onnx(tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.output.extend(onnx.ValueInfoProto(name=READ[name]) for name in NAMES[1:])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    arrays = session.run([READ[name] for name in NAMES[1:]], {"x": IMAGES})
    largest = largest_of(dict(zip(NAMES, [IMAGES, *arrays], strict=True)))

    table = calibrated(int8calib.load_caffe(*write_caffe(tmp_path)), "x")
    hold(tmp_path, "with_onnxruntime.py", largest, thresholds(table))
    found = int8calib.read_table(tmp_path / "net.table")
    for row, same in zip(found.layers, table.layers, strict=True):
        np.testing.assert_allclose(row.weight_scales, same.weight_scales, rtol=1e-6)


def test_torch(tmp_path: Path) -> None:
    need("torch", "pnnx", "ncnn")
    import torch

    net, found = torch_net(), {}
    torch.save(net, tmp_path / "net.pth")
    np.save(tmp_path / "images.npy", IMAGES)
    run(tmp_path, sys.executable, "-c", TRACE)
    shape = ",".join(map(str, (1, *SHAPE)))
    run(tmp_path, "pnnx", "net.pt", f"inputshape=[{shape}]", "fp16=0")
    for name in NAMES:
        module = net.get_submodule(name)
        module.register_forward_hook(lambda _, read, __, name=name: found.update({name: read[0]}))
    with torch.no_grad():
        net(torch.from_numpy(IMAGES))
    largest = largest_of({name: array.numpy() for name, array in found.items()})

    files = (tmp_path / "net.ncnn.param", tmp_path / "net.ncnn.bin")
    table = calibrated(int8calib.load_ncnn(*files, input_shapes={"in0": (1, *SHAPE)}), "in0")
    like = dict(zip(NAMES, thresholds(table).values(), strict=True))
    hold(tmp_path, "with_torch.py", largest, like)
    ours = int8calib.read_table(tmp_path / "net.table")
    for row, same in zip(ours.layers, table.layers, strict=True):
        np.testing.assert_allclose(row.weight_scales, same.weight_scales, rtol=1e-4)


TRACE = """
import torch
net = torch.load("net.pth", weights_only=False)
torch.jit.trace(net, torch.rand(1, 3, 13, 17)).save("net.pt")
"""


def test_ncnn(tmp_path: Path) -> None:
    need("ncnn")
    import ncnn

    proto, model = write_caffe(tmp_path)
    files = [str(tmp_path / "net.param"), str(tmp_path / "net.bin")]
    words = ["convert", "--proto", str(proto), "--model", str(model), "--output", *files]
    assert main([*words, "--no-optimize"]) == 0
    np.save(tmp_path / "images.npy", IMAGES)
    net = ncnn.Net()
    net.opt.lightmode = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    assert net.load_param(files[0]) == net.load_model(files[1]) == 0
    found: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for image in IMAGES:
        extractor = net.create_extractor()
        extractor.input("x", ncnn.Mat(image).clone())
        for name in NAMES:
            found[name].append(np.array(extractor.extract(READ[name])[1]))
    largest = largest_of({name: np.array(arrays) for name, arrays in found.items()})
    table = calibrated(int8calib.load_caffe(proto, model), "x")
    hold(tmp_path, "with_ncnn.py", largest, thresholds(table))


def sqnr(folder: Path) -> float:
    told = run(folder, sys.executable, "compare.py")
    return float(re.findall(r"PyTorch: (\S+) dB", told)[0])


def test_from_torch_to_int8_in_ncnn(tmp_path: Path) -> None:
    need("torch", "pnnx", "ncnn")
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    run_program(tmp_path, "from_torch.py")
    told = run(tmp_path, "bash", "-euo", "pipefail", "-c", commands)
    assert "SQNR" in told
    assert "speedup" in told
    run_program(tmp_path, "compare.py")

    # The bound of compare.py holds for the model, and for none with a wrong scale.
    bound = float(re.findall(r"assert sqnr > (\d+)", TEXTS["compare.py"])[0])
    assert sqnr(tmp_path) > bound + 3
    binary = tmp_path / "net-int8.bin"
    sound = binary.read_bytes()
    for row in int8calib.read_table(tmp_path / "net.table").layers:
        scales = row.weight_scales.astype(np.float32)
        assert sound.count(scales.tobytes()) == 1, row.name
        binary.write_bytes(sound.replace(scales.tobytes(), (scales * np.float32(1.1)).tobytes()))
        (tmp_path / "compare.py").write_text(TEXTS["compare.py"].replace("assert ", "print(") + ")")
        assert sqnr(tmp_path) < bound - 3, row.name

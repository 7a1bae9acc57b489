"""Try caffe_proto with the oldest protobuf that pyproject.toml allows and with the newest.

Run ``python tests/protobuf_runtimes.py [VERSION ...]``; without versions the floor for this Python
and whatever ``pip install protobuf`` gives. Each is installed beside the environment into a folder
of its own, and tried with warnings as errors in its C and its pure Python implementation.
The last line is ``N passed, N failed``; the exit code is 1 where something failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

TRIAL = """
import sys, tempfile
from pathlib import Path
import google.protobuf
import numpy as np
import caffe_proto as cp
from google.protobuf import text_format
from google.protobuf.internal import api_implementation

folder, implementation = sys.argv[1:]
assert api_implementation.Type() == implementation, api_implementation.Type()
assert google.protobuf.__file__.startswith(folder), google.protobuf.__file__
net = cp.parse_prototxt('''
    name: "caf\\u00e9" input: "data" input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 7
    layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1
             convolution_param { num_output: 2 kernel_size: [3, 5] bias_term: false } }
    layers { layer { name: "r" type: "relu" } bottom: "c" top: "r" }''')
assert [layer.type for layer in net.layer] == ["Input", "Convolution", "ReLU"], net
assert list(net.layer[1].convolution_param.kernel_size) == [3, 5]
weights = {"c": (np.arange(90, dtype=np.float32).reshape(2, 3, 3, 5),)}
with tempfile.TemporaryDirectory() as scratch:
    model, text = Path(scratch, "m.caffemodel"), Path(scratch, "m.prototxt")
    cp.write_caffemodel(model, net, weights)
    cp.write_prototxt(text, net)
    assert cp.read_prototxt(text) == net
    assert text_format.Parse(text.read_text("utf-8"), cp.NetParameter()) == net
    np.testing.assert_array_equal(cp.read_weights(model)["c"][0], weights["c"][0])
    boxed = cp.NetParameter.FromString(model.read_bytes())
    assert list(boxed.layer[1].blobs[0].data) == list(range(90))
    assert list(boxed.layer[1].blobs[0].shape.dim) == [2, 3, 3, 5]
odd = cp.parse_prototxt(
    'layer { name: "a" odd_param { s: "caf\u00e9" n: -3 } pooling_param { pool: FOO } }', warn=False
)
with tempfile.TemporaryDirectory() as scratch:
    cp.write_prototxt(Path(scratch, "odd"), odd)
    again = cp.read_prototxt(Path(scratch, "odd"), warn=False)
assert cp.unknown_fields(again.layer[0]) == cp.unknown_fields(odd.layer[0]) == {
    "odd_param": [{"s": ["caf\u00e9"], "n": ["-3"]}], "pooling_param": [{"pool": ["FOO"]}]}
field = cp.caffe_pb2.BlobProto.DESCRIPTOR.fields_by_name["data"]
assert field.GetOptions().packed
print(google.protobuf.__version__)
"""


def floor() -> str:
    """The oldest protobuf that pyproject.toml allows for this Python."""
    listed = re.findall(r'"(protobuf\b[^"]*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    for text in listed:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            return next(s.version for s in requirement.specifier if s.operator == ">=")
    raise SystemExit("pyproject.toml names no protobuf for this Python")


def install(requirement: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", folder, requirement]
    subprocess.run(command, check=True)


def trial(folder: str, implementation: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([folder, str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation,
    }
    command = [sys.executable, "-W", "error", "-c", TRIAL, folder, implementation]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


def main() -> None:
    requirements = [f"protobuf=={version}" for version in sys.argv[1:]]
    passed = failed = 0
    for requirement in requirements or [f"protobuf=={floor()}", "protobuf"]:
        with tempfile.TemporaryDirectory() as folder:
            install(requirement, folder)
            for implementation in ("upb", "python"):
                done = trial(folder, implementation)
                passed += done.returncode == 0
                failed += done.returncode != 0
                outcome = done.stdout.strip() or done.stderr.strip()
                sys.stdout.write(f"{requirement} ({implementation}): {outcome}\n")
    sys.stdout.write(f"{passed} passed, {failed} failed\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()

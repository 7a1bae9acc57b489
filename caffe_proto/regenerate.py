"""The protobuf bindings, caffe_pb2.py and caffe_pb2.pyi, made anew from caffe.proto.

Run ``python -m caffe_proto.regenerate``. It needs the extra ``proto``,
whose grpcio-tools is pinned: another protoc words its output differently, and a test compares the
output with what is committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["generate", "main"]

PACKAGE = Path(__file__).resolve().parent
SCHEMA = "caffe.proto"

# protoc makes its output refuse every runtime older than protoc itself. The rest of the output
# runs with far older ones (tests/protobuf_runtimes.py tries them), so the check is taken out.
_RUNTIME_CHECK = re.compile(
    r"^# Protobuf Python Version: .*\n"
    r"|^from google\.protobuf import runtime_version as _runtime_version\n"
    r"|^_runtime_version\.ValidateProtobufRuntimeVersion\(\n(?:    .*\n)+\)\n",
    re.MULTILINE,
)


def generate() -> dict[str, str]:
    """Compile caffe.proto.

    Returns
    -------
    dict of str to str
        The text of each binding, by file name.

    Raises
    ------
    RuntimeError
        protoc is missing, failed, or words its version check in another way.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PACKAGE.parent}"]
        command += [f"--python_out={folder}", f"--pyi_out={folder}", f"{PACKAGE.name}/{SCHEMA}"]
        done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"protoc failed: {done.stderr.strip()}")
        texts = {p.name: p.read_text("utf-8") for p in (Path(folder) / PACKAGE.name).iterdir()}
    module, found = _RUNTIME_CHECK.subn("", texts["caffe_pb2.py"])
    if found != 3:
        raise RuntimeError(f"{found} of 3 parts of protoc's version check found: wrong protoc?")
    # mypy --strict wants the arguments of generic types, which protoc leaves out.
    stub = texts["caffe_pb2.pyi"].replace(", _Mapping]", ", _Mapping[str, object]]")
    # A field whose name Python keeps for itself, such as lambda, can be given as **kwargs only.
    stub = stub.replace(", **kwargs) -> None", ", **kwargs: object) -> None")
    return {"caffe_pb2.py": module, "caffe_pb2.pyi": stub}


def main() -> None:
    """Write the bindings beside caffe.proto."""
    for name, text in generate().items():
        (PACKAGE / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

"""The rows that ncnn reads of a table: as a network asks for them, and as a file has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import text_format

from caffe_proto import NetParameter, caffe_pb2

Rows = list[tuple[str, int]]


def expected_rows(prototxt: str) -> Rows:
    """Key and number of scales of each row for this network, by protobuf's own reading.

    One weight scale per output of a Convolution or InnerProduct, one per group of a grouped
    Convolution, and one bottom scale each. Source: ncnn's tools/quantize/ncnn2int8.cpp. Groups of
    a multiple of 8 outputs stay in float, since ncnn's x86 kernels fail there.
    """
    net = text_format.Parse(prototxt, NetParameter())
    types = {layer.name: layer.type for layer in net.layer}
    old = caffe_pb2.V1LayerParameter.LayerType
    types |= {layer.name: old.Name(layer.type) for layer in net.layers}
    rows = []
    for layer in (*net.layer, *net.layers):
        if types[layer.name] in ("InnerProduct", "INNER_PRODUCT"):
            rows.append((layer.name, layer.inner_product_param.num_output))
        elif types[layer.name] in ("Convolution", "CONVOLUTION"):
            param = layer.convolution_param
            if param.group > 1 and param.num_output // param.group % 8 == 0:
                continue
            rows.append((layer.name, param.num_output if param.group == 1 else param.group))
    return [(f"{name}_param_0", count) for name, count in rows] + [(name, 1) for name, _ in rows]


def written_rows(path: Path) -> Rows:
    """Key and number of scales of every line of a table; each must be a number above 0."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, *scales = line.split(" ")
        values = np.array(scales, np.float64)
        assert np.isfinite(values).all(), key
        assert (values > 0).all(), key
        rows.append((key, len(scales)))
    return rows

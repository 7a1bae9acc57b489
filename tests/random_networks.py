"""Random networks, and an engine that copies everything: what the real engine is compared with.

The engine here runs the layers in file order, as Caffe does, each on copies of its bottoms and
with a formula of its own, so that no blob's memory is ever shared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

import caffe_proto
from int8calib.caffe.network.build import build_graph
from int8calib.caffe.network.graph import Graph

SIZE = (3, 5)
CHANNELS = (2, 3)
IN_PLACE = ("ReLU", "Power", "Scale", "Dropout")


@dataclass(frozen=True)
class Row:
    """One layer of a random network."""

    kind: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    weight: np.ndarray | None = None

    def text(self, name: str) -> str:
        """As prototxt."""
        ends = [f'bottom: "{b}"' for b in self.bottoms] + [f'top: "{t}"' for t in self.tops]
        return f'layer {{ name: "{name}" type: "{self.kind}" {" ".join(ends)} {self._options()} }}'

    def _options(self) -> str:
        if self.weight is not None:
            kernel = self.weight.shape[2]
            return (
                f"convolution_param {{ num_output: {len(self.weight)} kernel_size: {kernel} "
                f"pad: {kernel // 2} bias_term: false }}"
            )
        return {
            "ReLU": "relu_param { negative_slope: 0.5 }",
            "Power": "power_param { scale: -0.5 shift: 1 }",
            "Pooling": "pooling_param { pool: MAX kernel_size: 3 stride: 1 pad: 1 }",
            "Scale": "scale_param { axis: 0 }",
            "Reshape": "reshape_param { shape { dim: 0 dim: -1 dim: 3 dim: 5 } }",
        }.get(self.kind, "")

    def run(self, bottoms: list[np.ndarray]) -> list[np.ndarray]:
        """The tops by the plainest formula there is."""
        x = bottoms[0]
        if self.weight is not None:
            return [_windows(x, self.weight)]
        if self.kind == "Pooling":
            return [_windows(x, None)]
        if self.kind in ("Split", "Dropout"):
            return [x] * len(self.tops)
        if self.kind == "Slice":
            return list(np.split(x, 2, axis=1))
        top = {
            "ReLU": lambda: np.where(x > 0, x, 0.5 * x),
            "Power": lambda: 1 - 0.5 * x,
            "Softmax": lambda: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True),
            "Scale": lambda: x * bottoms[1],
            "Flatten": lambda: x.reshape(len(x), -1),
            "Reshape": lambda: x.reshape(len(x), -1, *SIZE),
            "Eltwise": lambda: sum(bottoms),
            "Concat": lambda: np.concatenate(bottoms, axis=1),
        }[self.kind]()
        return [top]


def _windows(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """A convolution with `weight`, or 3x3 max pooling; stride 1, padded to keep the size."""
    kernel = 3 if weight is None else weight.shape[2]
    pad = kernel // 2
    border = -np.inf if weight is None else 0
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=border)
    taps = [
        padded[:, :, i : i + SIZE[0], j : j + SIZE[1]] for i in range(kernel) for j in range(kernel)
    ]
    if weight is None:
        return np.max(taps, axis=0)
    return np.einsum("tnchw,oct->nohw", taps, weight.reshape(*weight.shape[:2], -1))


@dataclass(frozen=True)
class Network:
    """A random network: its layers, images to run it on, and the same as the engine sees it."""

    rows: tuple[Row, ...]
    images: tuple[np.ndarray, ...]

    def graph(self) -> Graph:
        """The engine's own form."""
        dims = " ".join(f"dim: {size}" for size in self.images[0].shape)
        text = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}'
        text += "\n".join(row.text(f"layer{i}") for i, row in enumerate(self.rows))
        graph = build_graph(caffe_proto.parse_prototxt(text, "net"), "net")
        weights = {f"layer{i}": row.weight for i, row in enumerate(self.rows)}
        layers = tuple(
            layer
            if weights.get(layer.name) is None
            else replace(layer, weights=(weights[layer.name],))
            for layer in graph.layers
        )
        return replace(graph, layers=layers)

    def expected(self, image: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
        """Every layer's name, top name and top, in order: all that a listener may hear."""
        values = {"data": image.astype(np.float64)}
        heard = [("data", "data", values["data"])]
        for i, row in enumerate(self.rows):
            tops = row.run([values[name].copy() for name in row.bottoms])
            values.update(zip(row.tops, tops, strict=True))
            heard += [(f"layer{i}", *top) for top in zip(row.tops, tops, strict=True)]
        return heard


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Up to 12 layers on whatever is there, old blobs read again and names used again."""
    batch = draw(st.integers(1, 2))
    shapes = {"data": (batch, 2, *SIZE)}
    rows = []
    for i in range(draw(st.integers(2, 12))):
        # The newest blob more often than others: chains are where memory is shared.
        name = draw(st.sampled_from([*shapes, *[list(shapes)[-1]] * 3]))
        same = [other for other, shape in shapes.items() if shape == shapes[name]]
        deep = len(shapes[name]) == 4
        kinds = [*IN_PLACE, "Eltwise", "Concat", "Split", "Softmax"]
        kinds += ["Convolution", "Pooling", "Flatten"] if deep else ["Reshape"]
        kinds += ["Slice"] if deep and shapes[name][1] % 2 == 0 else []
        kind = draw(st.sampled_from(kinds))
        if deep and shapes[name][1] > 16:
            kind = "Convolution"
        bottoms, weight = [name], None
        if kind in ("Scale", "Concat"):
            bottoms.append(draw(st.sampled_from(same)))
        elif kind == "Eltwise":
            bottoms += draw(st.lists(st.sampled_from(same), min_size=1, max_size=2))
        elif kind == "Convolution":
            size = (draw(st.sampled_from(CHANNELS)), shapes[name][1])
            kernel = draw(st.sampled_from((1, 3)))
            noise = np.random.default_rng(draw(st.integers(0, 99))).normal(
                size=(*size, kernel, kernel)
            )
            weight = (noise / np.sqrt(size[1] * kernel * kernel)).astype(np.float32)
        new = [f"blob{i}", f"blob{i}b"][: 2 if kind in ("Split", "Slice") else 1]
        if kind in IN_PLACE and draw(st.booleans()):
            new = [name]
        elif draw(st.integers(0, 5)) == 0:
            new[0] = draw(st.sampled_from([*shapes]))
        if len(set(new)) < len(new):
            continue
        row = Row(kind, tuple(bottoms), tuple(new), weight)
        rows.append(row)
        tops = row.run([np.zeros(shapes[bottom]) for bottom in bottoms])
        for top, made in zip(new, tops, strict=True):
            shapes.pop(top, None)
            shapes[top] = made.shape
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    images = rng.normal(size=(2, batch, 2, *SIZE)).astype(np.float32)
    return Network(tuple(rows), tuple(images))

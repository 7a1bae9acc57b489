"""The list of supported layers: docs/reference/layers.md has it as the registry gives it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import int8calib
from int8calib.caffe.layers import registry
from int8calib.caffe.layers.listing import host_layers, layers_markdown
from int8calib.cli.main import main


def test_every_type_stands_once_in_a_named_family() -> None:
    rows = [row.strip("| ").split(" | ") for row in layers_markdown().splitlines()[2:]]
    listed = [name for _, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(listed, key=str.lower) == registry.type_names()
    families = {name: family for family, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert families["ReLU"] == families["PReLU"] == "Activations"
    assert families["Convolution"] == "Convolution, grouped and depthwise"


def test_layers_that_a_gpu_leaves_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    int8calib.register_layer("Odd", lambda *_: [], lambda *_: [])
    layers = [("a", "Odd"), ("b", "ReLU"), ("c", "ROIPooling"), ("d", "Odd"), ("e", "Unknown")]
    assert host_layers(layers) == {"Odd": ["a", "d"], "ROIPooling": ["c"]}


def test_types_from_outside_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = layers_markdown()
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    int8calib.register_layer(
        "FromOutside",
        lambda params, weights, bottoms: [np.abs(bottoms[0])],
        lambda params, bottoms: [bottoms[0]],
    )
    assert layers_markdown() == before


def test_inspect_lists_every_type_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--layers"])
    assert ended.value.code == 0
    *lines, ncnn = capsys.readouterr().out.splitlines()
    assert ncnn.startswith("In ncnn models: AbsVal, BatchNorm, ")
    listed = [name for line in lines for name in line.split(": ")[1].split(", ")]
    assert sorted(listed, key=str.lower) == registry.type_names()
    assert "Learned matrices: Embed, InnerProduct, Parameter" in lines

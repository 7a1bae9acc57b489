"""The list of supported layers: docs/reference/layers.md has it as the registry gives it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import int8calib
from int8calib.caffe.layers import registry
from int8calib.caffe.layers.listing import layers_markdown


def test_every_type_stands_once_in_a_named_family() -> None:
    rows = [row.strip("| ").split(" | ") for row in layers_markdown().splitlines()[2:]]
    listed = [name for _, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(listed, key=str.lower) == registry.type_names()
    families = {name: family for family, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert families["ReLU"] == families["PReLU"] == "Activations"
    assert families["Convolution"] == "Convolution, grouped and depthwise"


def test_types_from_outside_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = layers_markdown()
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    int8calib.register_layer(
        "FromOutside",
        lambda params, weights, bottoms: [np.abs(bottoms[0])],
        lambda params, bottoms: [bottoms[0]],
    )
    assert layers_markdown() == before

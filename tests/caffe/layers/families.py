"""The cases of all layer families, for tests of what holds for every type."""

from __future__ import annotations

from importlib import import_module

from tests.layer_cases import Case

FAMILIES = tuple(
    import_module(f"tests.caffe.layers.test_{family}")
    for family in (
        "activation",
        "arithmetic",
        "combine",
        "convolution",
        "detection",
        "normalization",
        "pooling",
        "regions",
        "reshaping",
        "resizing",
        "yolo",
    )
)

CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CASES)

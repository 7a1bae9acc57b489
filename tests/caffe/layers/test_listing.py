"""The list of supported layers: README.md has it as the registry gives it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.layers import registry
from int8calib.caffe.layers.listing import BEGIN, END, layers_markdown, main, with_layers
from int8calib.errors import OutputError

README = Path(__file__).resolve().parents[3] / "README.md"


def test_readme_lists_the_layers_of_the_registry() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_layers(text, "README.md"), (
        "README.md is out of date: python -m int8calib.caffe.layers.listing --write README.md"
    )


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


def test_only_what_is_between_the_markers_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"# Ä\n{BEGIN}\nold\n{END}\nrest\n", encoding="utf-8")
    assert main(["--write", str(file)]) == 0
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert file.read_text(encoding="utf-8") == f"# Ä\n{BEGIN}\n{listed}{END}\nrest\n"
    with pytest.raises(OutputError, match=r"page\.md: holds no <!-- layers:begin"):
        with_layers("nothing", "page.md")

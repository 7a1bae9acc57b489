"""Which layers are quantized and by which method: names, globs, shared blobs, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib import Options
from int8calib.caffe.engine.run import Net
from int8calib.calibration.pipeline import prepare
from int8calib.calibration.scales import WeightOptions
from int8calib.calibration.selection import matching
from int8calib.errors import OptionError
from tests.generated import make_model


def conv(name: str, bottom: str, outputs: int, size: int = 1) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} kernel_size: {size} }} }}\n"
    )


# Two heads on one fire module; the last layers are both of them, the first is conv1.
NET = (
    'layer { name: "data" type: "Input" top: "data" '
    "input_param { shape { dim: 1 dim: 3 dim: 13 dim: 11 } } }\n"
    + conv("conv1", "data", 7, 3)
    + conv("fire/squeeze", "conv1", 5)
    + conv("fire/expand1", "fire/squeeze", 7)
    + conv("fire/expand3", "fire/squeeze", 7)
    + 'layer { name: "cat" type: "Concat" bottom: "fire/expand1" bottom: "fire/expand3" top: "cat" }\n'
    + conv("head1", "cat", 2)
    + conv("head2", "cat", 3, 3)
)
NAMES = ["conv1", "fire/squeeze", "fire/expand1", "fire/expand3", "head1", "head2"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("fire"), NET))


@pytest.fixture(scope="module")
def batches() -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    images = np.random.default_rng(3).normal(0, 60, (5, 3, 13, 11)).astype(np.float32)
    return lambda: iter([{"data": image[None]} for image in images])


def quantized(net: Net, **options: object) -> list[str]:
    return [layer.name for layer in prepare(net, Options(**options)).layers]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, NAMES),
        ({"exclude": ("conv1",)}, NAMES[1:]),
        ({"exclude": ("fire/*", "head2")}, ["conv1", "head1"]),
        ({"only": ("fire/expand?", "head1")}, ["fire/expand1", "fire/expand3", "head1"]),
        ({"only": ("fire/*",), "exclude": ("*3",)}, ["fire/squeeze", "fire/expand1"]),
        ({"first_last_float": True}, ["fire/squeeze", "fire/expand1", "fire/expand3"]),
        ({"first_last_float": True, "only": ("conv1", "fire/squeeze")}, ["fire/squeeze"]),
    ],
)
def test_layers_are_chosen(net: Net, options: dict[str, object], left: list[str]) -> None:
    assert quantized(net, **options) == left


def grouped_conv(name: str, bottom: str, outputs: int, group: int) -> str:
    return conv(name, bottom, outputs).replace("} }", f"group: {group} }} }}")


GROUPED = (
    NET.split("\n", 1)[0]
    + "\n"
    + conv("c", "data", 6, 3)
    + grouped_conv("trap", "c", 16, 2)  # 8 outputs in each group
    + grouped_conv("nine", "trap", 18, 2)
    + grouped_conv("depthwise", "nine", 18, 18)
)


def test_groups_of_8_outputs_stay_in_float_unless_they_are_asked_for(
    tmp_path: Path, batches: Callable[[], Iterator[dict[str, np.ndarray]]]
) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, GROUPED))
    assert quantized(net) == ["c", "nine", "depthwise"]
    assert quantized(net, grouped="int8") == ["c", "trap", "nine", "depthwise"]
    assert quantized(net, exclude=("trap",)) == ["c", "nine", "depthwise"]
    with pytest.raises(OptionError, match="only trap: cannot be INT8: ncnn on x86 returns uninit"):
        quantized(net, only=("trap",))
    with pytest.raises(OptionError, match="grouped 'yes'; expected one of float, int8"):
        Options(grouped="yes")
    found = int8calib.calibrate(net, batches)
    assert "trap" not in found.table
    (warning,) = [line for line in found.warnings if "trap" in line]
    assert "2 groups with 8 outputs each" in warning
    assert "--grouped int8" in warning
    asked = int8calib.calibrate(net, batches, Options(grouped="int8"))
    assert not any("trap stays" in line for line in asked.warnings)
    why = {
        node.name: (node.quantized, node.why) for node in int8calib.inspect(*files(tmp_path)).layers
    }
    assert why["nine"] == (True, "ConvolutionDepthWise")
    assert "uninitialized memory" in why["trap"][1]
    assert not why["trap"][0]


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "net.prototxt", folder / "net.caffemodel"


@pytest.mark.parametrize("option", ["exclude", "only"])
def test_a_pattern_without_a_layer_names_near_ones(net: Net, option: str) -> None:
    with pytest.raises(OptionError, match=rf"{option} fire/expnd1: .*fire/expand1"):
        quantized(net, **{option: ("fire/expnd1",)})


def test_mistakes_in_other_options_are_found_before_any_image_runs(net: Net) -> None:
    with pytest.raises(OptionError, match=r"six-bit haed1: .* head1"):
        quantized(net, weights=WeightOptions(six_bit=("haed1",)))
    with pytest.raises(OptionError, match=r"layer-method conv9: .*conv1"):
        quantized(net, layer_methods=(("conv9", "mse"),))
    with pytest.raises(OptionError, match=r"all 6 layers .* left out"):
        quantized(net, exclude=("*",))
    for bad in ({"method": "magic"}, {"layer_methods": (("conv1", "magic"),)}):
        with pytest.raises(OptionError, match="'magic' is no method, expected aciq, kl"):
            Options(**bad)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="input method 'magic'; expected one of auto, same"):
        Options(input_method="magic")
    with pytest.raises(OptionError, match="percentile 0"):
        Options(percentile=0)


def test_a_written_out_name_is_no_glob() -> None:
    assert matching(["a[1]", "a1"], "a[1]", "only") == ("a[1]",)
    assert matching(["b[1]", "a1"], "a[1]", "only") == ("a1",)


def methods(net: Net, batches: Callable[[], Iterator], **options: object) -> dict[str, str]:
    table = int8calib.calibrate(net, batches, Options(**options)).table  # type: ignore[arg-type]
    return {row.name: row.evidence.method for row in table.layers if row.evidence}


def test_layer_methods_reach_their_layers(net: Net, batches: Callable[[], Iterator]) -> None:
    found = methods(
        net, batches, layer_methods=(("fire/*", "minmax"), ("fire/sq*", "aciq"), ("conv1", "kl"))
    )
    assert found == dict(zip(NAMES, ["kl", "aciq", "minmax", "minmax", "mse", "mse"], strict=True))


def test_a_method_given_to_one_consumer_holds_for_all(
    net: Net, batches: Callable[[], Iterator]
) -> None:
    options = Options(layer_methods=(("fire/expand3", "minmax"),))
    done = int8calib.calibrate(net, batches, options)
    first, second = (done.table[name] for name in ("fire/expand1", "fire/expand3"))
    assert first.bottom_scale == second.bottom_scale
    assert first.evidence is not None
    assert 127 / first.bottom_scale == first.evidence.absmax
    assert any(
        "fire/expand1: method minmax, as fire/expand3 reads" in line for line in done.warnings
    )


def test_two_methods_for_one_blob_are_an_error(net: Net) -> None:
    pairs = (("fire/expand1", "minmax"), ("fire/expand3", "mse"))
    with pytest.raises(OptionError, match=r"fire/expand1 \(minmax\) and fire/expand3 \(mse\)"):
        quantized(net, layer_methods=pairs)
    # A consumer that stays in float has no say.
    assert "fire/expand3" in quantized(net, layer_methods=pairs, exclude=("fire/expand1",))


@pytest.mark.parametrize(
    ("method", "input_method", "expected"),
    [
        ("kl", "auto", "minmax"),
        ("mse", "auto", "minmax"),
        ("kl", "same", "kl"),
        ("kl-tool", "auto", "kl-tool"),
        ("kl-tool-v1", "auto", "kl-tool-v1"),
        ("aciq", "auto", "aciq"),
        ("aciq", "percentile", "percentile"),
    ],
)
def test_input_blobs_have_their_own_default(
    net: Net, batches: Callable[[], Iterator], method: str, input_method: str, expected: str
) -> None:
    found = methods(net, batches, method=method, input_method=input_method)
    assert found == {name: expected if name == "conv1" else method for name in NAMES}


def test_percentile_is_numpys(net: Net, batches: Callable[[], Iterator]) -> None:
    options = Options(method="percentile", input_method="same", percentile=90.0)
    row = int8calib.calibrate(net, batches, options).table["conv1"]
    values = np.abs(np.concatenate([batch["data"].ravel() for batch in batches()]))
    assert 127 / row.bottom_scale == pytest.approx(np.percentile(values, 90), rel=2e-3)


def test_aciq_brings_its_weights_unless_told_otherwise(
    net: Net, batches: Callable[[], Iterator]
) -> None:
    def scales(**options: object) -> np.ndarray:
        return int8calib.calibrate(net, batches, Options(**options)).table["head1"].weight_scales  # type: ignore[arg-type]

    absmax = scales()
    np.testing.assert_array_equal(
        scales(method="aciq"), scales(weights=WeightOptions(method="aciq"))
    )
    assert not np.allclose(scales(method="aciq"), absmax, rtol=0.01)
    plain = scales(method="aciq", weights=WeightOptions(method="absmax"))
    np.testing.assert_array_equal(plain, absmax)

"""All golden tables from end to end: images in, the rows of ncnn2table and the reference tool out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8calib.calibration.collected import load_collected
from int8calib.calibration.thresholds import find_threshold
from int8calib.cli.main import main
from int8calib.table import CalibrationTable, read_table
from tests.histogram_cases import golden_histograms, is_near_tie, make


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The statistics of every blob over the golden images."""
    folder = tmp_path_factory.mktemp("golden")
    words = [*network(shared), "--output", str(folder / "stats.npz"), "--all-blobs", "--quiet"]
    assert main(["collect", "--exact", *words]) == 0
    return folder


def network(shared: Path) -> list[str]:
    model = shared / "models/squeezenet_v1.0"
    return [
        *("--proto", str(model / "deploy.prototxt")),
        *("--model", str(model / "squeezenet_v1.0.caffemodel")),
        *("--images", str(shared / "golden/png227"), "--mean", "104", "117", "123"),
    ]


def bins_apart(
    found: dict[str, float], golden: dict[str, float], absmax: dict[str, float]
) -> list[int]:
    """How many histogram bins lie between the thresholds of each row.

    ncnn2table writes six decimals, which move a threshold by up to a tenth of a bin.
    """
    assert list(found) == list(golden)
    return [
        round(abs(127 / found[name] - 127 / golden[name]) / (absmax[name] / 2048))
        for name in golden
    ]


def scales(table: CalibrationTable) -> dict[str, float]:
    return dict(table.blob_scales) or {row.name: row.bottom_scale for row in table.layers}


# What is written, and by which options. Any two engines sum in different orders, so that a few
# values lie in the next bin of their histograms, and where the divergence is flat that moves the
# minimum: two or three rows of 26 by a bin or two, more only where two minima are all but equal.
GOLDEN = {
    "squeezenet_v1.0.tool_weight.table": ["--like", "tool"],
    "squeezenet_v1.0.tool_weight_group0.table": ["--like", "tool", "--group", "0"],
    "squeezenet_v1.0.tool_v1.table": ["--like", "tool-v1"],
    "squeezenet_v1.0.ncnn2table_kl.table": ["--like", "ncnn2table"],
    "squeezenet_v1.0.ncnn2table_aciq.table": ["--like", "ncnn2table", "--method", "aciq"],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_table_from_end_to_end(
    shared: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    options = GOLDEN[name]
    output = tmp_path / name
    words = ["thresholds", str(folder / "stats.npz"), "--output", str(output), "--quiet"]
    assert main([*words, *options]) == 0
    format = options[1].replace("ncnn2table", "ncnn")
    found, golden = (read_table(p, format) for p in (output, shared / "golden" / name))
    assert [row.name for row in found.layers] == [row.name for row in golden.layers]
    for row, wanted in zip(found.layers, golden.layers, strict=True):
        np.testing.assert_allclose(row.weight_scales, wanted.weight_scales, rtol=1e-5)
        if format != "ncnn":
            # ncnn2table marks a dead channel by inf, where ours has 1 and no mark.
            assert row.dead_channels == wanted.dead_channels
    histograms = load_collected(folder / "stats.npz")
    read = {layer.name: layer.blob for layer in histograms.layers}
    if found.blob_scales:
        read = dict(histograms.blobs.keys)
    counted = histograms.statistics.histograms
    apart = bins_apart(
        scales(found), scales(golden), {row: counted[blob].absmax for row, blob in read.items()}
    )
    assert sum(bins == 0 for bins in apart) >= 0.8 * len(apart)
    for (row, scale), bins in zip(scales(golden).items(), apart, strict=True):
        if bins > 2:
            assert "kl" in name, row
            assert is_near_tie(counted[read[row]], 127 / scale), row
    assert len(apart) + len(golden.layers) == {"tool-v1": 64}.get(format, 52)


def test_rows_of_the_reference_tool_are_as_many_and_dead_as_its_own(
    shared: Path, folder: Path, tmp_path: Path
) -> None:
    """The text itself: the same keys in the same order, 0 for the same channels."""
    for name in list(GOLDEN)[:3]:
        output = tmp_path / name
        words = ["thresholds", str(folder / "stats.npz"), "--output", str(output), "--quiet"]
        assert main([*words, *GOLDEN[name]]) == 0
        found, golden = (
            [line.split() for line in path.read_text().splitlines()]
            for path in (output, shared / "golden" / name)
        )
        assert [row[0] for row in found] == [row[0] for row in golden]
        for a, b in zip(found, golden, strict=True):
            assert [float(x) == 0 for x in a[1:]] == [float(x) == 0 for x in b[1:]]


def test_histograms_are_the_reference_tools_bin_for_bin(shared: Path, folder: Path) -> None:
    collected = load_collected(folder / "stats.npz")
    histograms = collected.statistics.histograms
    golden = golden_histograms(shared)
    assert list(golden) == [layer.name for layer in collected.layers]
    moved = 0
    for layer in collected.layers:
        absmax, _, counts = golden[layer.name]
        found = histograms[layer.blob]
        assert found.absmax == pytest.approx(absmax, rel=1e-5)
        as_the_tool = found.positive.copy()
        as_the_tool[0] += found.zeros
        assert as_the_tool.sum() == counts.sum()
        # A value at an edge that rounds to the other side leaves one bin and enters the next.
        moved += int(np.abs(as_the_tool - counts).sum()) // 2
    total = sum(int(counts.sum()) for _, _, counts in golden.values())
    assert total > 50_000_000
    assert moved < 1e-4 * total


def test_their_histograms_give_their_thresholds(shared: Path) -> None:
    golden = golden_histograms(shared)
    assert len(golden) == 26
    for layer, (absmax, bin, counts) in golden.items():
        assert find_threshold(make(counts, absmax), "kl-tool").bin == bin, layer


def test_calibrate_writes_the_same_bytes(shared: Path, folder: Path, tmp_path: Path) -> None:
    options = GOLDEN["squeezenet_v1.0.tool_v1.table"]
    words = ["--output", str(tmp_path / "a"), "--quiet", *options]
    assert main(["calibrate", *network(shared), *words]) == 0
    stats = ["thresholds", str(folder / "stats.npz"), "--output", str(tmp_path / "b"), "--quiet"]
    assert main([*stats, *options]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

"""`collect`, `merge` and `thresholds`: one machine or many, the same bytes as `calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from int8calib.calibration.collected import load_collected
from int8calib.calibration.thresholds import method_names
from int8calib.cli.main import main
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

IMAGES = np.random.default_rng(37).normal(0, 60, (13, 3, 37, 29)).astype(np.float32)
SHARDS = {"one": slice(0, 5), "two": slice(5, 6), "three": slice(6, 13)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, all images, shards of them, and the statistics of one machine."""
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    np.save(folder / "all.npy", IMAGES)
    for name, images in SHARDS.items():
        np.save(folder / f"{name}.npy", IMAGES[images])
    run(folder, "collect", "all", folder / "stats.npz", "--all-blobs")
    run(folder, "collect", "all", folder / "exact.npz", "--all-blobs", "--exact")
    return folder


def run(folder: Path, command: str, images: str, output: Path, *more: str, code: int = 0) -> None:
    words = ["--proto", str(folder / "net.prototxt"), "--model", str(folder / "net.caffemodel")]
    words += ["--images", str(folder / f"{images}.npy"), "--output", str(output)]
    assert main([command, *words, *more, "--quiet"]) == code


def merge(output: Path, *files: Path, code: int = 0) -> None:
    assert main(["merge", *map(str, files), "--output", str(output), "--quiet"]) == code


def thresholds(stats: Path, output: Path, *more: str, code: int = 0) -> None:
    words = ["thresholds", str(stats), "--output", str(output), *more]
    assert main([*words, "--quiet"] if not code else words) == code


CHOICES = [
    *(("--method", method) for method in method_names()),
    ("--weight-method", "mse"),
    ("--weight-method", "mse", "--weights", "per-tensor", "--no-winograd"),
    ("--weight-method", "aciq", "--weights", "per-group", "--six-bit", "p*"),
    ("--input-method", "same", "--exclude", "dw", "--layer-method", "fc=minmax"),
    ("--method", "kl", "--input-method", "same"),
    ("--method", "kl", "--exact"),
    ("--first-last-float", "--percentile", "99", "--method", "percentile"),
    ("--format", "tool-v1", "--method", "kl-tool-v1"),
    ("--format", "tool", "--group", "0"),
    ("--format", "tensorrt"),
    ("--format", "json"),
]


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_thresholds_write_what_calibrate_writes(
    folder: Path, tmp_path: Path, choice: tuple[str, ...]
) -> None:
    exact = "--exact" in choice or "same" in choice or any("kl-tool" in word for word in choice)
    stats = folder / ("exact.npz" if exact and "dw" not in choice else "stats.npz")
    thresholds(stats, tmp_path / "a", *(word for word in choice if word != "--exact"))
    run(folder, "calibrate", "all", tmp_path / "b", *choice)
    if "json" in choice:
        # The reports tell where they come from; the layers are what counts.
        layers = [(tmp_path / n).read_text().split('"meta"')[0] for n in "ab"]
        assert layers[0] == layers[1]
    else:
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.json").exists()


@pytest.mark.parametrize("like", ["tool", "ncnn2table"])
def test_another_tools_numbers_need_its_folding(
    like: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Statistics that were collected as the tool has it give its numbers; others are warned of."""
    run(folder, "collect", "all", tmp_path / "raw.npz", "--no-fold-bn", "--exact")
    run(folder, "calibrate", "all", tmp_path / "expected", "--like", like)
    right, wrong = tmp_path / "raw.npz", folder / "exact.npz"
    if like == "ncnn2table":
        right, wrong = wrong, right
    for stats in (right, wrong):
        words = ["thresholds", str(stats), "--output", str(tmp_path / "t"), "--like", like]
        assert main(words) == 0
        told = f"warning: --like {like}: for its numbers of a network with BatchNorm"
        assert (told in capsys.readouterr().err) == (stats == wrong)
        assert (told in (tmp_path / "t.json").read_text()) == (stats == wrong)
        same = (tmp_path / "t").read_bytes() == (tmp_path / "expected").read_bytes()
        assert same == (stats == right)


def test_unfolded_statistics_give_unfolded_weights(folder: Path, tmp_path: Path) -> None:
    run(folder, "collect", "all", tmp_path / "raw.npz", "--no-fold-bn")
    thresholds(tmp_path / "raw.npz", tmp_path / "a")
    run(folder, "calibrate", "all", tmp_path / "b", "--no-fold-bn")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shards_are_one_machine_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    for name in SHARDS:
        run(folder, "collect", name, tmp_path / f"{name}.npz", "--all-blobs")
    for order in (list(SHARDS), list(reversed(SHARDS))):
        merge(tmp_path / "stats.npz", *(tmp_path / f"{name}.npz" for name in order))
        assert (tmp_path / "stats.npz").read_bytes() == (folder / "stats.npz").read_bytes()
    thresholds(tmp_path / "stats.npz", tmp_path / "t", "--method", "kl-tool")
    (warning,) = [
        line
        for line in json.loads((tmp_path / "t.json").read_text())["meta"]["warnings"]
        if "collect them with --exact" in line
    ]
    assert warning.startswith("method kl-tool repeats another tool")


def test_exact_shards_in_two_phases_are_one_machine_bit_for_bit(
    folder: Path, tmp_path: Path
) -> None:
    for name in SHARDS:
        run(folder, "collect", name, tmp_path / f"r-{name}.npz", "--ranges-only", "--all-blobs")
    merge(tmp_path / "ranges.npz", *(tmp_path / f"r-{name}.npz" for name in SHARDS))
    known = ("--ranges", str(tmp_path / "ranges.npz"), "--all-blobs")
    for name in SHARDS:
        run(folder, "collect", name, tmp_path / f"s-{name}.npz", *known)
    merge(tmp_path / "stats.npz", *(tmp_path / f"s-{name}.npz" for name in reversed(SHARDS)))
    assert (tmp_path / "stats.npz").read_bytes() == (folder / "exact.npz").read_bytes()


def test_what_does_not_belong_together_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "collect", "one", tmp_path / "one.npz", "--exact")
    run(folder, "collect", "three", tmp_path / "three.npz", "--exact")
    run(folder, "collect", "three", tmp_path / "once.npz")
    run(folder, "collect", "one", tmp_path / "x.npz", "--ranges-only", "--no-exact", code=2)
    assert "--no-exact: --ranges-only and --ranges are passes" in capsys.readouterr().err
    run(folder, "collect", "three", tmp_path / "raw.npz", "--no-fold-bn")
    run(folder, "collect", "three", tmp_path / "ranges.npz", "--ranges-only")
    cases = [
        (["one", "three"], "merge the ranges first"),
        (["one", "raw"], "do not belong together: their fold-bn differs (True and False)"),
        (["one", "once"], "one histogram was counted in one pass and the other, exactly, in two"),
        (["one", "ranges"], "some of the statistics hold histograms"),
        (["one", "one"], "one.npz: is named twice"),
        (["one", "gone"], "gone.npz: cannot be read"),
    ]
    for names, message in cases:
        merge(tmp_path / "m.npz", *(tmp_path / f"{name}.npz" for name in names), code=2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m.npz").exists()
    for stats, more, message in [
        ("ranges", [], "holds ranges only"),
        ("one", ["--format", "tensorrt"], "--all-blobs"),
        ("one", ["--exclude", "nobody"], "exclude nobody: matches no layer"),
        ("one", ["--layer-method", "fc"], "expected NAME=METHOD"),
        ("one", ["--layer-method", "fc=magic"], "'magic' is no method"),
    ]:
        thresholds(tmp_path / f"{stats}.npz", tmp_path / "t", *more, code=2)
        assert message in capsys.readouterr().err
    raw = ("--ranges", str(tmp_path / "raw.npz"))
    run(folder, "collect", "one", tmp_path / "x.npz", *raw, code=2)
    assert "fold-bn differs" in capsys.readouterr().err


def test_images_that_stand_in_two_files_are_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "collect", "all", tmp_path / "ranges.npz", "--ranges-only")
    known = ("--ranges", str(tmp_path / "ranges.npz"))
    for name in ("one", "all"):
        run(folder, "collect", name, tmp_path / f"{name}.npz", *known)
    words = ["merge", str(tmp_path / "one.npz"), str(tmp_path / "all.npz")]
    assert main([*words, "--output", str(tmp_path / "m.npz")]) == 0
    assert "warning: 5 images stand in more than one file" in capsys.readouterr().err


def test_limit_shuffle_and_seed_choose_images(folder: Path, tmp_path: Path) -> None:
    def seen(*more: str) -> list[int]:
        run(folder, "collect", "all", tmp_path / "s.npz", *more)
        return load_collected(tmp_path / "s.npz").statistics.checksums.tolist()

    three = seen("--limit", "3", "--shuffle", "--seed", "4")
    assert len(three) == 3
    assert three == seen("--limit", "3", "--shuffle", "--seed", "4")
    assert three != seen("--limit", "3", "--shuffle", "--seed", "5")
    assert set(three) < set(seen())


def test_a_file_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from int8calib.calibration.statistics.file import save_statistics
    from int8calib.calibration.statistics.store import Statistics

    save_statistics(tmp_path / "s.npz", Statistics({}, {}))
    thresholds(tmp_path / "s.npz", tmp_path / "t", code=2)
    assert "not written by `int8calib collect`" in capsys.readouterr().err

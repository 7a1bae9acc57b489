"""`int8calib report`: what it runs, what it takes from files, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.cli.main import main
from tests.generated import make_model
from tests.network_styles import conv_bn, data, head

Files = dict[str, Path]
# Most of the time goes into drawing four pictures of each layer.
NET = (
    data(1, 3, 37, 29)
    + conv_bn("conv", "data", "num_output: 7 kernel_size: 3 stride: 2")
    + head("conv", 5)
)
LAYERS = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model, images, labels, two tables, and what other commands found."""
    folder = tmp_path_factory.mktemp("report")
    proto, model = make_model(folder, NET)
    images = np.random.default_rng(9).normal(0, 60, (5, 3, 37, 29)).astype(np.float32)
    np.save(folder / "images.npy", images)
    found = {"proto": proto, "model": model, "images": folder / "images.npy"}
    for method in ("kl", "mse"):
        found[method] = folder / f"{method}.table"
        options = ["--method", method, "--output", str(found[method]), "--quiet"]
        assert main(["calibrate", *common(found), *options]) == 0
    found["stats"] = folder / "stats.npz"
    assert main(["collect", *common(found), "--output", str(found["stats"]), "--quiet"]) == 0
    return found


def common(files: Files) -> list[str]:
    return [f"--{name}={files[name]}" for name in ("proto", "model", "images")]


def test_it_runs_what_is_missing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, pictures = tmp_path / "page.html", tmp_path / "png"
    tables = [f"--table={files['kl']}.json", f"--table={files['mse']}"]
    command = ["report", *common(files), *tables, f"--output={page}", f"--png={pictures}"]
    assert main([*command, "--title=My <net>"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<h1>My &lt;net&gt;</h1>" in text
    for kind in ("histogram", "cost", "weights", "error"):
        assert text.count(f'<figure class="{kind}">') == LAYERS
    assert len(list(pictures.glob("*.png"))) == LAYERS * 4 + 2
    said = capsys.readouterr()
    for stage in ("statistics", "evaluation", "layers", "sensitivity"):
        assert f"{stage}: " in said.err
    assert "same best class" in text
    assert "few images: 5" in said.out


def test_files_stand_in_for_runs(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(name: str, *options: str) -> str:
        path = tmp_path / name
        assert main(["report", *common(files), table, f"--output={path}", *options]) == 0
        return path.read_text(encoding="utf-8")

    table = f"--table={files['kl']}.json"
    plain = page("plain.html")
    capsys.readouterr()
    known = {"stats": files["stats"]}
    for command in ("analyze", "evaluate"):
        assert main([command, *common(files), table, "--json"]) == 0
        name = {"analyze": "analysis", "evaluate": "evaluation"}[command]
        known[name] = tmp_path / f"{name}.json"
        known[name].write_text(capsys.readouterr().out)
    again = page("again.html", *(f"--{name}={path}" for name, path in known.items()))
    assert again == plain
    said = capsys.readouterr().err
    assert not any(f"{stage}: " in said for stage in ("statistics", "evaluation", "sensitivity"))


def test_statistics_of_another_network_are_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto, model = make_model(tmp_path, NET, seed=2)
    other = files | {"proto": proto, "model": model}
    options = [f"--table={files['kl']}", f"--stats={files['stats']}", f"--output={tmp_path}/p.html"]
    assert main(["report", *common(other), *options]) == 2
    assert "their caffemodel differs" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize(
    ("collected", "message"),
    [
        (["--norm", "0.5"], "their preprocessing, data, norm differs"),
        (["--ranges-only"], "holds ranges only; collect the histograms with --ranges"),
    ],
)
def test_statistics_of_other_pixels_are_refused(
    collected: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The page would show histograms that the images given do not have."""
    proto, model = make_model(tmp_path, NET)
    pixels = np.random.default_rng(9).integers(0, 256, (37, 29, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    found = common({"proto": proto, "model": model, "images": tmp_path})
    table, stats = tmp_path / "t.table", tmp_path / "s.npz"
    assert main(["calibrate", *found, "--output", str(table), "--quiet"]) == 0
    assert main(["collect", *found, *collected, "--output", str(stats), "--quiet"]) == 0
    page = tmp_path / "page.html"
    options = ["--table", str(table), "--stats", str(stats), "--output", str(page)]
    assert main(["report", *found, *options, "--samples", "0", "--sensitivity", "0"]) == 2
    assert message in capsys.readouterr().err
    assert not page.exists()


def test_statistics_of_an_observer_serve_too(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = int8calib.load_caffe(files["proto"], files["model"])
    executor = net.executor()
    observer = int8calib.Observer(executor.layers)
    ((name, shape),) = net.input_shapes.items()
    x = np.random.default_rng(3).normal(0, 60, (5, *shape[1:])).astype(np.float32)
    observer.observe(executor.run({name: x}, [layer.blob for layer in executor.layers]))
    stats, page = tmp_path / "s.npz", tmp_path / "p.html"
    observer.save(stats)
    options = [f"--table={files['kl']}", f"--stats={stats}", f"--output={page}"]
    assert main(["report", *common(files), *options]) == 0
    assert page.read_text(encoding="utf-8").count('<figure class="histogram">') == LAYERS
    assert "statistics: " not in capsys.readouterr().err
    page.unlink()
    proto, model = make_model(tmp_path, NET, seed=2)
    assert main(["report", *common(files | {"proto": proto, "model": model}), *options]) == 2
    assert "their network differs" in capsys.readouterr().err
    assert not page.exists()


@pytest.fixture(scope="module")
def known(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """JSON of `analyze` and `evaluate`: of this network, of one with other weights, of mse."""
    folder = tmp_path_factory.mktemp("known")
    proto, model = make_model(folder, NET, seed=2)
    other = files | {"proto": proto, "model": model}
    found = {}
    for command, name in (("analyze", "analysis"), ("evaluate", "evaluation")):
        for kind, given, table in (
            ("own", files, "kl"),
            ("other", other, "kl"),
            ("mse", files, "mse"),
        ):
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                options = [f"--table={files[table]}", "--json", "--limit=2"]
                assert main([command, *common(given), *options]) == 0
            found[f"{name}-{kind}"] = folder / f"{name}-{kind}.json"
            found[f"{name}-{kind}"].write_text(text.getvalue())
    return found


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("analysis", "analysis-other", "belongs to another network"),
        ("evaluation", "evaluation-other", "belongs to another network"),
        ("analysis", "evaluation-own", "expected 'int8calib-analysis'"),
        ("evaluation", "analysis-own", "expected 'int8calib-evaluation'"),
    ],
)
def test_results_of_something_else_are_refused_before_the_work(
    files: Files,
    known: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    name: str,
    message: str,
) -> None:
    page = tmp_path / "p.html"
    table = f"--table={files['kl']}"
    command = ["report", *common(files), table, f"--output={page}", f"--{option}={known[name]}"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1, "nothing ran before"
    assert not page.exists()


def test_an_analysis_of_other_layers_is_refused(
    files: Files, known: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = tmp_path / "fewer.table"
    options = [f"--output={fewer}", "--exclude", "fc", "--quiet"]
    assert main(["calibrate", *common(files), *options]) == 0
    table, analysis = f"--table={fewer}", f"--analysis={known['analysis-own']}"
    assert main(["report", *common(files), table, analysis, f"--output={tmp_path}/p.html"]) == 2
    said = capsys.readouterr().err
    assert "the table lacks the layer 'fc'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"cost": ', '"cost": 1e999, "x": '),
        ('"name": "', '"name": "\\ud83d'),
        ('"layers": [', '"layers": [7, '),
        ('"layers": ', '"layers": ' + "[" * 5000 + "]" * 5000 + ', "x": '),
        ('"images": ', '"images": null, "x": '),
    ],
)
def test_damaged_results_are_one_line(
    files: Files,
    known: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
) -> None:
    text = known["analysis-own"].read_text()
    assert before in text
    damaged = tmp_path / "damaged.json"
    damaged.write_text(text.replace(before, after, 1))
    options = [f"--table={files['kl']}", f"--analysis={damaged}", f"--output={tmp_path}/p.html"]
    assert main(["report", *common(files), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"int8calib: error: {damaged}: ")
    assert said.count("\n") == 1
    assert len(said) < 400
    said.encode("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table={kl}", "--table={kl}", "--output={out}"], "is given twice"),
        (["--table={kl}", "--output={out}/none/page.html"], "there is no folder"),
        (
            ["--table={kl}", "--stats={stats}", "--output={out}/p", "--analysis={kl}.json"],
            "not what `int8calib analyze --json` prints",
        ),
        (["--table={kl}", "--output={out}/p", *["--analysis=x"] * 2], "2 files for 1 tables"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "p.html" if options[-1] == "--output={out}" else tmp_path
    filled = [option.format(out=out, **files) for option in options]
    assert main(["report", *common(files), *filled, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_missing_matplotlib_is_told_before_the_work(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = [f"--table={files['kl']}", f"--output={tmp_path}/page.html"]
    assert main(["report", *common(files), *options]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == "int8calib: error: a report needs matplotlib to draw: pip install int8calib[report]\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_table_whose_name_is_no_utf8(files: Files, tmp_path: Path) -> None:
    odd = tmp_path / "\udcff.table"
    odd.write_bytes(files["kl"].read_bytes())
    page, pictures = tmp_path / "page.html", tmp_path / "png"
    options = [f"--table={odd}", f"--output={page}", f"--png={pictures}", "--quiet"]
    options += ["--sensitivity=0", "--samples=0", f"--table={files['mse']}"]
    assert main(["report", *common(files), *options]) == 0
    assert page.read_text(encoding="utf-8").count('<figure class="histogram">') == LAYERS


def test_labels_are_read_before_the_work(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--table={files['kl']}", f"--output={tmp_path}/p.html", "--labels=gone.txt"]
    assert main(["report", *common(files), *options]) == 2
    said = capsys.readouterr().err
    assert "gone.txt" in said
    assert said.count("\n") == 1

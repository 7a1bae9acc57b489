"""`int8calib report`: what it runs, what it takes from files, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from int8calib.cli.main import main
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

Files = dict[str, Path]


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
        assert text.count(f'<figure class="{kind}">') == 5
    assert len(list(pictures.glob("*.png"))) == 5 * 4 + 2
    said = capsys.readouterr()
    for stage in ("ranges", "evaluation", "layers", "sensitivity"):
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
    assert not any(f"{stage}: " in said for stage in ("ranges", "evaluation", "sensitivity"))


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

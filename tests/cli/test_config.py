"""Options in TOML files: a run repeated from its own, mixed with the command line, mistaken."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int8calib.cli import calibrate
from int8calib.cli.config import ConfigParser, _toml
from int8calib.cli.main import main
from int8calib.cli.table_options import PRESETS
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    images = np.random.default_rng(41).normal(0, 60, (9, 3, 37, 29)).astype(np.float32)
    np.save(folder / "images.npy", images)
    return folder


def words(folder: Path, output: Path) -> list[str]:
    return [
        *("--proto", str(folder / "net.prototxt"), "--model", str(folder / "net.caffemodel")),
        *("--images", str(folder / "images.npy"), "--output", str(output), "--quiet"),
    ]


MANY = [
    *("--exclude", "dw", "pw", "--method", "percentile", "--percentile", "99.5"),
    *("--layer-method", "fc=mse", "conv1=kl", "--no-winograd", "--no-fold-bn"),
    *("--limit", "7", "--shuffle", "--seed", "3", "--batch", "2", "--weight-method", "mse"),
    *("--mean", "1.5", "-2", "1e-3", "--norm", "0.017", "--format", "json", "--six-bit", "left"),
]


def parsed(*words: str) -> dict[str, object]:
    parser = ConfigParser()
    calibrate.add_arguments(parser)
    return {k: v for k, v in vars(parser.parse_args(words)).items() if k != "config"}


def test_a_run_is_repeated_from_its_own_options(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.table"
    assert main(["calibrate", *words(folder, output), *MANY]) == 0
    first = output.read_bytes()
    config = tmp_path / "a.table.toml"
    kept = config.read_bytes()
    given_words = [*words(folder, output)[:-1], *MANY]
    assert parsed("--config", str(config)) == parsed(*given_words)
    (tmp_path / "kept.toml").write_bytes(kept)
    output.unlink()
    # Less memory is free now, which is no property of the table.
    system = os.sysconf
    less = {"SC_AVPHYS_PAGES": 1 << 15}
    monkeypatch.setattr(os, "sysconf", lambda name: less.get(name) or system(name))
    assert main(["calibrate", "--config", str(tmp_path / "kept.toml"), "--quiet"]) == 0
    assert output.read_bytes() == first
    assert config.read_bytes() == kept


def test_the_command_line_goes_before_the_file(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        'proto = "p"\nmodel = "m"\nimages = ["x"]\noutput = "o"\nmean = [1, 2, 3]\n'
        'exclude = ["a", "b"]\nwinograd = "6bit"\nnorm = 2\nshuffle = true\n'
    )
    found = parsed("--config", str(config))
    assert (found["mean"], found["exclude"]) == (["1", "2", "3"], ["a", "b"])
    assert (found["winograd"], found["shuffle"], found["norm"]) == ("6bit", True, [2.0])
    found = parsed(
        *("--exclude", "c", "--winograd", "--images=y", f"--config={config}", "--mean", "5")
    )
    assert (found["mean"], found["exclude"], found["images"]) == (["5"], ["c"], ["y"])
    assert found["winograd"] == "safe"
    for value, meaning in (("false", "off"), ("true", "safe")):  # of earlier versions
        config.write_text(f'proto = "p"\nwinograd = {value}\n')
        words = ("--model=m", "--images=y", "--output=o")
        assert parsed("--config", str(config), *words)["winograd"] == meaning


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_is_not_given_otherwise(tmp_path: Path, name: str) -> None:
    words = ("--proto=p", "--model=m", "--images=y", "--output=o", "--like", name)
    plain, given = parsed(*words[:-2]), parsed(*words)
    changed = {key for key in plain if plain[key] != given[key]}
    always = {"like", "method", "input_method", "grouped", "winograd", "exact"}
    more = {"ncnn2table": set(), "tool": {"fold_bn", "format"}}
    assert changed == always | more.get(name, {"fold_bn", "format"})
    config = tmp_path / "c.toml"
    config.write_text('method = "aciq"\n')
    found = parsed(*words, "--config", str(config), "--no-winograd", "--fold-bn")
    assert (found["method"], found["winograd"], found["fold_bn"]) == ("aciq", "off", True)
    assert (found["format"], found["input_method"]) == (given["format"], "same")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('methd = "kl"', "there is no option 'methd'; near keys are method"),
        ("[table]\nmethod = 1", "there is no option 'table'"),
        ('config = "x"', "there is no option 'config'"),
        ("no-winograd = true", "there is no option 'no-winograd'"),
        ('shuffle = "no"', "shuffle = 'no'; expected true or false"),
        ('winograd = "no"', "argument --winograd: invalid choice: 'no'"),
        ("method = true", "method = True; expected one text or number"),
        ("method = ['kl']", "expected one text or number"),
        ("exclude = []", "expected a list of text or numbers"),
        ("exclude = [[1]]", "expected a list of text or numbers"),
        ("limit = 1.5", "argument --limit: invalid int value: '1.5'"),
        ('format = "xml"', "argument --format: invalid choice"),
        ("method = ", "no TOML file"),
        ("seed = " + "7" * 5000, "no TOML file: Exceeds the limit"),
        ("mean = " + "[" * 3000, "no TOML file: it is nested too deep"),
        ("#" * (2**20 + 1), "it holds more than 1048576 bytes"),
        ('method = "kl"\nmethod = "mse"', "no TOML file"),
    ],
)
def test_mistakes_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", *words(folder, tmp_path / "t"), "--config", str(config)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_editors_on_windows_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_bytes('\ufeffproto = "p"\r\nmean = [1, 2,\r\n  3]\r\n'.encode())
    found = parsed("--model=m", "--images=i", "--output=o", f"--config={config}")
    assert (found["proto"], found["mean"]) == ("p", ["1", "2", "3"])
    config.write_bytes('\ufeffproto = "p"\r\n'.encode("utf-16-le"))
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", f"--config={config}"])
    assert "c.toml: no TOML file: it is UTF-16 text; save it as UTF-8" in capsys.readouterr().err


def test_a_missing_file_and_missing_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "--config", str(tmp_path / "gone.toml")])
    assert "gone.toml: cannot be read" in capsys.readouterr().err
    (tmp_path / "c.toml").write_text('proto = "x"')
    with pytest.raises(SystemExit):
        main(["collect", "--config", str(tmp_path / "c.toml")])
    assert "--images, --output" in capsys.readouterr().err


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.lists(st.floats(allow_nan=False), max_size=3),
    )
)
def test_values_are_read_back_by_the_standard_reader(value: object) -> None:
    assert tomllib.loads(f"x = {_toml(value)}")["x"] == value


@given(st.text(st.characters(codec="utf-8")) | st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,3})?"))
def test_text_is_read_back_or_as_the_number_it_spells(text: str) -> None:
    assert str(tomllib.loads(f"x = {_toml(text)}")["x"]) == text


def test_a_zero_byte_and_a_deep_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    for text, message in [
        (r'proto = "a\u0000b"', "proto holds a zero byte"),
        (f"proto = {'[' * 3000}{']' * 3000}", "no TOML file: it is nested too deep"),
        ("x" * (1 << 20) + "x", "more than 1048576 bytes"),
    ]:
        config.write_text(text)
        with pytest.raises(SystemExit):
            main(["calibrate", "--config", str(config)])
        assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_file_name_that_is_no_utf8(folder: Path, tmp_path: Path) -> None:
    """Such a name stands escaped in what is written; the table is that of the plain name."""
    odd = tmp_path / "\udcff.npy"
    odd.write_bytes((folder / "images.npy").read_bytes())
    plain = words(folder, tmp_path / "plain.table")
    assert main(["calibrate", *plain]) == 0
    arguments = [*words(folder, tmp_path / "odd.table"), "--images", str(odd)]
    arguments[arguments.index("--images") : arguments.index("--images") + 2] = []
    assert main(["calibrate", *arguments]) == 0
    assert (tmp_path / "odd.table").read_bytes() == (tmp_path / "plain.table").read_bytes()
    assert "# The next value is no UTF-8" in (tmp_path / "odd.table.toml").read_text()
    assert main(["table", "check", str(tmp_path / "odd.table.json"), "--quiet"]) == 0


NUMBERS = {
    "--checkpoint-every": ["inf", "nan", "-1", "soon"],
    "--percentile": ["nan", "inf"],
    "--seed": ["-1", "1e3", "9" * 5000],
}


@pytest.mark.parametrize(("option", "text"), [(k, v) for k, vs in NUMBERS.items() for v in vs])
def test_numbers_out_of_range_are_refused_before_the_work(
    option: str, text: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", *words(folder, tmp_path / "t"), f"{option}={text}"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: " in said
    assert "expected a " in said
    assert said.count("\n") == 1


RUN = ("--proto=p", "--model=m", "--images=i", "--output=o")
COMPARED = ("--proto=p", "--model=m", "--images=i", "--table=t")
IDLE = {
    "calibrate --seed 0": (RUN, "--seed: only --shuffle"),
    "collect --seed=7": (RUN, "--seed: only --shuffle"),
    "calibrate --checkpoint-every 30": (RUN, "--checkpoint-every: no checkpoint is written"),
    "collect --checkpoint-every 1": (RUN, "--checkpoint-every: no checkpoint is written"),
    "calibrate --percentile 99.99": (RUN, "--percentile: only the method percentile"),
    "calibrate --layer-method a=kl --percentile 98": (RUN, "--percentile: only the method"),
    "calibrate --offsets": (RUN, "--offsets: is for the INT8 model of --ncnn"),
    "calibrate --ncnn n --rounding nearest --offsets": (RUN, "--offsets: weights rounded to"),
    "calibrate --group 0 --weights per-channel": (RUN, "--weights: --group says otherwise"),
    "calibrate --group 1 --weights per-tensor": (RUN, "--weights: --group says otherwise"),
    "calibrate --format tool-v1 --weights per-group": (RUN, "--weights: the format tool-v1"),
    "calibrate --format tool-v1 --group 1": (RUN, "--group: the format tool-v1"),
    "calibrate --like tool-v1 --winograd": (RUN, "--winograd: the format tool-v1"),
    "tune --max-float-layers 2": (RUN, "--max-float-layers: layers become float only"),
    "tune --offsets": (RUN, "--offsets: is for the INT8 model of --ncnn"),
    "tune --quiet --verbose": (RUN, "--verbose: --quiet prints nothing but errors"),
    "calibrate --send-images": (RUN, "--send-images: only a --cluster"),
    "evaluate --threads 1": (COMPARED, "--threads: only ncnn itself takes it"),
    "evaluate --topk 1": (COMPARED, "--topk: only --labels are counted so"),
    "report --output o --topk 3": (COMPARED, "--topk: only --labels are counted so"),
    "report --output o --evaluation e --labels l": (COMPARED, "--labels: the accuracy is that"),
    "report --output o --evaluation e --kind detector": (COMPARED, "--kind: the accuracy is"),
    "report --output o --analysis a --sensitivity 3": (COMPARED, "--sensitivity: what each"),
    "report --output o --stats s --exact": (COMPARED, "--exact: the histograms are those"),
    "evaluate --runtime --engine numpy": (
        ("--param=p", "--bin=m", "--images=i", "--table=t"),
        "--engine: --runtime runs in ncnn itself",
    ),
    "table check t --tolerance 3 --param p": ((), "--tolerance: scales are compared with weights"),
    "table check t --winograd off": ((), "--winograd: scales are compared with weights"),
    "table check t --param p --bin b --no-fold-bn": ((), "--no-fold-bn: only of a Caffe model"),
    "table check t --param p --ignore-field f": ((), "--ignore-field: is for prototxts"),
}


@pytest.mark.parametrize("given", IDLE)
def test_options_without_effect_are_refused(
    given: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    more, message = IDLE[given]
    assert main([*given.split(), *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"int8calib: error: {message}")
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["evaluate", *COMPARED, "--labels="], "--labels"),
        (["evaluate", *COMPARED, "--outputs", "a", ""], "--outputs"),
        (["collect", *RUN, "--output", ""], "--output"),
        (["demo", "--output="], "--output"),
        (["table", "show", ""], "TABLE"),
    ],
)
def test_what_an_unset_variable_leaves(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told == f"int8calib: error: {name}: is empty; give a value, or leave it out\n"


def test_defaults_in_a_file_are_nothing_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("seed = 0\ncheckpoint-every = 30.0\npercentile = 99.99\noffsets = true\n")
    assert parsed(*RUN, f"--config={config}")["seed"] == 0
    config.write_text('shuffle = true\nseed = 3\nlike = "tool-v1"\nwinograd = "off"\n')
    assert parsed(*RUN, f"--config={config}")["seed"] == 3
    config.write_text("seed = 3\n")
    assert main(["calibrate", *RUN, f"--config={config}"]) == 2
    assert "error: --seed: only --shuffle" in capsys.readouterr().err

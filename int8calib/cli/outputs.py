"""Files that commands write: checked before the work, written together after it."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from int8calib.cli.console import as_utf8
from int8calib.errors import OptionError, OutputError
from int8calib.files import check_target, file_mode, write_all

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.assemble import Calibration
    from int8calib.calibration.layers import QuantLayer
    from int8calib.calibration.options import Options
    from int8calib.cli.console import Console
    from int8calib.files import Contents
    from int8calib.ncnn.execution.network import NcnnNet
    from int8calib.ncnn.model import NcnnModel
    from int8calib.ncnn.rounded import RoundedWeights
    from int8calib.table import CalibrationTable

MAX_FOLDERS = 100
"""Folders that may have to be made for one to write to."""
_OWN_STREAMS = ("/dev/std", "/dev/fd/", "/proc/self/fd/")


class TableFiles:
    """The file of a table, and what is written beside it under its name with another ending.

    A device, a pipe or `/dev/stdout` has nothing beside it.
    """

    def __init__(self, output: str, *endings: str) -> None:
        self.output = output
        self.beside = {} if is_stream(output) else {end: f"{output}{end}" for end in endings}

    def check(self, *others: str | None, inputs: Iterable[str | None] = ()) -> None:
        """Raise `OutputError` where a file, or one of `others`, cannot be written."""
        named = [path for path in others if path is not None]
        check_outputs([self.output, *self.beside.values(), *named], inputs)

    def write(
        self, table: str, texts: Mapping[str, str], others: Contents = MappingProxyType({})
    ) -> None:
        """Write the table, `others`, and what `texts` holds for each ending, all or none."""
        beside = {path: texts[end] for end, path in self.beside.items()}
        write_all({self.output: table, **beside, **others})

    def told(self, names: Mapping[str, str]) -> str:
        """Return where what belongs to the table stands, as `; report in net.table.json`."""
        told = [f"{names[end]} in {path}" for end, path in self.beside.items() if end in names]
        return f"; {', '.join(told)}" if told else ""


def check_outputs(outputs: Iterable[str], inputs: Iterable[str | None] = ()) -> None:
    """Check that files can be written, before the work begins.

    Parameters
    ----------
    outputs
        The files that will be written.
    inputs
        Files that must not be overwritten; None counts for nothing.

    Raises
    ------
    OutputError
        For a file that cannot be written, is named twice, is one of the inputs, or is an image.
    """
    from int8calib.images.find import IMAGE_SUFFIXES

    taken = {_place(path): path for path in inputs if path is not None and not is_stream(path)}
    for path in outputs:
        check_target(path)
        if is_stream(path):
            continue
        if Path(path).suffix.lower() in IMAGE_SUFFIXES and Path(path).exists():
            raise OutputError(f"{path}: an image would be overwritten; name another file")
        place = _place(path)
        if place in taken:
            other = "" if taken[place] == path else f" (as {taken[place]})"
            raise OutputError(
                f"{path}: would be overwritten, it is named twice{other}; name another file"
            )
        taken[place] = path


def check_folder(path: str) -> None:
    """Raise `OutputError` for a folder that is not there and cannot be made, or be written to."""
    missing = 0
    for place in (Path(path), *Path(path).parents):
        try:
            mode = file_mode(place)
        except FileNotFoundError:
            missing += 1
            continue
        except OSError as error:
            raise OutputError(f"{path}: cannot be made: {error.strerror or error}") from None
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{path}: cannot be made: {place} is no folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: cannot be made: the folder {place} is write-protected")
        break
    if missing > MAX_FOLDERS:
        raise OutputError(f"{path}: cannot be made: {missing} folders are missing")


def make_folder(path: str) -> Path:
    """Make a folder where there is none; raises `OutputError` as `check_folder`."""
    check_folder(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made: {error.strerror or error}") from None
    return Path(path)


def is_stream(path: str) -> bool:
    """Whether `path` is a device, a pipe or one of the program's own streams."""
    if path.startswith(_OWN_STREAMS):
        return True
    try:
        mode = file_mode(path)
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def is_stdout(path: str) -> bool:
    """Whether what is written to `path` arrives where stdout goes."""
    if path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        return True
    try:
        return is_stream(path) and os.path.samestat(os.fstat(1), Path(path).stat())
    except (OSError, ValueError):
        return False


def _place(path: str) -> str:
    """What two names of one file have in common."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path


def calibration_texts(
    format: str,
    done: Calibration,
    layers: Sequence[QuantLayer],
    options: Options,
    notes: Sequence[str] = (),
) -> tuple[str, str]:
    """Write a calibration's table and report as texts.

    Parameters
    ----------
    format
        The table's format.
    done
        What the calibration found.
    layers
        The layers that could have had rows, which formats keyed by blob need.
    options
        The options that the table was made with.
    notes
        What was said while the table was made, for the report.

    Returns
    -------
    tuple of str
        The table, and the report as JSON.
    """
    from int8calib.cli.table_options import laid_out
    from int8calib.table import get_format

    table = laid_out(done.table, layers, options, format)
    return get_format(format).write(table), report_text(done.table, notes)


def report_text(table: CalibrationTable, notes: Sequence[str] = ()) -> str:
    """Return a table's report as JSON that every reader takes, whatever files are called.

    `notes`: what was said while the table was made.
    """
    from int8calib.table import get_format

    meta = as_utf8({**table.meta, "notes": list(notes)} if notes else table.meta)
    return get_format("json").write(replace(table, meta=meta))


def counted(done: Calibration) -> str:
    """Say how many layers a table makes INT8, and from how many images."""
    from int8calib.calibration.selection import row_owner

    table = done.table
    alone = len({row_owner(key) for key in table.weight_rows})
    rows = f"{alone} with weight rows only" if alone else ""
    if not table.layers and rows:
        return f"layers: {rows}, which depend on no images"
    more = f", and {rows}," if rows else ""
    return f"{len(table.layers)} layers{more} from {done.statistics.images} images"


def show_calibration(console: Console, done: Calibration) -> None:
    """Show the scale of each layer and the warnings."""
    rows = []
    for layer in done.table.layers:
        evidence = layer.evidence
        if evidence is None:
            continue
        rows.append(
            (
                layer.name,
                f"{evidence.absmax:.5g}",
                f"{evidence.threshold:.5g}",
                "" if evidence.spread is None else f"{100 * evidence.spread:.1f}",
                f"{layer.bottom_scale:.6g}",
                f"{100 * evidence.clipped:.3f}",
                evidence.blob,
                evidence.method,
            )
        )
    columns = ("layer", "absmax", "threshold", "± %", "scale", "clipped %", "bottom", "method")
    if rows:
        console.table("Bottom scales", columns, rows)
    stability = done.table.meta["stability"]
    if stability is not None:
        console.say(
            f"thresholds are certain to ± {100 * stability['median']:.1f} % in the median, "
            f"± {100 * stability['worst']:.1f} % at worst ({stability['worst_blob']})"
        )
    for warning in done.warnings:
        console.say(f"warning: {warning}")


class NcnnFiles:
    """The four files of `--ncnn PREFIX`, a float ncnn model and the INT8 one; none without it."""

    def __init__(self, prefix: str | None) -> None:
        if prefix is not None and prefix[-1:] in ("", "/", os.sep):
            raise OptionError(f"--ncnn {prefix}: expected the beginning of file names, such as net")
        if prefix is not None and is_stream(prefix):
            raise OutputError(
                f"--ncnn {prefix}: is a device or a pipe; give the beginning of four file names"
            )
        stems = () if prefix is None else (prefix, f"{prefix}-int8")
        self.paths = tuple(f"{stem}{end}" for stem in stems for end in (".param", ".bin"))
        self._converted: tuple[Net, NcnnModel] | None = None
        self._model: NcnnModel | None = None

    def check(self, net: Net | NcnnNet) -> None:
        """Raise `ModelError` for a network that ncnn cannot express, before the work begins.

        What is written of a network made of an ncnn model is that model with other weights.
        """
        if not self.paths:
            return
        from int8calib.caffe.engine.run import Net
        from int8calib.ncnn.translate.network import TranslatedNet

        if isinstance(net, TranslatedNet):
            self._model = net.model
        elif isinstance(net, Net):
            self._convert(net)

    def _convert(self, net: Net) -> NcnnModel:
        """Convert a network; the last one is kept, since its arrays are the network's own."""
        from int8calib.ncnn.convert.network import convert_network

        if self._converted is None or self._converted[0] is not net:
            self._converted = net, convert_network(net)
        return self._converted[1]

    def contents(
        self,
        net: Net | NcnnNet,
        table: CalibrationTable,
        *,
        fold_bn: bool,
        rounded: Mapping[str, RoundedWeights] = MappingProxyType({}),
        winograd: bool = True,
    ) -> tuple[Contents, tuple[str, ...]]:
        """Return what to write to each file for a network and its table, and notes on it.

        `rounded`: weights that are levels already; `winograd`: whether ncnn may run by it.
        """
        if not self.paths:
            return {}, ()
        from int8calib.caffe.engine.run import Net
        from int8calib.ncnn.convert.deploy import NcnnPair, converted_pair, int8_model
        from int8calib.ncnn.model import encode_model
        from int8calib.ncnn.translate.back import with_weights

        if isinstance(net, Net) and self._model is not None:
            changed = with_weights(self._model, net.graph)
            pair = NcnnPair(changed, int8_model(changed, table, rounded, winograd=winograd))
        elif isinstance(net, Net):
            pair = converted_pair(
                self._convert(net), table, fold_bn=fold_bn, rounded=rounded, winograd=winograd
            )
        else:
            pair = NcnnPair(net.model, net.quantized(table))
        encoded = (*encode_model(pair.float_model.layers), *encode_model(pair.int8_model.layers))
        return dict(zip(self.paths, encoded, strict=True)), pair.int8_model.notes

    def tell(self, console: Console, notes: tuple[str, ...]) -> None:
        """Say what was written."""
        for note in notes:
            console.say(f"note: {note}")
        if self.paths:
            console.say(f"ncnn models: {self.paths[0]} in float, {self.paths[2]} in INT8")


def add_model_output_argument(group: Any) -> None:
    """Declare `--output` of a command that writes one ncnn model."""
    group.add_argument(
        "--output",
        required=True,
        nargs=2,
        metavar=("PARAM", "BIN"),
        help="the structure file and the weight file to write",
    )


def add_ncnn_argument(group: Any) -> None:
    """Declare `--ncnn` and `--offsets`."""
    group.add_argument(
        "--ncnn",
        metavar="PREFIX",
        help="also write the ncnn models: PREFIX.param and .bin in float, PREFIX-int8.param and "
        ".bin in INT8",
    )
    group.add_argument(
        "--offsets",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store blobs behind a ReLU that INT8 layers alone read with an offset in that INT8 "
        "model, which gives them 255 levels in place of 128 (default)",
    )

"""Files that commands write: checked before the work, written together after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.assemble import Calibration
    from int8calib.calibration.layers import QuantLayer
    from int8calib.calibration.options import Options
    from int8calib.cli.console import Console
    from int8calib.table.model import CalibrationTable


def check_output(output: str) -> None:
    """Raise `OutputError` for an output that cannot be written, before the work begins."""
    from int8calib.files import check_target

    check_target(output)


def beside(output: str, suffix: str) -> Path:
    """Return where what belongs to a table goes: beside it, with `suffix` added."""
    path = Path(output)
    return path.with_name(path.name + suffix)


def write_calibration(
    output: str,
    format: str,
    done: Calibration,
    layers: tuple[QuantLayer, ...],
    options: Options,
) -> None:
    """Write the table in its format, and the report with everything."""
    from int8calib.cli.table_options import laid_out
    from int8calib.table import write_table

    write_table(output, laid_out(done.table, layers, options, format), format)
    write_table(beside(output, ".json"), done.table, "json")


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
    """The four files of `--ncnn PREFIX`: a float ncnn model, and the INT8 one."""

    def __init__(self, prefix: str) -> None:
        """Raise `OutputError` for a file that cannot be written."""
        self.float_files = (f"{prefix}.param", f"{prefix}.bin")
        self.int8_files = (f"{prefix}-int8.param", f"{prefix}-int8.bin")
        for path in (*self.float_files, *self.int8_files):
            check_output(path)

    def check(self, net: Net) -> None:
        """Raise `ModelError` for a network that ncnn cannot express, before the work begins."""
        from int8calib.ncnn.convert.network import convert_network

        convert_network(net)

    def write(self, net: Net, table: CalibrationTable, *, fold_bn: bool, console: Console) -> None:
        """Write all files of a network and its table, and say so."""
        from int8calib.ncnn.convert.deploy import ncnn_pair
        from int8calib.ncnn.model import save_model

        pair = ncnn_pair(net, table, fold_bn=fold_bn)
        save_model(pair.float_model.layers, *self.float_files)
        save_model(pair.int8_model.layers, *self.int8_files)
        for note in pair.float_model.notes:
            console.say(f"note: {note}")
        console.say(f"ncnn models: {self.float_files[0]} in float, {self.int8_files[0]} in INT8")


def add_ncnn_argument(group: Any) -> None:
    """Declare `--ncnn`."""
    group.add_argument(
        "--ncnn",
        metavar="PREFIX",
        help="also write the ncnn models: PREFIX.param and .bin in float, PREFIX-int8.param and "
        ".bin in INT8",
    )

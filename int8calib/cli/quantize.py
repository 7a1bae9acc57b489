"""Make an INT8 ncnn model of a float one and its calibration table, as ncnn2int8 does it.

example:
  int8calib quantize --param net.param --bin net.bin --table net.table \\
      --output net-int8.param net-int8.bin

Any ncnn model and any ncnn table will do. Rows that do not fit the model are an error.
"""

from __future__ import annotations

import argparse

from int8calib.cli.console import Console
from int8calib.cli.options import MessageOptions, read_options
from int8calib.cli.outputs import add_model_output_argument, check_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib quantize`."""
    group = parser.add_argument_group("ncnn model")
    group.add_argument("--param", required=True, metavar="FILE", help="the structure file")
    group.add_argument("--bin", required=True, metavar="FILE", help="the weight file")
    group.add_argument("--table", required=True, metavar="FILE", help="the calibration table")
    add_model_output_argument(group)
    group.add_argument(
        "--fp32",
        action="store_true",
        help="store weights that stay in float as float32 (default: float16, as ncnn2int8)",
    )


def run(args: argparse.Namespace) -> int:
    """Quantize and write both files."""
    from int8calib.ncnn.model import load_model, save_model
    from int8calib.ncnn.quantize import quantize_model, read_rows
    from int8calib.table import read_text
    from int8calib.table.rules import grouped_problem

    console = Console(read_options(MessageOptions, args))
    param, weights = args.output
    check_outputs(args.output, inputs=(args.param, args.bin, args.table))
    model = load_model(args.param, args.bin)
    rows = read_rows(read_text(args.table), args.table)
    layers = quantize_model(model.layers, rows, args.table, fp32=args.fp32, source=args.param)
    save_model(layers, param, weights)
    for layer in layers:
        # Where the next layer takes levels, ncnn's other path is right.
        if layer.type == "ConvolutionDepthWise" and layer.integer(8) == 1:
            problem = grouped_problem(layer.integer(7, 1), layer.integer(0))
            if problem is not None:
                console.say(f"warning: {layer.name}: {problem}; without its rows it stays in float")
    console.say(f"{param}, {weights}: {len(rows.bottoms)} of {len(layers)} layers in INT8")
    return 0

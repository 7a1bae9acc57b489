"""Convert a Caffe model to a float ncnn model, optimized as ncnnoptimize does it.

example:
  int8calib convert --proto deploy.prototxt --model net.caffemodel --output net.param net.bin

BatchNorm, Scale and activations are folded into the layers before them, so a table of
`int8calib calibrate` with its default options fits the model.
"""

from __future__ import annotations

import argparse

from int8calib.cli.console import Console
from int8calib.cli.options import MessageOptions, ModelOptions, add_model_arguments, read_options
from int8calib.cli.outputs import add_model_output_argument, check_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib convert`."""
    add_model_arguments(parser)
    group = parser.add_argument_group("ncnn model")
    add_model_output_argument(group)
    group.add_argument(
        "--no-optimize",
        action="store_true",
        help="one ncnn layer for each of Caffe's, as caffe2ncnn leaves it; calibrate such a model "
        "with --no-fold-bn",
    )
    group.add_argument(
        "--outputs",
        nargs="+",
        metavar="BLOB",
        help="convert only what these blobs need (default: the whole network, without layers at "
        "its end that cannot run)",
    )
    group.add_argument("--fp16", action="store_true", help="store weights as float16")


def run(args: argparse.Namespace) -> int:
    """Convert and write both files."""
    from int8calib.caffe.network.runnable import named_outputs
    from int8calib.ncnn.convert.network import convert_network
    from int8calib.ncnn.model import save_model
    from int8calib.ncnn.optimize import optimize_model
    from int8calib.ncnn.weights import store_weights

    console = Console(read_options(MessageOptions, args))
    param, weights = args.output
    caffe = read_options(ModelOptions, args)
    check_outputs(args.output, inputs=(caffe.proto, caffe.model))
    net = caffe.load()
    outputs = args.outputs and named_outputs(net.graph, args.outputs, net.input_shapes)
    model = convert_network(net, outputs)
    for note in model.notes:
        console.say(f"note: {note}")
    if args.no_optimize:
        layers, width = store_weights(model.layers, half=args.fp16), 16
    else:
        layers, width = optimize_model(model.layers, fp16=args.fp16), 24
    save_model(layers, param, weights, width=width)
    console.say(f"{param}, {weights}: {len(layers)} layers")
    return 0

"""Show a network as a table: shapes, parameters, multiply-adds, and what runs in INT8.

examples:
  int8calib inspect --proto deploy.prototxt --model net.caffemodel
  int8calib inspect --param net.ncnn.param --bin net.ncnn.bin --input-shape in0=1,3,224,224
  int8calib inspect --proto deploy.prototxt --gpu
  int8calib inspect --layers

A Caffe network is not run, and the caffemodel may be left out; an ncnn model is run once, for its
shapes, if its weights are given. Multiply-adds are for one image.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from int8calib.cli.console import Console
from int8calib.cli.network import StructureOptions, add_network_arguments
from int8calib.cli.options import MessageOptions, parse_input_shapes, read_options
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.arrays import Shape
    from int8calib.inspection import Inspection

UNKNOWN = "?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `int8calib inspect`."""
    add_network_arguments(parser, run=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="list also the layers that run on the CPU, between two transfers, where a GPU runs "
        "the others; needs neither a GPU nor CuPy, for an ncnn model both of its files",
    )
    parser.add_argument(
        "--layers",
        action=_ListLayers,
        nargs=0,
        help="list the layer types that run, and exit; needs no network",
    )


class _ListLayers(argparse.Action):
    """`--layers`, which like `--help` does without the options that are required."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the list and end the command."""
        from int8calib.caffe.layers.listing import layer_families
        from int8calib.ncnn.translate.network import translated_types

        lines = [f"{family}: {', '.join(names)}" for family, names in layer_families().items()]
        lines.append(f"In ncnn models: {', '.join(translated_types())}")
        print("\n".join(lines))  # noqa: T201
        parser.exit()


def run(args: argparse.Namespace) -> int:
    """Inspect and print."""
    import int8calib

    console = Console(read_options(MessageOptions, args))
    model = read_options(StructureOptions, args)
    shapes = parse_input_shapes(model.input_shape)
    structure, weights = model.files
    if model.is_caffe:
        found = int8calib.inspect(
            structure, weights or None, input_shapes=shapes, ignore_fields=model.ignore_field
        )
    else:
        found = int8calib.inspect_ncnn(structure, weights or None, input_shapes=shapes)
    on_cpu = _layers_on_cpu(model, found) if args.gpu else None
    if args.json:
        more = {} if on_cpu is None else {"on_cpu": on_cpu}
        console.result_json({**found.as_json(), **more})
        return 0
    _show(console, found)
    if on_cpu is not None:
        console.result(*_gpu_lines(on_cpu))
    for warning in found.warnings:
        console.say(f"warning: {warning}")
    return 0


def _layers_on_cpu(model: StructureOptions, found: Inspection) -> dict[str, list[str]]:
    """Type and names of the layers that a GPU leaves to the CPU."""
    import int8calib
    from int8calib.caffe.layers.listing import host_layers

    if model.is_caffe:
        return host_layers((layer.name, layer.type) for layer in found.layers if layer.supported)
    if not model.files[1]:
        raise OptionError("--gpu: give --bin too; an ncnn model is translated with its weights")
    net = int8calib.load_ncnn(
        *model.files, engine="numpy", input_shapes=parse_input_shapes(model.input_shape)
    )
    layers = host_layers((layer.name, layer.type) for layer in net.graph.layers)
    return {kind.rpartition(".")[2]: names for kind, names in layers.items()}


def _gpu_lines(on_cpu: Mapping[str, Sequence[str]]) -> list[str]:
    if not on_cpu:
        return ["with a GPU, all layers run there"]
    lines = [f"  {kind}: {', '.join(names)}" for kind, names in on_cpu.items()]
    return ["with a GPU, these run on the CPU, between two transfers:", *lines]


def _show(console: Console, found: Inspection) -> None:
    columns = ("layer", "type", "bottoms", "tops", "output", "parameters", "multiply-adds", "INT8")
    rows = [
        (
            layer.name,
            layer.type,
            ", ".join(layer.bottoms),
            ", ".join(layer.tops),
            ", ".join(_shape(shape) for shape in layer.shapes),
            _number(layer.parameters),
            _number(layer.macs),
            f"{'yes' if layer.quantized else 'no'}: {layer.why}",
        )
        for layer in found.layers
    ]
    console.table(found.network or found.prototxt, columns, rows)
    least = "" if found.complete else "at least "
    int8 = [layer for layer in found.layers if layer.quantized]
    share = ""
    if found.macs:
        of = "" if found.complete else " known"
        share = f" with {100 * found.quantized_macs / found.macs:.1f} % of the{of} multiply-adds"
    console.result(
        f"{len(found.layers)} layers; {least}{found.parameters:,} parameters, "
        f"{least}{found.macs:,} multiply-adds an image",
        f"INT8: {len(int8)} of them{share}",
        f"outputs: {', '.join(found.outputs)}",
    )
    if found.left_out:
        console.result(f"left out, they only score or give labels: {', '.join(found.left_out)}")


def _shape(shape: Shape | None) -> str:
    return UNKNOWN if shape is None else "x".join(map(str, shape)) or "scalar"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"

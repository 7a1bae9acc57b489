"""What an inspection of a network finds: layers, totals and warnings, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from int8calib.arrays import Shape


@dataclass(frozen=True)
class InspectedLayer:
    """One layer of an inspected network.

    Attributes
    ----------
    name, type
        As in the file.
    bottoms, tops
        Names of the blobs it reads and makes.
    shapes
        The shape of each top, None where it cannot be told.
    parameters
        How many numbers it learns, None where shapes are unknown.
    macs
        Multiply-adds for one image (convolutions, deconvolutions and inner products, in ncnn models
        recurrent layers, attention and Gemm too; 0 for others), None where shapes are unknown.
    supported
        Whether the engine runs it as it is written, if its bottoms are there.
    quantized
        Whether a table has rows for it.
    why
        As what it is quantized, or why not.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    shapes: tuple[Shape | None, ...]
    parameters: int | None
    macs: int | None
    supported: bool
    quantized: bool
    why: str


@dataclass(frozen=True)
class Inspection:
    """A network as `int8calib.inspect` and `int8calib.inspect_ncnn` see it.

    Attributes
    ----------
    network, prototxt, caffemodel : str
        The name in the prototxt, and the files; of an ncnn model its `.param` and its `.bin`.
    inputs : mapping of str to Shape or None
        Input name to shape, None where it is not known.
    outputs : tuple of str
        Names of the blobs that nothing reads.
    layers : tuple of InspectedLayer
        In running order, data layers included.
    parameters, macs : int
        Sums over what is known; parameters that layers share count once.
    quantized_macs : int
        The part of `macs` that runs in INT8.
    complete : bool
        False where a shape is unknown, so that the sums are too small.
    left_out : tuple of str
        Names of layers of the TEST phase that only score.
    warnings : tuple of str
        What to mind, one line each.
    """

    network: str
    prototxt: str
    caffemodel: str | None
    inputs: Mapping[str, Shape | None]
    outputs: tuple[str, ...]
    layers: tuple[InspectedLayer, ...]
    parameters: int
    macs: int
    quantized_macs: int
    complete: bool
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON values.

        Returns
        -------
        dict
            Field names are the keys.
        """
        return asdict(self)

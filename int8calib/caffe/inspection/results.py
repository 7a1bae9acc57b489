"""What an inspection gives: frozen tables of layers, totals and warnings, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from int8calib.arrays import Shape


@dataclass(frozen=True)
class InspectedLayer:
    """One layer of the network.

    `shapes`: the shape of each top, None where it cannot be told; `parameters`: how many numbers
    it learns; `macs`: multiply-adds for one image (convolutions, deconvolutions and inner
    products; 0 for others); both None where shapes are unknown. `supported`: whether the engine
    runs its type; `quantized`: whether a table has rows for it, `why` as what or why not.
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
    """A network as `int8calib.inspect` sees it.

    `layers` stand in running order, data layers included; `parameters` and `macs` are sums over
    what is known (parameters that layers share count once), `quantized_macs` the part that runs
    in INT8. `left_out` names layers of the TEST phase that only score. `complete` is False where
    a shape is unknown, so that the sums are too small.
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
        """The same as JSON values; field names are the keys."""
        return asdict(self)

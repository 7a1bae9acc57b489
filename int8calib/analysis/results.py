"""The result of an analysis: the error of each quantized layer, in memory and as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from int8calib.evaluation.measures import Share
from int8calib.evaluation.results import json_number, share_dict
from int8calib.evaluation.stored import Place, read_result

FORMAT = "int8calib-analysis"
SCHEMA = 1
"""Counted up when a field of the JSON form changes its meaning."""


@dataclass(frozen=True)
class LayerError:
    """What INT8 does at one layer; SQNR in dB and cosines as in `BlobError`, of the layer's top.

    Attributes
    ----------
    isolated_sqnr, isolated_cosine
        the damage of this layer alone: its float bottom goes in, its float top is compared.
    accumulated_sqnr, accumulated_cosine
        with every layer before it in INT8 too: what really stands behind it.
    clipped_values
        the share of its bottom's values that lie beyond the threshold.
    clipped_error, rounding_error
        how the squared error of its quantized bottom divides between those and all others; they
        add up to 1, or are both 0 where there is no error.
    output_sqnr, agreement
        the lowest SQNR of an output of the net, and the share of images with the same best class,
        when only this layer is INT8; None where it was not asked for, or there are no classes.
    """

    name: str
    isolated_sqnr: float
    isolated_cosine: float
    accumulated_sqnr: float
    accumulated_cosine: float
    clipped_values: float
    clipped_error: float
    rounding_error: float
    output_sqnr: float | None = None
    agreement: Share | None = None


@dataclass(frozen=True)
class Analysis:
    """The error of every quantized layer, the worst isolated SQNR first.

    Attributes
    ----------
    images : int
        The number of images.
    sensitivity_images : int
        How many of them the effects of single layers on the net's outputs come from.
    cost : float
        How many evaluations of one table over the same images the analysis equals, counted in
        runs of layers.
    layers : tuple of LayerError
        The errors.
    outputs, notes : tuple of str
        The blobs in which effects on the outputs are measured, and why these, as in `Evaluation`.
    left_out : tuple of str
        Layers that the table quantizes and the outputs do not need, or that cannot run.
    network : str
        The network's fingerprint (`network_fingerprint`); empty where it is not known.
    """

    images: int
    sensitivity_images: int
    cost: float
    layers: tuple[LayerError, ...]
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    network: str = ""

    def by_sensitivity(self) -> tuple[LayerError, ...]:
        """Return the layers, those that change the net's outputs most first.

        Returns
        -------
        tuple of LayerError
            Ordered by agreement, then by the SQNR of the outputs; empty where it was not measured.
        """
        measured = [layer for layer in self.layers if layer.output_sqnr is not None]

        def harmless(layer: LayerError) -> tuple[float, float]:
            agreed = 1.0 if layer.agreement is None else layer.agreement.value
            return agreed, 0.0 if layer.output_sqnr is None else layer.output_sqnr

        return tuple(sorted(measured, key=harmless))

    def as_dict(self) -> dict[str, Any]:
        """Return the same as JSON values.

        Returns
        -------
        dict
            An infinite SQNR (nothing differs) is null. Where no sensitivity was measured
            (`sensitivity_images` is 0), `output_sqnr` is null too.
        """
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "network": self.network,
            "images": self.images,
            "sensitivity_images": self.sensitivity_images,
            "cost": self.cost,
            "outputs": list(self.outputs),
            "notes": list(self.notes),
            "left_out": list(self.left_out),
            "layers": [_layer_dict(layer) for layer in self.layers],
            "by_sensitivity": [layer.name for layer in self.by_sensitivity()],
        }


def read_analysis(path: str | os.PathLike[str]) -> Analysis:
    """Read what `int8calib analyze --json` printed.

    Parameters
    ----------
    path
        The JSON file.

    Returns
    -------
    Analysis
        The result, complete: `as_dict` gives the file's values again.

    Raises
    ------
    OptionError
        For a file that cannot be read or holds anything else; names the place in it.
    """
    root = read_result(path, "analyze", FORMAT, SCHEMA)
    images = root["images"].count(minimum=1)
    measured = root["sensitivity_images"].count(maximum=images)
    layers = tuple(_layer(layer, bool(measured)) for layer in root["layers"].items())
    root["layers"].need_different([layer.name for layer in layers])
    return Analysis(
        images,
        measured,
        root["cost"].number(0.0, 1e12),
        layers,
        tuple(name.text() for name in root["outputs"].items()),
        tuple(name.text() for name in root["notes"].items()),
        tuple(name.text() for name in root["left_out"].items()),
        root.fingerprint("network"),
    )


def _layer(place: Place, measured: bool) -> LayerError:
    """One layer; `measured`: whether its effect on the outputs was, so that null is no error."""
    if not measured and place["output_sqnr"].value is not None:
        raise place["output_sqnr"].wrong("null, since sensitivity_images is 0")
    return LayerError(
        place["name"].text(),
        place["isolated_sqnr"].sqnr(),
        place["isolated_cosine"].cosine(),
        place["accumulated_sqnr"].sqnr(),
        place["accumulated_cosine"].cosine(),
        place["clipped_values"].number(0.0, 1.0),
        place["clipped_error"].number(0.0, 1.001),
        place["rounding_error"].number(0.0, 1.001),
        place["output_sqnr"].sqnr() if measured else None,
        place["agreement"].maybe(Place.share),
    )


def _layer_dict(layer: LayerError) -> dict[str, Any]:
    output = layer.output_sqnr
    return {
        "name": layer.name,
        "isolated_sqnr": json_number(layer.isolated_sqnr),
        "isolated_cosine": json_number(layer.isolated_cosine),
        "accumulated_sqnr": json_number(layer.accumulated_sqnr),
        "accumulated_cosine": json_number(layer.accumulated_cosine),
        "clipped_values": layer.clipped_values,
        "clipped_error": layer.clipped_error,
        "rounding_error": layer.rounding_error,
        "output_sqnr": None if output is None else json_number(output),
        "agreement": share_dict(layer.agreement),
    }

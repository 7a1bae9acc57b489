"""What an analysis found: one value per quantized layer, and their two orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from int8calib.evaluation.measures import Share
from int8calib.evaluation.results import finite, share_dict


@dataclass(frozen=True)
class LayerError:
    """What INT8 does at one layer; SQNR in dB and cosines as in `BlobError`, of the layer's top.

    own_sqnr, own_cosine
        the damage of this layer alone: its float bottom goes in, its float top is compared.
    arriving_sqnr, arriving_cosine
        with every layer before it in INT8 too: what really arrives behind it.
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
    own_sqnr: float
    own_cosine: float
    arriving_sqnr: float
    arriving_cosine: float
    clipped_values: float
    clipped_error: float
    rounding_error: float
    output_sqnr: float | None = None
    agreement: Share | None = None


@dataclass(frozen=True)
class Analysis:
    """The error of every quantized layer over `images` images, the worst own SQNR first.

    `sensitivity_images` is how many of them the figures of single layers at the net's outputs
    come from; `cost` how many evaluations of one table over the same images the analysis equals,
    counted in runs of layers.
    """

    images: int
    sensitivity_images: int
    cost: float
    layers: tuple[LayerError, ...]

    def by_sensitivity(self) -> tuple[LayerError, ...]:
        """The layers that change the net's outputs most first; empty where it was not measured.

        Ordered by agreement, then by the SQNR of the outputs.
        """
        measured = [layer for layer in self.layers if layer.output_sqnr is not None]

        def harmless(layer: LayerError) -> tuple[float, float]:
            agreed = 1.0 if layer.agreement is None else layer.agreement.value
            return agreed, 0.0 if layer.output_sqnr is None else layer.output_sqnr

        return tuple(sorted(measured, key=harmless))

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values; an infinite SQNR (nothing differs) is null."""
        return {
            "images": self.images,
            "sensitivity_images": self.sensitivity_images,
            "cost": self.cost,
            "layers": [_layer(layer) for layer in self.layers],
            "by_sensitivity": [layer.name for layer in self.by_sensitivity()],
        }


def _layer(layer: LayerError) -> dict[str, Any]:
    return {
        "name": layer.name,
        "own_sqnr": finite(layer.own_sqnr),
        "own_cosine": finite(layer.own_cosine),
        "arriving_sqnr": finite(layer.arriving_sqnr),
        "arriving_cosine": finite(layer.arriving_cosine),
        "clipped_values": layer.clipped_values,
        "clipped_error": layer.clipped_error,
        "rounding_error": layer.rounding_error,
        "output_sqnr": None if layer.output_sqnr is None else finite(layer.output_sqnr),
        "agreement": share_dict(layer.agreement),
    }

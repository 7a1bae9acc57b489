"""What a calibration may be told: checked values that all later stages read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from int8calib.calibration.scales import WeightOptions
from int8calib.calibration.thresholds import MethodOptions, method_names
from int8calib.errors import OptionError

AUTO = "auto"
SAME = "same"


@dataclass(frozen=True)
class Options:
    """What a calibration may be told.

    method
        how thresholds are found, a name that `method_names()` lists. `mse` loses least
        over the real models measured (README.md has the figures).
    input_method
        the method of the network's input blobs: a method's name; `same` for `method`; `auto`
        for `minmax`, but `same` with the methods that repeat another tool (`kl-tool`,
        `kl-tool-v1`, `aciq`). `kl` with `same` is exactly ncnn2table's kl.
    layer_methods
        (pattern, method) pairs for layers that want another method. A blob has one scale for
        all its consumers: a method given to one holds for all, two different ones are an error.
    percentile
        the share of the values, in percent, that the method `percentile` keeps.
    exclude, only
        names or globs of layers: those that stay in float, those to quantize (empty: all).
    first_last_float
        True leaves the layers with no quantized layer before them, or none behind, in float.
    fold_bn
        True: weights as `ncnnoptimize` leaves them; False: as they are in the caffemodel.
    weights
        how weight scales are found.
    all_blobs
        True also gives every blob a scale, for the formats keyed by blob.
    workers
        images that run at a time, each in a thread of its own.
    cache_bytes
        memory for activations of the first pass; what does not fit is computed a second time.
    """

    method: str = "mse"
    input_method: str = AUTO
    layer_methods: tuple[tuple[str, str], ...] = ()
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    first_last_float: bool = False
    fold_bn: bool = True
    weights: WeightOptions = field(default_factory=WeightOptions)
    all_blobs: bool = False
    workers: int = 2
    cache_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; raises `OptionError`."""
        known = method_names()
        for name, method in (("method", self.method), *self.layer_methods):
            if method not in known:
                raise OptionError(f"{name}: {method!r} is no method, expected {', '.join(known)}")
        if self.input_method not in (AUTO, SAME, *known):
            expected = ", ".join((AUTO, SAME, *known))
            raise OptionError(f"input method {self.input_method!r}; expected one of {expected}")
        MethodOptions(percentile=self.percentile)

    def weight_options(self) -> WeightOptions:
        """`weights` with its method decided: aciq thresholds bring aciq weights, as ncnn2table."""
        if self.weights.method is not None:
            return self.weights
        return replace(self.weights, method="aciq" if self.method == "aciq" else "absmax")

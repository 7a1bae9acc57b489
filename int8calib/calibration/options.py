"""Options of a calibration: checked values that all later stages read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from int8calib.calibration.scales import WeightOptions
from int8calib.calibration.thresholds import DEFAULT_METHOD, MethodOptions, method_names
from int8calib.errors import OptionError
from int8calib.limits import check_flag, check_real, name_list
from int8calib.workers import check_workers, usable_cores

AUTO = "auto"
SAME = "same"
GROUPED = ("float", "int8")
"""What may be done with grouped convolutions that ncnn computes wrongly."""
_TOOL_METHODS = frozenset(("kl-tool", "kl-tool-v1"))


@dataclass(frozen=True)
class Options:
    """Options of a calibration.

    Attributes
    ----------
    method : str
        How thresholds are found, a name that `method_names` lists.
    input_method : str
        The method of the network's input blobs: a method's name; ``same`` for `method`; ``auto``
        for ``minmax``, but ``same`` with the methods that repeat another tool (``kl-tool``,
        ``kl-tool-v1``, ``aciq``). ``kl`` with ``same`` is exactly ncnn2table's kl.
    layer_methods : tuple of (str, str)
        (pattern, method) pairs for layers that want another method. A blob has one scale for
        all its consumers: a method given to one holds for all, two different ones are an error.
    percentile : float
        The share of the values, in percent, that the method ``percentile`` keeps.
    exclude, only : tuple of str
        Names or globs of layers: those that stay in float, those to quantize (empty: all).
    first_last_float : bool
        Whether the layers with no quantized layer before them, or none behind, stay in float.
    grouped : str
        Grouped convolutions whose outputs ncnn leaves uninitialized on x86 (`grouped_problem`
        says which): ``float`` keeps them in float, ``int8`` quantizes them all the same, for
        programs on ARM, or with packing off.
    fold_bn : bool
        True: weights as `ncnnoptimize` leaves them; False: as they are in the caffemodel.
    weights : WeightOptions
        How weight scales are found.
    all_blobs : bool
        Whether every blob gets a scale, for the formats keyed by blob.
    workers : int
        Batches that run at a time, each in a thread of its own; by default as many as there are
        cores that the process may use. The table does not depend on it.
    exact : bool or None
        Whether histograms are counted in two passes, with 2048 bins up to the absmax as ncnn2table
        and the reference tool have them, instead of in one pass with bins that are finer at first.
        None: for the methods that repeat a tool's table, which are ``kl-tool``, ``kl-tool-v1``,
        and ``kl`` with ``same`` as the input method.
    cache_bytes : int or None
        Memory for activations of the first of two passes; what does not fit is computed a second
        time. None: a quarter of the free memory, at most 2 GiB. The table does not depend on it.

    Raises
    ------
    OptionError
        For values that mean nothing.
    """

    method: str = DEFAULT_METHOD
    input_method: str = AUTO
    layer_methods: tuple[tuple[str, str], ...] = ()
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    first_last_float: bool = False
    grouped: str = "float"
    fold_bn: bool = True
    weights: WeightOptions = field(default_factory=WeightOptions)
    all_blobs: bool = False
    workers: int = field(default_factory=usable_cores)
    exact: bool | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; raises `OptionError`."""
        known = method_names()
        if not _are_pairs(self.layer_methods):
            raise OptionError(
                f"layer methods {self.layer_methods!r}; expected pairs of a layer, or a glob of "
                'them, and its method, such as [("conv1", "kl")]'
            )
        for name, method in (("method", self.method), *self.layer_methods):
            if method not in known:
                raise OptionError(f"{name}: {method!r} is no method, expected {', '.join(known)}")
        if self.input_method not in (AUTO, SAME, *known):
            expected = ", ".join((AUTO, SAME, *known))
            raise OptionError(f"input method {self.input_method!r}; expected one of {expected}")
        if self.grouped not in GROUPED:
            raise OptionError(f"grouped {self.grouped!r}; expected one of {', '.join(GROUPED)}")
        for what, names in (("exclude", self.exclude), ("only", self.only)):
            found = name_list(names, what, "names or globs of layers")
            object.__setattr__(self, what, found)
        if not isinstance(self.weights, WeightOptions):
            raise OptionError(f"weights {self.weights!r}; expected WeightOptions")
        for what in ("fold_bn", "first_last_float", "all_blobs"):
            check_flag(getattr(self, what), what)
        if self.exact is not None:
            check_flag(self.exact, "exact")
        check_real(self.percentile, "percentile")
        MethodOptions(percentile=self.percentile)
        check_workers(self.workers)
        cache = self.cache_bytes
        if cache is not None and (type(cache) is not int or cache < 0):
            raise OptionError(f"cache {cache}; expected a whole number of at least 0")

    @property
    def two_passes(self) -> bool:
        """Whether images run twice: `exact`, or what it is by default."""
        if self.exact is not None:
            return self.exact
        methods = {self.method, *(method for _, method in self.layer_methods)}
        repeats_ncnn = self.method == "kl" and self.input_method == SAME
        return repeats_ncnn or not methods.isdisjoint(_TOOL_METHODS)

    def weight_options(self) -> WeightOptions:
        """Return `weights` with its method decided: aciq brings aciq weights, as in ncnn2table.

        Returns
        -------
        WeightOptions
            With a `method` that is not None.
        """
        if self.weights.method is not None:
            return self.weights
        return replace(self.weights, method="aciq" if self.method == "aciq" else "absmax")


def _are_pairs(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
        for pair in given
    )


def checked_options(options: Options | None) -> Options:
    """Return the options, those by default for None.

    Parameters
    ----------
    options : Options or None
        What a caller gave.

    Returns
    -------
    Options

    Raises
    ------
    OptionError
        For anything else, such as a dict.
    """
    if options is not None and not isinstance(options, Options):
        raise OptionError(
            f"options of type {type(options).__name__}; expected Options, such as "
            'int8calib.Options(method="kl")'
        )
    return Options() if options is None else options
